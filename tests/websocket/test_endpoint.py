"""A connection as the real ASGI callable, in this process; the real server is in e2e/test_gateway.py."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
from tests.gateway_app import Running, running
from tests.gateway_process import bearer, token

from flx_api.websocket.connection_manager import ConnectionManager

if TYPE_CHECKING:
    import pytest

    from flx_api.gateway.exchange import Message


class Socket:
    """The server's side of one WebSocket. Like Granian, it holds a Close frame back while somebody waits to receive."""

    def __init__(self, gateway: Running, path: str, headers: dict[str, str]) -> None:
        self._inbound: asyncio.Queue[Message] = asyncio.Queue()
        self._inbound.put_nowait({"type": "websocket.connect"})
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self._receiving = False
        path, _, query = path.partition("?")
        pairs = {"host": "gateway", **headers}
        self.scope = {
            "type": "websocket",
            "http_version": "1.1",
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
            "client": ("127.0.0.1", "50000"),
            "extensions": {"websocket.http.response": {}},
        }
        self.task = asyncio.create_task(gateway.app(self.scope, self._receive, self._send))

    async def _receive(self) -> Message:
        self._receiving = True
        try:
            return await self._inbound.get()
        finally:
            self._receiving = False

    async def _send(self, message: Message) -> None:
        assert message["type"] != "websocket.close" or not self._receiving
        self.sent.put_nowait(message)

    def say(self, text: str | None = None, data: bytes | None = None) -> None:
        self._inbound.put_nowait(
            {"type": "websocket.receive", "text": text}
            if data is None
            else {"type": "websocket.receive", "bytes": data}
        )

    def leave(self) -> None:
        self._inbound.put_nowait({"type": "websocket.disconnect", "code": 1005})

    async def hear(self) -> Any:
        async with asyncio.timeout(5):
            message = await self.sent.get()
        return msgspec.json.decode(message["text"]) if message["type"] == "websocket.send" else message


def run(story: Any) -> None:
    async def told() -> None:
        async with running(cors_origins=["https://app.example.com"]) as gateway:
            await story(gateway)

    asyncio.run(told())


def test_a_connection_from_beginning_to_end() -> None:
    async def story(gateway: Running) -> None:
        socket = Socket(gateway, "/ws/me", bearer())
        assert await socket.hear() == {"type": "websocket.accept", "subprotocol": None}
        assert (await socket.hear())["type"] == "connected"
        socket.say(data=b'{"type":"ping"}')
        assert (await socket.hear())["type"] == "pong"
        socket.leave()
        await socket.task
        assert gateway.parts.metrics.connections_closed == {1005: 1}
        assert gateway.parts.hub.stats()["connections"] == 0

    run(story)


def test_the_reader_is_gone_before_the_close_frame() -> None:
    async def story(gateway: Running) -> None:
        socket = Socket(gateway, "/ws/me", bearer())
        await socket.hear()
        await socket.hear()
        drain = asyncio.create_task(gateway.parts.drain(0.2))
        assert await socket.hear() == {"type": "reconnect", "in_ms": 200}
        assert (await socket.hear())["code"] == 1012
        await drain
        await socket.task

    run(story)


def test_subprotocols_and_tokens() -> None:
    async def story(gateway: Running) -> None:
        offered = {"sec-websocket-protocol": f"flx.v1, flx.plain, bearer.{token()}"}
        assert (await Socket(gateway, "/ws/a", offered).hear())["subprotocol"] == "flx.v1"
        offered = {"sec-websocket-protocol": f"flx.plain, bearer.{token()}"}
        assert (await Socket(gateway, "/ws/a", offered).hear())["subprotocol"] == "flx.plain"
        for headers, status in (
            ({"sec-websocket-protocol": "bearer.x.y.z"}, 401),
            ({"sec-websocket-protocol": "a,,b"}, 400),
            ({}, 401),
            ({**bearer(), "origin": "https://evil.example"}, 403),
            ({**bearer(), "sec-websocket-key": "x"}, 400),
        ):
            start = await Socket(gateway, "/ws/b", headers).hear()
            assert (start["type"], start["status"]) == ("websocket.http.response.start", status), headers
        allowed = {**bearer(), "origin": "https://app.example.com"}
        assert (await Socket(gateway, "/ws/c", allowed).hear())["type"] == "websocket.accept"

    run(story)


def test_offences_end_a_connection() -> None:
    async def story(gateway: Running) -> None:
        socket = Socket(gateway, "/ws/me", bearer())
        await socket.hear()
        await socket.hear()
        for _ in range(200):
            socket.say('{"type":"ping"}')
        kinds: list[Any] = []
        while (message := await socket.hear())["type"] != "websocket.close":
            kinds.append(message["type"])
        assert message["code"] == 1008
        large = Socket(gateway, "/ws/me", bearer())
        await large.hear()
        await large.hear()
        large.say(data=b"x" * 65_537)
        assert (await large.hear())["code"] == 1009

    run(story)


def test_a_query_that_cannot_be_read_is_the_clients_fault() -> None:
    async def story(gateway: Running) -> None:
        for query in ("&".join(["a=1"] * 20), "protocol=flx.v9", "protocol=flx.v1&protocol=flx.v9%00"):
            answer = await Socket(gateway, f"/ws/me?{query}", bearer()).hear()
            assert (answer["type"], answer.get("status")) == ("websocket.http.response.start", 400), query

    run(story)


def test_a_refusal_is_counted_once() -> None:
    async def story(gateway: Running) -> None:
        assert (await Socket(gateway, "/ws/me", {}).hear())["status"] == 401
        assert gateway.parts.metrics.refusals == {"missing_token": 1}
        assert (await Socket(gateway, "/ws/", bearer()).hear())["status"] == 404
        assert gateway.parts.metrics.refusals == {"missing_token": 1, "not_found": 1}

    run(story)


def test_what_came_while_another_message_was_dealt_with_is_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_000.0
    clock = SimpleNamespace(monotonic=lambda: now_s, time=time.time)
    monkeypatch.setattr("flx_api.websocket.endpoint.time", clock)

    async def slow(_manager: object, _connection: object, _topic: str, _from: str | None = None) -> None:
        nonlocal now_s
        now_s += 3.0

    monkeypatch.setattr(ConnectionManager, "subscribe", slow)

    async def story(gateway: Running) -> None:
        socket = Socket(gateway, "/ws/me", bearer())
        assert [(await socket.hear())["type"] for _ in range(2)] == ["websocket.accept", "connected"]
        socket.say('{"type":"subscribe","event":"app.x"}')
        for _ in range(200):
            socket.say('{"type":"x"}')
        answers = [(await socket.hear())["type"] for _ in range(200)]
        # A second's worth and three more came in this time; one of them is the subscription.
        assert answers == ["echo"] * 199 + ["error"]
        socket.leave()
        await socket.task

    run(story)
