"""The event stream of a client: `GET /v1/events`, for where a WebSocket does not get through.

Strategy: a task reads a piece ahead, so that waiting for a message may be given up. All topics are in the request and
go on from one position (`Last-Event-ID`). What the stream says is turned into the messages of a WebSocket.

Rules:
- The pauses between two streams are the client's own (`flx_api.client.backoff`), whatever `retry` says.
- The service says something at least every 25 s. After `_SILENCE_S` without anything the stream is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from flx_api.addresses import is_loopback
from flx_api.client.connection import GIVEN_UP, LOST, OPEN_TIMEOUT_S, Closed, Denied, NotMade, read
from flx_api.client.event_stream import EventStreamDecoder
from flx_api.models import message as models
from flx_api.models.message import GAP, Error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from flx_api.client.event_stream import StreamEvent
    from flx_api.models.message import ClientMessage, ServerMessage

MEDIA: Final = "text/event-stream"
_SILENCE_S: Final = 60.0
_OK: Final = 200
_MAX_PROBLEM_BYTES: Final = 64 * 1024
_MESSAGES: Final = frozenset({"event", "presence", "subscribed", "unsubscribed", "heartbeat", "expiring", "reconnect"})

_gap = msgspec.json.Decoder(models.Gap)
_closed = msgspec.json.Decoder(models.Closed)


class SseConnection:
    """A stream that is being read."""

    asks = False

    def __init__(self, client: httpx.AsyncClient, answer: httpx.Response) -> None:
        self._client = client
        self._answer = answer
        self._decoder = EventStreamDecoder()
        self._events: deque[StreamEvent] = deque()
        self._piece = b""
        self._end: Closed | None = None
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._reader = asyncio.create_task(self._read(), name="event-stream-reader")

    async def receive(self) -> ServerMessage | None:
        """The next message.

        Raises:
            Closed: the stream has ended, or was ended.
        """
        while not self._events:
            await self._news.wait()
            if self._end is not None:
                raise self._end
            self._events.extend(self._decoder.feed(self._piece))
            self._news.clear()
            self._room.set()
        return message_of(self._events.popleft())

    def ask(self, messages: Sequence[ClientMessage]) -> None:
        """End it: it is asked for everything at its beginning."""
        if messages:
            self._events.clear()
            self._finish(Closed(GIVEN_UP))

    async def close(self) -> None:
        """End it."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._answer.aclose()
        await self._client.aclose()

    async def _read(self) -> None:
        try:
            async for piece in self._answer.aiter_bytes():
                await self._room.wait()
                self._room.clear()
                self._piece = piece
                self._news.set()
        except httpx.HTTPError:
            pass  # whatever it was, the stream is lost
        await self._room.wait()
        self._finish(Closed(LOST))

    def _finish(self, end: Closed) -> None:
        self._end = self._end or end
        self._news.set()


def message_of(event: StreamEvent) -> ServerMessage | None:
    """What an event of the stream says, as a WebSocket would; None for a kind that this version does not know.

    Raises:
        Closed: it was the last one.
    """
    if event.kind in _MESSAGES:
        return read(event.data)
    if event.kind == GAP:
        gap = _gap.decode(event.data)
        topic = None if gap.t == "*" else gap.t
        return Error(GAP, "", gap.reason, gap.epoch, gap.pos, topic, gap.after, gap.before, gap.href)
    if event.kind == "closed":
        closed = _closed.decode(event.data)
        raise Closed(closed.code, closed.reason)
    return None


async def opened(
    url: str, topics: Iterable[str], position: str | None, token: str | None, tls: ssl.SSLContext | None
) -> SseConnection:
    """A new stream.

    Raises:
        Denied, NotMade: there is none.
    """
    headers = {"Accept": MEDIA, "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if position is not None:
        headers["Last-Event-ID"] = position
    timeout = httpx.Timeout(OPEN_TIMEOUT_S, read=_SILENCE_S)
    # No proxy knows the way to this machine.
    elsewhere = not is_loopback(httpx.URL(url).host)
    client = httpx.AsyncClient(verify=True if tls is None else tls, timeout=timeout, trust_env=elsewhere)
    try:
        request = client.build_request("GET", url, params={"topics": ",".join(topics)}, headers=headers)
        answer = await _answer(client, request)
    except BaseException:
        await client.aclose()
        raise
    return SseConnection(client, answer)


async def _answer(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            answer = await client.send(request, stream=True)
            if answer.status_code == _OK and answer.headers.get("Content-Type", "").startswith(MEDIA):
                return answer
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _MAX_PROBLEM_BYTES:
                    break
            await answer.aclose()
    except (httpx.HTTPError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise NotMade(reason, speaks=not isinstance(error, httpx.ConnectError)) from error
    raise Denied(answer.status_code, body, answer.headers.get("Retry-After", ""))
