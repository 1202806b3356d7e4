"""A command without a task, with a real gateway and a daemon behind it: on the lane, and as RSGI and ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.gateway_app import running, scope
from tests.gateway_process import bearer
from tests.small_admission import RsgiScope

from flx_api.errors import Conflict
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyBatch, ReplyFrame
from flx_api.upstream.flights import WIDTH

if TYPE_CHECKING:
    import contextvars
    from collections.abc import AsyncIterator, Generator

    from tests.gateway_app import Running

ECHO = b'{"command":"system.echo","args":{"n":1}}'


class Body:
    """A body on its way, as Granian's future of it."""

    def __init__(self, data: bytes | None, *, fails: bool = False) -> None:
        self._data = data
        self._fails = fails
        self._loop = asyncio.get_running_loop()
        self._callback: Any = None
        self.is_cancelled = False

    def add_done_callback(self, callback: Any, *, context: contextvars.Context) -> None:
        # As Granian's does, it keeps it for good.
        self._callback = callback
        if self._data is not None:
            self._loop.call_soon_threadsafe(callback, self, context=context)

    def __await__(self) -> Generator[None, None, bytes]:
        yield from asyncio.sleep(0).__await__()
        return self.result()

    def result(self) -> bytes:
        if self._fails:
            raise RuntimeError
        assert self._data is not None
        return self._data

    def cancel(self) -> None:
        self.is_cancelled = True


class Protocol:
    """The protocol of one request."""

    def __init__(self, body: Body) -> None:
        self._body: Body | None = body
        self.answers: list[tuple[int, list[tuple[str, str]], bytes]] = []
        self.answered = asyncio.Event()
        self.gone = asyncio.Event()

    def __call__(self) -> Body:
        body, self._body = self._body, None
        assert body is not None
        return body

    async def client_disconnect(self) -> None:
        await self.gone.wait()

    def response_bytes(self, *answer: Any) -> None:
        self.answers.append(answer)
        self.answered.set()


class Watcher:
    """What Granian gives to its scheduler."""

    def __init__(self, body: Body, headers: dict[str, str] | None = None, query: str = "") -> None:
        own = {**bearer(), "content-type": "application/json", "content-length": "9", **(headers or {})}
        self.scope = RsgiScope({**scope("POST", "/v1/execute", own), "scheme": "http"})
        self.scope.query_string = query
        self.proto = Protocol(body)

    async def answer(self) -> tuple[int, Any]:
        """Status and document of the answer, of which there is one."""
        async with asyncio.timeout(20):
            await self.proto.answered.wait()
        ((status, _, body),) = self.proto.answers
        return status, json.loads(body)


