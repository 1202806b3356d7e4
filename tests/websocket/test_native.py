"""The native listener in a gateway in this process, over real sockets: the protocol of the ASGI face, spoken by it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest
import structlog
import websockets
from tests.gateway_app import Running, running
from tests.gateway_process import bearer, token
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from flx_api._core import Principal
from flx_api.config import load
from flx_api.dependencies import Parts
from flx_api.errors import Conflict, StartupError
from flx_api.events.follower import Past
from flx_api.events.position import Position
from flx_api.upstream.endpoints import Endpoint
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.connection import Connection
from flx_api.websocket.native import _Held

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable


def run(story: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    async def told() -> None:
        async with running(realtime_port=0, **settings) as gateway:
            await story(gateway)

    asyncio.run(told())


def connect(parts: Parts, client_id: str = "me", **options: Any) -> Any:
    assert parts.native.listener is not None
    options.setdefault("additional_headers", bearer())
    return websockets.connect(f"ws://127.0.0.1:{parts.native.listener.port}/ws/{client_id}", **options)


async def refusal(parts: Parts, client_id: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and code of a connection that is not let in."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await connect(parts, client_id, additional_headers=headers)
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    document = msgspec.json.decode(bytes(response.body or b""))
    assert document["request_id"]
    return response.status_code, document["code"]


async def hear(connection: Any) -> dict[str, Any]:
    async with asyncio.timeout(10):
        message: dict[str, Any] = msgspec.json.decode(await connection.recv())
        return message


async def say(connection: Any, **message: Any) -> dict[str, Any]:
    """Send a message; the answer."""
    await connection.send(msgspec.json.encode(message).decode())
    return await hear(connection)


def position(*fields: object) -> str:
    """A position as clients hold it."""
    return base64.urlsafe_b64encode(msgspec.json.encode(fields)).rstrip(b"=").decode()


async def code_of(connection: Any) -> int:
    """The code that a connection is closed with."""
    with pytest.raises(websockets.ConnectionClosed) as caught:  # noqa: PT012 - whatever comes before does not matter
        while True:
            await hear(connection)
    assert caught.value.rcvd is not None
    return int(caught.value.rcvd.code)


def is_listening(parts: Parts) -> bool:
    """Asked anew each time: it changes."""
    return parts.native.is_listening


@contextlib.asynccontextmanager
async def another(gateway: Running, **settings: Any) -> AsyncIterator[Parts]:
    """Another gateway of the same daemon."""
    folder = gateway.parts.settings.data_dir
    given = {
        "data_dir": folder,
        "jwt_secret_key": gateway.parts.settings.jwt_secret_key,
        "realtime_port": 0,
        **settings,
    }
    parts = Parts(load({}, given), Endpoint(path=str(Path(str(folder)) / "d.sock")))
    try:
        await parts.start()
        async with asyncio.timeout(10):
            while parts.follower.reason or not parts.revocations.known:  # noqa: ASYNC110 - flags, not events
                await asyncio.sleep(0)
        yield parts
    finally:
        await parts.close()


def test_the_plain_protocol() -> None:
    async def story(gateway: Running) -> None:
        daemon, parts = gateway.daemon, gateway.parts
        async with connect(parts) as one:
            assert await hear(one) == {"type": "connected", "message": "connected", "client_id": "me"}
            assert (await say(one, type="ping"))["type"] == "pong"
            assert await say(one, type="hello", a=1) == {"type": "echo", "data": {"type": "hello", "a": 1}}
            assert (await say(one, type="subscribe"))["code"] == "invalid_request"
            assert (await say(one, type="subscribe", event="nothing"))["code"] == "not_found"
            assert (await say(one, type="subscribe", event="execution.*"))["event"] == "execution.*"
            assert (await say(one, type="subscribe", event="pipeline_events"))["type"] == "subscribed"
            await daemon.publish("pipeline_events", {"n": 0}, tenant="other")
            await daemon.publish("execution.x.status", {"n": 1})
            await daemon.publish("pipeline_events", {"n": 2})
            await daemon.log("x", b"a line")
            events = [await hear(one) for _ in range(3)]
            assert [(event["event"], event["data"]) for event in events] == [
                ("execution.x.status", {"n": 1}),
                ("pipeline_events", {"n": 2}),
                ("execution.x.log", "a line"),
            ]
            assert {"type", "seq", "prev", "epoch", "ts", "pos"} <= set(events[0])
            assert (await say(one, type="unsubscribe", event="pipeline_events"))["type"] == "unsubscribed"
        ticket = (await gateway.client.post("/v1/ws-ticket", headers=bearer())).json()["ticket"]
        async with connect(parts, f"t?ticket={ticket}", additional_headers={}) as other:
            assert (await hear(other))["client_id"] == "t"
        assert await refusal(parts, f"t?ticket={ticket}", {}) == (401, "invalid_token")

    run(story)


def test_batches_are_for_those_who_ask_for_them() -> None:
    async def story(gateway: Running) -> None:
        offered = [websockets.Subprotocol("flx.v1"), websockets.Subprotocol(f"bearer.{token()}")]
        async with connect(gateway.parts, additional_headers={}, subprotocols=offered) as one:
            assert one.subprotocol == "flx.v1"
            await hear(one)
            await say(one, type="subscribe", event="bench.x")
            gateway.parts.manager.publish("default", "bench.x", 7, b'{"n":1}')
            batch = await hear(one)
            assert (batch["t"], batch["s"], batch["d"], batch["ts"]) == ("bench.x", [1], [{"n": 1}], 7)
        named = [websockets.Subprotocol("flx.plain")]
        async with connect(gateway.parts, "b", subprotocols=named) as other:
            assert other.subprotocol == "flx.plain"
        # The query goes before the subprotocol, and needs none.
        for query, subprotocols, expected in (
            ("?protocol=flx.v1", None, "t"),
            ("?protocol=flx.plain", [websockets.Subprotocol("flx.v1")], "event"),
        ):
            async with connect(gateway.parts, f"c{query}", subprotocols=subprotocols) as asking:
                await hear(asking)
                await say(asking, type="subscribe", event="bench.x")
                gateway.parts.manager.publish("default", "bench.x", 7, b'{"n":1}')
                assert expected in await hear(asking)
        assert await refusal(gateway.parts, "d?protocol=flx.v9", bearer()) == (400, "invalid_request")

    run(story)


def test_messages_are_compressed_for_those_who_agree() -> None:
    async def story(gateway: Running) -> None:
        parts, listener = gateway.parts, gateway.parts.native.listener
        assert listener is not None
        narrow = ClientPerMessageDeflateFactory(server_max_window_bits=10)
        async with contextlib.AsyncExitStack() as stack:
            packed = [await stack.enter_async_context(connect(parts, f"p{number}")) for number in range(3)]
            small = await stack.enter_async_context(connect(parts, "s", extensions=[narrow], compression=None))
            bare = await stack.enter_async_context(connect(parts, "b", compression=None))
            agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            assert packed[0].response.headers["sec-websocket-extensions"] == agreed
            assert small.response.headers["sec-websocket-extensions"] == f"{agreed}; server_max_window_bits=10"
            assert "sec-websocket-extensions" not in bare.response.headers
            clients = [*packed, small, bare]
            for client in clients:
                await hear(client)
                # The library compresses whatever it sends.
                assert (await say(client, type="subscribe", event="pipeline_events"))["type"] == "subscribed"
            data = {"words": ["again and again"] * 400}
            await gateway.daemon.publish("pipeline_events", data)
            told = [await hear(client) for client in clients]
            assert [event["data"] for event in told] == [data] * 5
            assert [event["seq"] for event in told] == [told[0]["seq"]] * 5
            long = {"type": "long", "text": "x" * 65_000}
            assert await say(packed[0], **long) == {"type": "echo", "data": long}
            await packed[1].send("x" * 65_537)
            assert await code_of(packed[1]) == 1009
        async with asyncio.timeout(10):
            # Counted when a thread's turn is over: the event once for each window, and the echo.
            while (made := listener.deflated())[0] < 3:  # noqa: ASYNC110 - its thread tells nobody
                await asyncio.sleep(0.01)
        assert made[0] == 3
        assert made[1] > 20 * made[2]
        assert "flx_ws_deflated_frames_total 3.0" in (await gateway.client.get("/metrics")).text

    run(story, realtime_deflate=True)


@pytest.mark.parametrize("way", ["auto", "off"])
def test_by_which_way_frames_leave_is_told(way: Literal["auto", "off"]) -> None:
    async def story(gateway: Running) -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(gateway.parts, f"c{n}")) for n in range(8)]
            for client in clients:
                await hear(client)
                assert (await say(client, type="subscribe", event="pipeline_events"))["type"] == "subscribed"
            await gateway.daemon.publish("pipeline_events", 7)
            assert [7] * 8 == [(await hear(client))["data"] for client in clients]
        # The kernel of this machine may refuse it.
        rings = gateway.parts.native.rings()
        assert rings in {"auto": (0, 1), "off": (0,)}[way]
        assert f"flx_ws_io_uring_threads {rings}.0" in (await gateway.client.get("/metrics")).text

    run(story, realtime_io_uring=way)


def test_nothing_is_compressed_unless_it_is_asked_for() -> None:
    async def story(gateway: Running) -> None:
        async with connect(gateway.parts) as one:
            assert "sec-websocket-extensions" not in one.response.headers
        malformed = {**bearer(), "sec-websocket-extensions": "a;;b"}
        async with connect(gateway.parts, additional_headers=malformed, compression=None) as one:
            assert (await hear(one))["type"] == "connected"

    async def strict(gateway: Running) -> None:
        malformed = {**bearer(), "sec-websocket-extensions": "a;;b"}
        with pytest.raises(websockets.InvalidStatus) as caught:
            await connect(gateway.parts, additional_headers=malformed, compression=None)
        assert caught.value.response.status_code == 400
        assert b"Sec-WebSocket-Extensions" in bytes(caught.value.response.body or b"")

    run(story)
    run(strict, realtime_deflate=True)


def test_connections_are_refused_before_they_begin() -> None:
    async def story(gateway: Running) -> None:
        parts = gateway.parts
        async with connect(parts, "mine"):
            assert "flx_ws_connections 1.0" in (await gateway.client.get("/metrics")).text
            assert await refusal(parts, "me", {}) == (401, "missing_token")
            assert await refusal(parts, "me", {"authorization": "Bearer a.b.c"}) == (401, "invalid_token")
            assert await refusal(parts, "mine", bearer("bert")) == (409, "client_id_taken")
            assert await refusal(parts, "a%20b", bearer()) == (400, "invalid_request")
            assert await refusal(parts, "a/b", bearer()) == (404, "not_found")
            evil = {**bearer(), "origin": "https://evil.example"}
            assert await refusal(parts, "me", evil) == (403, "origin_not_allowed")
            async with connect(parts, "mine") as again:
                assert (await hear(again))["type"] == "connected"
            # The other face of this gateway knows who holds it.
            admitted = parts.tickets.redeem(
                (await gateway.client.post("/v1/ws-ticket", headers=bearer("bert"))).json()["ticket"], 0
            )
            assert admitted is not None
            with pytest.raises(Conflict):
                parts.manager.check("mine", admitted)

    run(story)


def test_what_is_no_handshake_is_answered_with_a_problem() -> None:
    async def story(gateway: Running) -> None:
        assert gateway.parts.native.listener is not None
        ids = set()
        for request, status, code in (
            (b"GET /ws/a HTTP/1.1\r\nhost: a\r\n\r\n", 400, "invalid_request"),
            (b"GET /ws/a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n", 400, "invalid_request"),
            (b"GET /ws/a HTTP/1.1\r\n\r\n", 400, "invalid_host"),
            (b"POST /ws/a HTTP/1.1\r\nhost: a\r\n\r\n", 405, "method_not_allowed"),
            (b"nonsense\r\n\r\n", 400, "invalid_request"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.parts.native.listener.port)
            writer.write(request)
            async with asyncio.timeout(10):
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"content-length: %d" % len(body) in head
            document = msgspec.json.decode(body)
            assert document["code"] == code
            ids.add(document["request_id"])
        assert len(ids) == 5

    run(story)


def test_connections_end_for_a_reason() -> None:
    async def story(gateway: Running) -> None:
        parts = gateway.parts
        async with connect(parts) as one:
            await one.send("x" * 65_537)
            assert await code_of(one) == 1009
        async with connect(parts) as one:
            for _ in range(11):
                await one.send("not json")
            assert await code_of(one) == 1008
        headers = {"authorization": f"Bearer {token(ttl_s=2)}"}
        async with connect(parts, additional_headers=headers) as one:
            assert await code_of(one) == 4401
        async with connect(parts) as one:
            await hear(one)
            await parts.drain()
            assert await code_of(one) == 1012
        assert await refusal(parts, "me", bearer()) == (503, "shutting_down")
        metrics = (await gateway.client.get("/metrics")).text
        for code in (1009, 1008, 4401, 1012):
            assert f'flx_ws_closed_total{{code="{code}"}} 1.0' in metrics
        assert "flx_ws_connections 0.0" in metrics

    run(story)


def test_a_client_resumes_without_hole_or_duplicate() -> None:
    async def numbers(connection: Any, count: int) -> list[int]:
        return [int((await hear(connection))["data"]["n"]) for _ in range(count)]

    async def story(gateway: Running) -> None:
        daemon, parts = gateway.daemon, gateway.parts
        async with connect(parts) as one:
            await hear(one)
            await say(one, type="subscribe", event="pipeline_events")
            for number in range(3):
                await daemon.publish("pipeline_events", {"n": number})
            pos = (await hear(one))["pos"]
        for number in range(3, 6):
            await daemon.publish("pipeline_events", {"n": number})
        async with connect(parts) as one:  # from the listener's memory
            await hear(one)
            assert (await say(one, type="subscribe", event="*", **{"from": pos}))["type"] == "subscribed"
            assert await numbers(one, 5) == [1, 2, 3, 4, 5]
            await daemon.publish("pipeline_events", {"n": 6})
            assert await numbers(one, 1) == [6]
        # The memory of another gateway is empty, so the daemon has to tell.
        async with another(gateway) as other, connect(other) as one:
            await hear(one)
            await say(one, type="subscribe", event="*", **{"from": pos})
            assert await numbers(one, 6) == [1, 2, 3, 4, 5, 6]
            await daemon.publish("pipeline_events", {"n": 7})
            assert await numbers(one, 1) == [7]
        await daemon.log("x", b"1", b"2")
        async with another(gateway) as other, connect(other) as one:
            await hear(one)
            await say(one, type="subscribe", event="execution.*", **{"from": position("e1", 8, {"x": 1})})
            assert (await hear(one))["seq"] == 2
            await daemon.log("x", b"3")
            assert (await hear(one))["seq"] == 3
            # What is no history of this daemon is told as a gap.
            elsewhere = position("e0", 1, {})
            await say(one, type="subscribe", event="pipeline_events", **{"from": elsewhere})
            assert (await hear(one))["reason"] == "epoch"
            metrics = other.metrics.exposition().decode()
            assert 'flx_event_gaps_total{reason="epoch"} 1.0' in metrics
            assert 'flx_ws_resumes_total{source="daemon"} 1.0' in metrics

    run(story)


def test_who_reads_late_gets_the_newest_of_each_key() -> None:
    async def story(gateway: Running) -> None:
        parts, rooms = gateway.parts, 4
        assert parts.native.listener is not None
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
            narrow.setblocking(False)
            await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", parts.native.listener.port))
            async with connect(parts, sock=narrow, max_queue=1, compression=None) as slow:
                await hear(slow)
                await say(slow, type="subscribe", event="app.state.*")
                told = [await gateway.daemon.publish("app.state.x", _room(number % rooms)) for number in range(100)]
                began = time.monotonic()
                while parts.hub.stats()["behind"] == 0 or time.monotonic() < began + 1.5:
                    # Time is what this is about: it takes nothing for more than a second.
                    told.append(await gateway.daemon.publish("app.state.x", _room(len(told) % rooms)))
                    await asyncio.sleep(0.05)
                heard: list[int] = []
                gaps: list[tuple[int, int]] = []
                while told[-1] not in heard:
                    message = await hear(slow)
                    if message["type"] == "event":
                        heard.append(message["seq"])
                    else:
                        assert (message["code"], message["reason"]) == ("gap", "superseded")
                        gaps.append((message["after"], message["before"]))
        assert heard == sorted(heard)
        assert set(told[-rooms:]) <= set(heard)
        missing = set(told) - set(heard)
        assert missing
        assert all(any(after < seq < before for after, before in gaps) for seq in missing)
        assert (
            f'flx_event_gaps_total{{reason="superseded"}} {len(gaps)}.0' in (await gateway.client.get("/metrics")).text
        )

    run(story, topics=[{"topics": "app.state.*", "latest": "room"}])


def _room(number: int) -> dict[str, Any]:
    return {"room": number, "fill": "x" * 8_000}


def test_threads_and_the_main_port_hear_the_same_log() -> None:
    async def told_to(connection: Any, count: int) -> list[tuple[int, int]]:
        return [((event := await hear(connection))["data"]["n"], event["seq"]) for _ in range(count)]

    async def story(gateway: Running) -> None:
        parts, count = gateway.parts, 400
        sent: list[dict[str, Any]] = []
        everything = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            sent.append(msgspec.json.decode(message["text"]))
            if len(sent) == count + 1:
                everything.set()

        principal = Principal(subject="main", tenant=None, roles=("viewer",), expires_at=1 << 40)
        there = Connection("main", principal, send, 0.0)
        parts.manager.connect(there)
        writer = asyncio.create_task(there.write(time.monotonic))
        await parts.manager.subscribe(there, "pipeline_events")
        async with contextlib.AsyncExitStack() as stack:
            here = [await stack.enter_async_context(connect(parts, f"c{number}")) for number in range(6)]
            for one in here:
                await hear(one)
                await say(one, type="subscribe", event="pipeline_events")
            heard = [asyncio.create_task(told_to(one, count)) for one in here]
            for number in range(count):
                await gateway.daemon.publish("pipeline_events", {"n": number})
            async with asyncio.timeout(10):
                lists = await asyncio.gather(*heard)
                await everything.wait()
            assert [[number for number, _ in one] for one in lists] == [list(range(count))] * 6
            events = [message for message in sent if message["type"] == "event"]
            assert [(event["data"]["n"], event["seq"]) for event in events] == lists[0]
            assert all(one == lists[0] for one in lists)
            metrics = (await gateway.client.get("/metrics")).text
            assert "flx_ws_connections 7.0" in metrics
            assert f"flx_events_delivered_total {7 * count}.0" in metrics
            assert "flx_ws_behind 0.0" in metrics
        parts.manager.disconnect(there, CloseCode.GONE)
        writer.cancel()

    run(story, realtime_threads=3)


def test_a_worker_takes_over_from_one_that_is_gone() -> None:
    async def story(gateway: Running) -> None:
        assert gateway.parts.native.listener is not None
        port = gateway.parts.native.listener.port
        async with another(gateway, realtime_port=port) as second:
            assert not is_listening(second)
            await gateway.daemon.publish("pipeline_events", {"n": 1})
            await gateway.parts.native.close()
            async with asyncio.timeout(10):
                while not is_listening(second):  # noqa: ASYNC110 - a flag, not an event
                    await asyncio.sleep(0.02)
            async with connect(second) as one:
                await hear(one)
                await say(one, type="subscribe", event="pipeline_events")
                await gateway.daemon.publish("pipeline_events", {"n": 2})
                assert (await hear(one))["data"] == {"n": 2}

    run(story)


def test_a_listener_whose_threads_have_ended_makes_room_for_another() -> None:
    async def story(gateway: Running) -> None:
        native, roster = gateway.parts.native, gateway.parts.standing.roster
        ended = native.listener
        assert ended is not None
        assert ended.is_alive()
        async with connect(gateway.parts) as one:
            await hear(one)
            assert 1 == len(roster)
            # As when they end by themselves, which no test can make them do.
            await asyncio.to_thread(ended.stop)
            assert not ended.is_alive()
            with structlog.testing.capture_logs() as told:
                async with asyncio.timeout(10):
                    while native.listener in {ended, None}:  # noqa: ASYNC110 - nothing tells
                        await asyncio.sleep(0.02)
            assert [("error", ended.port)] == [
                (line["log_level"], line["port"]) for line in told if line["event"] == "realtime.ended"
            ]
        assert native.listener is not None
        assert ended.port == native.listener.port
        # The same client id, and the first place of all.
        async with connect(gateway.parts) as one:
            assert (await hear(one))["type"] == "connected"
            await say(one, type="subscribe", event="pipeline_events")
            await gateway.daemon.publish("pipeline_events", {"n": 1})
            assert (await hear(one))["data"] == {"n": 1}
            assert 1 == len(roster)

    run(story)


def test_there_is_none_unless_it_is_asked_for() -> None:
    async def told() -> None:
        async with running() as gateway:
            assert not gateway.parts.native.is_listening

    asyncio.run(told())


def test_what_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    given = {"enable_ssl": True, "ssl_cert_file": str(tmp_path / "c"), "ssl_key_file": str(tmp_path / "k")}
    (tmp_path / "c").touch()
    (tmp_path / "k").touch()
    with pytest.raises(StartupError, match="FLX_SSL"):
        run(lambda _: asyncio.sleep(0), **given)


def test_one_that_has_caught_up_twice_while_the_first_history_was_being_closed_is_forgotten_once() -> None:
    class Joining:
        """A listener whose connections have all they asked for with the first batch."""

        def backfill(self, *_: object, is_last: bool) -> bool:
            return is_last

    async def story() -> None:
        first, closing = Parts(load({"FLX_JWT_SECRET_KEY": "x" * 32}), Endpoint(path="/nowhere")), asyncio.Event()
        closed = asyncio.Event()

        async def history(topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
            try:
                yield Past("e", [], 1, is_last=True, gap_reason="", size=0)
            finally:
                if topics == ["slow"]:
                    closing.set()
                    await closed.wait()

        native = first.native
        native._history = history
        listener: Any = Joining()
        here = Position("e", 0)
        slow = asyncio.create_task(native._catch_up(7, ["slow"], here, _Held(listener, 7, 1)))
        await closing.wait()
        await native._catch_up(7, ["next"], here, _Held(listener, 7, 1))
        closed.set()
        await slow
        assert native._rooms == {}

    asyncio.run(story())


def test_what_the_daemon_has_told_another_is_given_at_once() -> None:
    given: list[tuple[int, int]] = []

    class Joining:
        def backfill(self, conn: int, _key: int, _epoch: str, events: list[object], *_: object, is_last: bool) -> bool:
            given.append((conn, len(events)))
            return is_last

    first = Parts(load({"FLX_JWT_SECRET_KEY": "x" * 32}), Endpoint(path="/nowhere"))
    first.native._known = lambda _topics, position: [Past(position.epoch, [], 1, True, "", 0)]
    listener: Any = Joining()
    first.native._tell(listener, 7, 1, ["app.x"], ("e", 0, {}))
    assert ([(7, 0)], set()) == (given, first.native._tasks)


def test_a_handshake_that_cannot_be_judged_keeps_nobody_from_his(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(gateway: Running) -> None:
        native = gateway.parts.native
        decide, broken = native._endpoint.admit_at_once, iter([True])

        def admit(*given: Any) -> Any:
            if next(broken, False):
                raise RuntimeError
            return decide(*given)

        monkeypatch.setattr(native._endpoint, "admit_at_once", admit)
        with pytest.raises(websockets.InvalidStatus) as caught:
            await connect(gateway.parts, "first")
        assert caught.value.response.status_code == 500
        async with connect(gateway.parts, "second") as second:
            assert (await hear(second))["type"] == "connected"

    run(story)
