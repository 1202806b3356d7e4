"""One client for every transport of live events: what it was told, in words that are the same for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import httpx
import websockets
from tests.gateway_process import token
from websockets.typing import Origin, Subprotocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 20


class Transport(NamedTuple):
    """A port, and what is spoken there."""

    port: Literal["main", "native"]
    speaks: Literal["plain", "flx.v1", "sse"]
    # What is compressed (RFC 7692), which the main port cannot.
    packs: Literal["", "deflate"] = ""

    @property
    def is_stream(self) -> bool:
        """Whether the client can only listen."""
        return self.speaks == "sse"


TRANSPORTS = [Transport(port, speaks) for port in ("main", "native") for speaks in ("plain", "flx.v1", "sse")]
TRANSPORTS += [Transport("native", speaks, "deflate") for speaks in ("plain", "flx.v1")]


class Told(NamedTuple):
    """Something that a client was told."""

    kind: str
    body: dict[str, Any]


class Refused(NamedTuple):
    """The answer to who is not let in."""

    status: int
    code: str
    headers: dict[str, str]


class Ear:
    """A client that hears some topics. `pos` is what it would hand back now."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.pos: str | None = None
        self.code: int | None = None
        self.told: list[Told] = []
        self.comments = 0
        self._kept: list[Told] = []
        self._fresh: asyncio.Queue[Told | None] = asyncio.Queue()
        self._socket: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._closing = contextlib.AsyncExitStack()

    async def say(self, message: str | dict[str, Any]) -> None:
        """Send a message; streams have no way to."""
        assert not self.transport.is_stream
        await self._socket.send(message if isinstance(message, str) else json.dumps(message))

    async def next(self, *kinds: str) -> Told:
        """The next thing that was told, of these kinds: others are passed over, but for events and gaps.

        Raises:
            AssertionError: the connection has ended.
        """
        kept = next((told for told in self._kept if told.kind in kinds), None)
        if kept is not None:
            self._kept.remove(kept)
            return kept
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await self._fresh.get()
                assert told is not None, f"closed with {self.code}"
                if told.kind in kinds:
                    return told
                if told.kind in {"event", "gap"}:
                    self._kept.append(told)

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next events, one by one; a gap in between is no event."""
        return [(await self.next("event", "gap")).body for _ in range(count)]

    async def end(self) -> int:
        """Wait for the end; its code, 1006 when none was told."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._fresh.get() is not None:
                pass
        return self.code or 1006

    # --- the transports ----------------------------------------------------------------------------------------------

    async def open(self, url: str, headers: dict[str, str], topics: list[str], from_: str | None) -> Self:
        """Connect and hear these topics.

        Raises:
            _NotIn: it is not let in.
        """
        if self.transport.is_stream:
            await self._open_stream(url, headers, topics, from_)
        else:
            await self._open_socket(url, headers, topics, from_)
        return self

    async def _open_socket(self, url: str, headers: dict[str, str], topics: list[str], from_: str | None) -> None:
        offered = [Subprotocol(self.transport.speaks)] if self.transport.speaks == "flx.v1" else None
        origin = Origin(headers["origin"]) if "origin" in headers else None
        headers = {name: value for name, value in headers.items() if name != "origin"}
        try:
            self._socket = await websockets.connect(
                url,
                additional_headers=headers,
                subprotocols=offered,
                origin=origin,
                max_size=None,
                compression=self.transport.packs or None,
            )
        except websockets.InvalidStatus as error:
            refusal = error.response
            raise _NotIn(refusal.status_code, dict(refusal.headers), bytes(refusal.body or b"")) from None
        extensions = self._socket.response.headers.get("sec-websocket-extensions", "")
        assert extensions.startswith("permessage-deflate") == bool(self.transport.packs)
        self._reader = asyncio.create_task(self._read_socket())
        await self.next("connected")
        for topic in topics:
            ask = {"type": "subscribe", "event": topic} | ({"from": from_} if from_ is not None else {})
            await self.say(ask)
            answer = await self.next("subscribed", "error")
            if answer.kind == "error":
                raise _NotIn(0, {}, json.dumps(answer.body).encode())

    async def _read_socket(self) -> None:
        try:
            async for message in self._socket:
                self._take(json.loads(message))
            raise websockets.ConnectionClosedOK(None, None)
        except websockets.ConnectionClosed:
            self.code = self._socket.close_code
            self._fresh.put_nowait(None)

    async def _open_stream(self, url: str, headers: dict[str, str], topics: list[str], from_: str | None) -> None:
        client = await self._closing.enter_async_context(httpx.AsyncClient(timeout=60))
        query = {"topics": ",".join(topics)} | ({"from": from_} if from_ is not None else {})
        query |= dict(httpx.URL(url).params)
        response = await self._closing.enter_async_context(client.stream("GET", url, headers=headers, params=query))
        if response.status_code != httpx.codes.OK:
            raise _NotIn(response.status_code, dict(response.headers), await response.aread())
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-store"
        self._reader = asyncio.create_task(self._read_stream(response))
        for _ in topics:
            await self.next("subscribed")

    async def _read_stream(self, response: httpx.Response) -> None:
        try:
            async for name, data, last_id in self._parsed(response.aiter_text()):
                message = json.loads(data)
                assert name == message["type"]
                assert last_id == message.get("pos", last_id)
                self._take(message)
        except httpx.TransportError:
            self.code = None
        finally:
            self._fresh.put_nowait(None)

    async def _parsed(self, pieces: AsyncIterator[str]) -> AsyncIterator[tuple[str, str, str]]:
        """Events as WHATWG HTML section 9.2.6 reads them: name, data, last event id."""
        name, last_id, rest = "", "", ""
        data: list[str] = []
        async for piece in pieces:
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not line:
                    if data:
                        yield name or "message", "\n".join(data), last_id
                    name, data = "", []
                elif not field:
                    self.comments += 1
                elif field == "event":
                    name = value
                elif field == "data":
                    data.append(value)
                elif field == "id":
                    last_id = value
                else:
                    assert field == "retry"
                    assert value.isdecimal()

    def _take(self, message: dict[str, Any]) -> None:
        self.pos = message.get("pos") or self.pos
        if "t" in message and "d" in message:
            numbers = message["s"]
            if len(message["d"]) > 2:
                numbers = list(range(numbers[0], numbers[1] + 1)) if len(numbers) == 2 else numbers
            assert len(numbers) == len(message["d"])
            prev = message["prev"]
            for seq, data in zip(numbers, message["d"], strict=True):
                body = {"event": message["t"], "seq": seq, "prev": prev, "epoch": message["e"], "data": data}
                self._tell("event", body)
                prev = seq
            return
        kind = message["type"]
        if kind == "error" and message["code"] == "gap":
            kind = "gap"
        if kind == "gap":
            message["event"] = message.get("event") or message.get("t", "*")
        if kind == "closed":
            self.code = message["code"]
        self._tell(kind, message)

    def _tell(self, kind: str, body: dict[str, Any]) -> None:
        self.told.append(Told(kind, body))
        self._fresh.put_nowait(Told(kind, body))

    async def close(self) -> None:
        """Leave."""
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._closing.aclose()