class Client:
    """A client of the lane, with one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.headers: dict[str, str] = {}

    async def answer(self) -> tuple[int, Any]:
        """Status and document of the answer."""
        async with asyncio.timeout(20):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            self.headers = dict(line.split(": ", 1) for line in lines)
            body = await self._reader.readexactly(int(self.headers["content-length"]))
        await self.leave()
        return int(status.split()[1]), json.loads(body)

    async def leave(self) -> None:
        """Go away."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Stage:
    """A running gateway with a lane."""

    def __init__(self, gateway: Running, port: int) -> None:
        self.gateway = gateway
        self.parts = gateway.parts
        self.daemon = gateway.daemon
        self.rides = gateway.parts.rides
        self._port = port
        # What did not end as a ride.
        self.gone_on = 0
        go_on = self.parts.lane.go_on

        def counted(*args: Any) -> None:
            self.gone_on += 1
            go_on(*args)

        self.parts.lane.go_on = counted  # type: ignore[method-assign, assignment]

    async def ask(self, body: bytes = ECHO, headers: dict[str, str] | None = None, query: str = "") -> Client:
        """Send a request down the lane."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        own = {"host": "gateway", **bearer(), "content-type": "application/json", "content-length": str(len(body))}
        lines = [
            f"POST /v1/execute{query} HTTP/1.1",
            *(f"{name}: {value}" for name, value in (own | (headers or {})).items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return Client(reader, writer)

    async def asked(self, watcher: Watcher) -> None:
        """The same as RSGI."""
        admitted, scoped = self.parts.edge.decide(watcher.scope, bare=self.rides.bare) or ()
        assert scoped is None
        await self.rides.ride(watcher.scope, watcher.proto, admitted)

    def hold(self, command: str, held: int) -> None:
        """Let the daemon not answer the first ones."""
        seen: list[CommandFrame] = []

        def answer(frame: CommandFrame) -> ReplyFrame | None:
            seen.append(frame)
            return None if len(seen) <= held else ReplyFrame(result=b"[%d]" % len(seen))

        self.daemon.answers[command] = answer

    async def outstanding(self, count: int) -> None:
        """Until so many commands have reached the daemon."""
        async with asyncio.timeout(20):
            while len(self.daemon.commands()) < count:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)

    def requests(self) -> dict[str, int]:
        """The requests of the route that were counted, by class of the status."""
        counted = self.parts.metrics.requests
        return {status: count for (route, _, status), count in counted.items() if route == "/v1/execute"}

    def phases(self) -> dict[str, int]:
        """How often each phase of a command was timed."""
        names = ("receive", "admit", "authorise", "dispatch", "upstream", "respond", "record")
        counted = {
            name: counts[-1] for name, (counts, _) in zip(names, self.parts.metrics.counters.phases(), strict=True)
        }
        return {name: count for name, count in counted.items() if name not in {"receive", "admit"}}


@contextlib.asynccontextmanager
async def stage(**settings: Any) -> AsyncIterator[Stage]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with running(**settings) as gateway:
            gateway.parts.lane.start(listening.fileno())
            yield Stage(gateway, listening.getsockname()[1])


def test_a_plain_command_is_answered_without_a_task() -> None:
    async def story() -> None:
        async with stage() as at:
            client = await at.ask(headers={"x-request-id": "mine"})
            status, reply = await client.answer()
            assert (200, "system.echo", "ok", {"n": 1}) == (status, reply["command"], reply["status"], reply["result"])
            assert ("mine", 0) == (reply["meta"]["request_id"], at.gone_on)
            # As on the other way in.
            other = await at.gateway.client.post(
                "/v1/execute",
                headers={**bearer(), "content-type": "application/json", "x-request-id": "mine"},
                content=ECHO,
            )
            assert {**reply, "meta": None} == {**other.json(), "meta": None}
            told = {name: value for name, value in client.headers.items() if not name.startswith("ratelimit")}
            expected = {name: value for name, value in other.headers.items() if not name.startswith("ratelimit")}
            assert {**expected, "date": told["date"], "content-length": told["content-length"]} == told
            assert {"2xx": 2} == at.requests()
            assert {"authorise": 2, "dispatch": 2, "upstream": 2, "respond": 2, "record": 0} == at.phases()
            assert 0 == at.rides.hall.boarding

    asyncio.run(story())


def test_what_is_answered_is_forgotten_without_a_collector() -> None:
    async def story() -> None:
        async with stage() as at:
            gone = []
            for sent in (ECHO, b"{"):
                body = Body(sent)
                gone.append(weakref.ref(body))
                watcher = Watcher(body)
                del body
                await at.asked(watcher)
                await watcher.answer()
                del watcher
                await asyncio.sleep(0)
            # Granian's future is not seen by the collector: a circle of which it is a part would be there for ever.
            assert [None, None] == [body() for body in gone]

    gc.disable()
    try:
        asyncio.run(story())
    finally:
        gc.enable()


def test_what_is_not_plain_goes_on_as_a_task() -> None:
    async def story() -> None:
        async with stage() as at:
            at.daemon.answers["pipeline.run"] = lambda _: ReplyFrame(result=b'{"id":"x1"}', accepted_id="x1")
            at.daemon.answers["pipeline.create"] = lambda _: Conflict("taken", code="already_exists")
            asked = [
                (b'{"command":"system.ecko"}', 404, "unknown_command"),
                (b'{"command":"system.echo","args":[]}', 422, "validation_failed"),
                (b"{", 400, "invalid_json"),
                (b'{"command":"pipeline.run","args":{"id":"p"}}', 202, None),
                (b'{"command":"pipeline.create","args":{}}', 409, "already_exists"),
            ]
            for number, (body, status, code) in enumerate(asked, 1):
                client = await at.ask(body)
                seen, document = await client.answer()
                assert (status, code, number) == (seen, document.get("code"), at.gone_on)
            # A query is for the general way from the first word.
            query = await at.ask(query="?dry_run=true")
            assert (422, 5) == ((await query.answer())[0], at.gone_on)
            assert {"2xx": 1, "4xx": 5} == at.requests()

    asyncio.run(story())


def test_a_body_that_is_broken_or_late_is_refused() -> None:
    async def story() -> None:
        async with stage() as at:
            broken = Watcher(Body(b"", fails=True))
            await at.asked(broken)
            status, document = await broken.answer()
            assert (400, "invalid_request") == (status, document["code"])
            body = Body(None)
            late = Watcher(body)
            asking = asyncio.create_task(at.asked(late))
            await asyncio.sleep(0)
            assert ([], 1) == (at.rides.hall.late(), at.rides.hall.boarding)
            at.rides.late(now_ns=2**63)
            await asking
            assert 408 == (await late.answer())[0]
            assert body.is_cancelled
            assert ("connection", "close") in late.proto.answers[0][1]

    asyncio.run(story())


def test_a_read_whose_connection_breaks_is_sent_again() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 1)
            client = await at.ask()
            await at.outstanding(1)
            connection: Any = at.parts.upstream._ready[0].connection
            connection._protocol.connection._transport.abort()
            assert 200 == (await client.answer())[0]
            assert (2, 1) == (len(at.daemon.commands()), at.gone_on)

    asyncio.run(story())


def test_a_command_whose_time_is_over_is_told_so() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 1)
            status, document = await (await at.ask(b'{"command":"system.echo","deadline_ms":1}')).answer()
            assert (504, "deadline_exceeded") == (status, document["code"])
            assert (0, {"5xx": 1}) == (at.parts.upstream.in_flight, at.requests())

    asyncio.run(story())


def test_a_caller_that_leaves_is_noticed() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 1)
            client = await at.ask()
            await at.outstanding(1)
            await client.leave()
            async with asyncio.timeout(20):
                while not at.daemon.given_up:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            assert (0, 0, {"4xx": 1}) == (at.parts.upstream.in_flight, at.gone_on, at.requests())

    asyncio.run(story())


def test_reads_that_are_the_same_share_answers() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("pipeline.list", WIDTH)
            clients = [await at.ask(b'{"command":"pipeline.list"}') for _ in range(WIDTH)]
            await at.outstanding(WIDTH)
            clients += [await at.ask(b'{"command":"pipeline.list"}') for _ in range(3)]
            async with asyncio.timeout(20):
                while at.parts.dispatcher.flights._waiting < 3:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
            frames = at.daemon.commands()
            assert (WIDTH, 3) == (len(frames), at.gone_on)
            upstream = at.parts.upstream
            replies = ReplyBatch(frames=[ReplyFrame(seq=frame.seq, result=b"[0]") for frame in frames])
            upstream.received(upstream._ready[0], replies.SerializeToString())
            results = [(await client.answer())[1]["result"] for client in clients]
            assert [[0]] * WIDTH + [[WIDTH + 1]] * 3 == results
            assert ({}, 2) == (at.parts.dispatcher.flights._skies, at.parts.metrics.reads_shared)

    asyncio.run(story())


def test_where_there_is_no_room_it_waits_as_a_task() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 500)
            clients = [await at.ask() for _ in range(120)]
            answers = [asyncio.create_task(client.answer()) for client in clients]
            done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            status, document = done.pop().result()
            assert (503, "overloaded") == (status, document["code"])
            assert 0 < at.gone_on < 120
            for answer in answers:
                answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
            for client in clients:
                await client.leave()

    asyncio.run(story())


def test_a_task_waits_for_the_end_of_its_ride() -> None:
    """The RSGI face."""

    async def story() -> None:
        async with stage() as at:

            async def asked(body: bytes) -> Watcher:
                watcher = Watcher(Body(body))
                await at.asked(watcher)
                return watcher

            status, reply = await (await asked(ECHO)).answer()
            assert (200, {"n": 1}) == (status, reply["result"])
            assert 400 == (await (await asked(b"{")).answer())[0]
            at.hold("system.echo", 1)
            asking = asyncio.create_task(asked(b'{"command":"system.echo","deadline_ms":1}'))
            assert 504 == (await (await asking).answer())[0]
            assert {"2xx": 1, "4xx": 1, "5xx": 1} == at.requests()

    asyncio.run(story())


def test_a_fault_of_ours_is_answered() -> None:
    async def story() -> None:
        async with stage() as at:
            for given in (None, 7):
                wrong: Any = given
                watcher = Watcher(Body(b"{}"))
                watcher.proto._body._data = wrong  # type: ignore[union-attr]
                admitted, _ = at.parts.edge.decide(watcher.scope, bare=at.rides.bare) or ()
                asking = asyncio.create_task(at.rides.ride(watcher.scope, watcher.proto, admitted))
                if wrong is None:
                    await asyncio.sleep(0)
                    (ride,) = at.rides.hall.late(2**63)
                    ride.done.set_exception(ValueError("ours"))
                await asking
                assert (500, "internal") == ((await watcher.answer())[0], (await watcher.answer())[1]["code"])
            no_bytes: Any = bytearray(ECHO)
            asgi = Asgi(no_bytes)
            await at.parts.edge.http(asgi.scope, asgi.receive, asgi.send)
            assert (500, "internal") == (asgi.answer[0], asgi.answer[1]["code"])

    asyncio.run(story())


class Asgi:
    """A request of ASGI: its body in these pieces, and whether its caller has left."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        own = {**bearer(), "content-type": "application/json", "content-length": str(sum(map(len, pieces)))}
        self.scope = scope("POST", "/v1/execute", own)

    async def receive(self) -> dict[str, Any]:
        if self._pieces:
            return {"type": "http.request", "body": self._pieces.pop(0), "more_body": True}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.gone.is_set():
            raise RuntimeError
        self.sent.append(message)

    @property
    def answer(self) -> tuple[int, Any]:
        start, end = self.sent
        return start["status"], json.loads(end["body"])


