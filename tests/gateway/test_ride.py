"""A command without a task, with a real gateway and a daemon behind it, on the lane; and as a task, for another server.

What Granian's thread does with it is in `tests.gateway.test_server_thread`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from typing import Any

from tests.command_stage import ECHO, stage
from tests.gateway_app import scope
from tests.gateway_process import bearer

from flx_api.errors import Conflict
from flx_api.proto.flx.v1.daemon_pb2 import ReplyBatch, ReplyFrame
from flx_api.upstream.flights import WIDTH


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


def test_a_request_of_another_server_is_served_as_a_task() -> None:
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