class _NotIn(Exception):
    """Not let in: the answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status)
        self.refused = Refused(status, json.loads(body)["code"] if body else "", headers)


class Ports(NamedTuple):
    """Where a gateway listens."""

    main: int
    native: int

    def url(self, transport: Transport, client_id: str = "ear", query: str = "") -> str:
        """Where a transport connects to."""
        port = self.main if transport.port == "main" else self.native
        if transport.is_stream:
            return f"http://127.0.0.1:{port}/v1/events{query}"
        return f"ws://127.0.0.1:{port}/ws/{client_id}{query}"

    @contextlib.asynccontextmanager
    async def hearing(
        self,
        transport: Transport,
        *topics: str,
        from_: str | None = None,
        headers: dict[str, str] | None = None,
        client_id: str = "ear",
        query: str = "",
    ) -> AsyncIterator[Ear]:
        """A client that hears these topics."""
        ear = Ear(transport)
        headers = {"authorization": f"Bearer {token()}"} if headers is None else headers
        try:
            yield await ear.open(self.url(transport, client_id, query), headers, list(topics), from_)
        finally:
            await ear.close()

    async def refuses(self, transport: Transport, *topics: str, **how: Any) -> Refused:
        """The answer to a client that is not let in, or whose topic is refused (then the status of a WebSocket is 0).

        Raises:
            AssertionError: it was let in.
        """
        try:
            async with self.hearing(transport, *topics, **how):
                msg = "it was let in"
                raise AssertionError(msg)
        except _NotIn as error:
            return error.refused