def test_a_request_of_asgi_rides_when_its_body_comes_at_once() -> None:
    async def story() -> None:
        async with stage() as at:
            for pieces, status, code in (
                ((ECHO,), 200, None),
                ((ECHO[:5], ECHO[5:]), 200, None),
                ((b"{",), 400, "invalid_json"),
            ):
                asgi = Asgi(*pieces)
                await at.parts.edge.http(asgi.scope, asgi.receive, asgi.send)
                assert (status, code) == (asgi.answer[0], asgi.answer[1].get("code"))
            cut = Asgi(ECHO)
            cut.scope = scope(
                "POST", "/v1/execute", {**bearer(), "content-type": "application/json", "content-length": "99"}
            )
            cut.gone.set()
            await at.parts.edge.http(cut.scope, cut.receive, cut.send)
            assert {"2xx": 2, "4xx": 2} == at.requests()

    asyncio.run(story())


def test_who_leaves_a_request_of_asgi_is_noticed() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 1)
            asgi = Asgi(ECHO)
            serving = asyncio.create_task(at.parts.edge.http(asgi.scope, asgi.receive, asgi.send))
            await at.outstanding(1)
            asgi.gone.set()
            await serving
            assert ([], 0, {"4xx": 1}) == (asgi.sent, at.parts.upstream.in_flight, at.requests())
            while not at.daemon.given_up:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)

    asyncio.run(story())


