"""A WebSocket server that does with each connection what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence


def event_frame(topic: str, seq: int, prev: int = 0, pos: str = "p") -> str:
    head = {"type": "event", "event": topic, "seq": seq, "prev": prev, "epoch": "e", "ts": 0, "pos": pos}
    return json.dumps({**head, "data": {}})


class Script:
    """What the server does with its connections, one function each; statuses are answers in place of one."""

    def __init__(self, *parts: Callable[[ServerConnection], Awaitable[None]] | Response) -> None:
        self.parts = list(parts)
        self.bearers: list[str] = []
        self.offers: list[str] = []
        self.asked: list[dict[str, str | None]] = []
        self.url = ""

    async def process(self, _: ServerConnection, request: Request) -> Response | None:
        self.bearers.append(request.headers.get("Authorization", ""))
        self.offers.append(request.headers.get("Sec-WebSocket-Protocol", ""))
        return self.parts.pop(0) if self.parts and isinstance(self.parts[0], Response) else None  # type: ignore[return-value]

    async def handle(self, connection: ServerConnection) -> None:
        part = self.parts.pop(0)
        assert not isinstance(part, Response)
        asked: dict[str, str | None] = {}
        while (message := json.loads(await connection.recv()))["type"] == "subscribe":
            asked[message["event"]] = message.get("from")
            await connection.send(json.dumps({"type": "subscribed", "event": message["event"], "pos": "0"}))
        await connection.send(json.dumps({"type": "pong", "timestamp": 0}))
        self.asked.append(asked)
        await part(connection)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Script]:
    plain = [Subprotocol("flx.plain")]

    def select(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return plain[0] if plain[0] in offered else None

    async with serve(
        script.handle, "127.0.0.1", 0, process_request=script.process, subprotocols=plain, select_subprotocol=select
    ) as server:
        script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield script


def answer(status: int, body: bytes = b"", after: str | None = None) -> Response:
    headers = Headers() if after is None else Headers({"Retry-After": after})
    return Response(status, http.HTTPStatus(status).phrase, headers, body)


def says(
    *frames: str, code: int = 1012, after_s: float = 0.0
) -> Callable[[ServerConnection], Coroutine[Any, Any, None]]:
    """Send frames, then close."""

    async def part(connection: ServerConnection) -> None:
        for frame in frames:
            await connection.send(frame)
        await asyncio.sleep(after_s)
        await connection.close(code)

    return part


async def stays(connection: ServerConnection) -> None:
    await connection.wait_closed()


def hears(offered: list[str], *frames: str) -> Callable[[ServerConnection], Coroutine[Any, Any, None]]:
    """Wait for a token that is offered, write it down, answer with frames, and stay."""

    async def part(connection: ServerConnection) -> None:
        message = json.loads(await connection.recv())
        assert message["type"] == "refresh"
        offered.append(message["token"])
        for frame in frames:
            await connection.send(frame)
        await connection.wait_closed()

    return part
