"""An HTTP server that answers each `GET /v1/events` as a test says, and refuses every WebSocket as a proxy might."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Answer(NamedTuple):
    """An answer in place of a stream."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Stream:
    """A stream that is being written."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, *pieces: str | bytes) -> None:
        """Send bytes as they are."""
        for piece in pieces:
            self._writer.write(piece.encode() if isinstance(piece, str) else piece)
            await self._writer.drain()

    async def tell(self, *messages: str) -> None:
        """Send messages as the service does."""
        for message in messages:
            found = json.loads(message)
            pos = f"id: {found['pos']}\n" if "pos" in found else ""
            await self.write(f"{pos}event: {found['type']}\ndata: {message}\n\n")

    async def gone(self) -> None:
        """Wait until the client has left."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class StreamScript:
    """What the server does, one part for each stream.

    Attributes:
        asked: topics and `Last-Event-ID` of each request.
        sockets: how many WebSockets were asked for; `to_sockets` is what they are answered.
    """

    def __init__(self, *parts: Callable[[Stream], Awaitable[None]] | Answer) -> None:
        self.parts = list(parts)
        self.bearers: list[str] = []
        self.asked: list[tuple[list[str], str | None]] = []
        self.to_sockets = Answer(403, b"<html>")
        self.sockets = 0
        self.url = ""
        self.writers: set[asyncio.StreamWriter] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request."""
        self.writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *fields = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            target = urlsplit(line.split()[1])
            if "upgrade" in headers:
                self.sockets += 1
                self._answer(writer, self.to_sockets)
            elif target.path == "/v1/auth/whoami":
                self._answer(writer, Answer(200, b"{}"))
            else:
                await self._serve(writer, parse_qs(target.query)["topics"][0].split(","), headers)
        finally:
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()

    async def _serve(self, writer: asyncio.StreamWriter, topics: list[str], headers: dict[str, str]) -> None:
        self.bearers.append(headers.get("authorization", ""))
        part = self.parts.pop(0)
        if isinstance(part, Answer):
            self._answer(writer, part)
            return
        position = headers.get("last-event-id")
        self.asked.append((topics, position))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\nretry: 700\n\n")
        stream = Stream(writer)
        with contextlib.suppress(OSError):
            for topic in topics:
                pos = "0" if position is None else position
                await stream.tell(json.dumps({"type": "subscribed", "event": topic, "pos": pos}))
            await part(stream)

    @staticmethod
    def _answer(writer: asyncio.StreamWriter, answer: Answer) -> None:
        head = f"HTTP/1.1 {answer.status} X\r\ncontent-length: {len(answer.body)}\r\nconnection: close\r\n"
        fields = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        writer.write(f"{head}{fields}\r\n".encode() + answer.body)


@contextlib.asynccontextmanager
async def serving(script: StreamScript) -> AsyncIterator[StreamScript]:
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    async with server:
        script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield script
        for writer in script.writers:
            writer.close()


def tells(*messages: str, code: int | None = None) -> Callable[[Stream], Awaitable[None]]:
    """Send messages, then end: with the last event that names a code, or without a word."""

    async def part(stream: Stream) -> None:
        await stream.tell(*messages)
        if code is not None:
            await stream.tell(json.dumps({"type": "closed", "code": code, "reason": "because"}))

    return part


def stays(*messages: str) -> Callable[[Stream], Awaitable[None]]:
    """Send messages, and stay until the client goes."""

    async def part(stream: Stream) -> None:
        await stream.tell(*messages)
        await stream.gone()

    return part