def test_a_task_that_is_cancelled_leaves_nothing_behind() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("pipeline.list", 1)
            for until in (0, 1):
                asgi = Asgi(b'{"command":"pipeline.list"}')
                serving = asyncio.create_task(at.parts.edge.http(asgi.scope, asgi.receive, asgi.send))
                if until:
                    await at.outstanding(1)
                else:
                    await asyncio.sleep(0)
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
                await asyncio.sleep(0)
                assert ({}, {}) == (at.parts.dispatcher.flights._skies, at.rides._questions)
            assert (0, [until]) == (at.parts.upstream.in_flight, [len(at.daemon.commands())])

    asyncio.run(story())


def test_ten_thousand_cancellations_leave_no_answer_to_another_one() -> None:
    async def story() -> None:
        draw = random.Random(7)
        async with stage(rate_limits=()) as at:
            counted = Counter[str]()

            async def ask(marker: int) -> None:
                asgi = Asgi(b'{"command":"system.echo","args":{"n":%d}}' % marker)
                serving = asyncio.create_task(at.parts.edge.http(asgi.scope, asgi.receive, asgi.send))
                for _ in range(draw.choice((0, 1, 2, 3, 4, 6, 8, 99))):
                    if serving.done():
                        break
                    await asyncio.sleep(0)
                serving.cancel()
                try:
                    await serving
                except asyncio.CancelledError:
                    counted["cancelled"] += 1
                    return
                counted["answered"] += 1
                assert (200, marker) == (asgi.answer[0], asgi.answer[1]["result"]["n"])

            marker = 0
            while counted["cancelled"] < 10_000:
                await asyncio.gather(*(ask(marker + number) for number in range(40)))
                marker += 40
            assert counted["answered"]
            async with asyncio.timeout(20):
                while len(at.parts.upstream.express._native):  # noqa: ASYNC110 - what was cancelled ends with its reply
                    await asyncio.sleep(0.01)
            assert (0, 240) == (at.parts.upstream.in_flight, at.parts.upstream._credits._value)

    asyncio.run(story())
