"""One WebSocket or stream of events: who it is, and what is on its way to it.

Strategy: answers wait in a queue bounded by bytes; what the hub has for the connection comes as a turn, one at a time,
of strings that all connections share. One writer task sends them one after the other and awaits each, and says when a
turn is written: only then is there another. So a slow peer holds one turn, and the hub knows where it is.

Rules:
- `send` never blocks and never raises: a full queue ends the connection with TOO_SLOW. One frame alone never does.
- Answers and turns leave in the order in which they came: the position in an answer covers what was before it.
- Nothing is sent after the end was decided; the endpoint sends the Close frame, or the last event of a stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flx_api.models.tenant import tenant_of
from flx_api.websocket import protocol
from flx_api.websocket.close_codes import CloseCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Principal
    from flx_api.websocket.protocol import Dialect

BACKLOG_BYTES: Final = 1_048_576


class Connection:
    """One accepted WebSocket, or one stream. `client_id` is None for a stream, which has no name."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_room",
        "_send",
        "_wake",
        "client_id",
        "closing",
        "dialect",
        "handle",
        "last_sent_s",
        "principal",
        "seat",
        "sending_since_s",
        "tenant",
        "warns_s",
        "written",
    )

    def __init__(
        self,
        client_id: str | None,
        principal: Principal,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        now_s: float,
        *,
        dialect: Dialect = "plain",
    ) -> None:
        self.client_id = client_id
        self.principal = principal
        self.tenant = tenant_of(principal)
        self.dialect = dialect
        # The hub's name for it, and whom to tell that a turn is written.
        self.handle = -1
        # Its number in the roster.
        self.seat = 0
        # When its client is told that the token ends, in seconds since 1970; None once that is done.
        self.warns_s: float | None = None
        self.written: Callable[[Connection], None] | None = None
        self.closing: asyncio.Future[CloseCode] = asyncio.get_running_loop().create_future()
        self.last_sent_s = now_s
        self.sending_since_s: float | None = None
        self._send = send
        self._backlog: deque[str | bytes | tuple[str | bytes, ...]] = deque()
        self._backlog_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def end(self, code: CloseCode) -> None:
        """Decide that the connection ends; the first reason counts."""
        if not self.closing.done():
            self.closing.set_result(code)

    def send(self, message: str) -> None:
        """Queue a message of ours."""
        self.pass_on(protocol.in_stream(message) if self.dialect == "stream" else message)

    def pass_on(self, frame: str | bytes) -> None:
        """Queue a frame as the hub has written it."""
        if self.closing.done():
            return
        self._backlog_bytes += len(frame)
        # One frame may be longer than the queue (a log line has no bound): refused, it would be in the way of every
        # resume for ever. So it is taken while the queue is short.
        if self._backlog_bytes > BACKLOG_BYTES and not self._room.is_set():
            self._backlog.clear()
            self.end(CloseCode.TOO_SLOW)
            return
        if self._backlog_bytes > BACKLOG_BYTES // 4:
            self._room.clear()
        self._backlog.append(frame)
        self._wake.set()

    def give(self, frames: tuple[str | bytes, ...]) -> None:
        """Queue a turn of the hub. There is one at most, and it is not counted: its strings are everybody's."""
        if not self.closing.done():
            self._backlog.append(frames)
            self._wake.set()

    async def room(self) -> None:
        """Wait until the queue is short enough to add much to it."""
        await self._room.wait()

    async def write(self, clock: Callable[[], float]) -> None:
        """Send what is queued, for as long as the connection lives."""
        backlog = self._backlog
        while True:
            if not backlog:
                self._wake.clear()
                await self._wake.wait()
                continue
            item = backlog.popleft()
            if isinstance(item, tuple):
                for frame in item:
                    await self._one(frame, clock)
                if self.written is not None:
                    self.written(self)
                continue
            await self._one(item, clock)
            self._backlog_bytes -= len(item)
            if self._backlog_bytes <= BACKLOG_BYTES // 4:
                self._room.set()

    async def _one(self, frame: str | bytes, clock: Callable[[], float]) -> None:
        self.sending_since_s = clock()
        if self.dialect == "stream":
            body = frame if isinstance(frame, bytes) else frame.encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
        else:
            await self._send({"type": "websocket.send", "text": frame})
        self.last_sent_s = clock()
        self.sending_since_s = None
