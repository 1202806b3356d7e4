"""One WebSocket: who it is, what it hears, and what is on its way to it.

Strategy: frames wait in a queue bounded by bytes; one writer task sends them one after the other and awaits each, so
that the queue grows when the peer does not read. A connection that is catching up after a resume is `suspended`: live
events pass it by, and it takes them from the memory when it has come level.

Rules:
- `send` never blocks and never raises: a full queue ends the connection with TOO_SLOW. One frame alone never does.
- Nothing is sent after the end was decided; the endpoint sends the Close frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.protocol import Ears

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Principal
    from flx_api.events.memory import Heard

BACKLOG_BYTES: Final = 1_048_576
MAX_SUBSCRIPTIONS: Final = 256
DEFAULT_TENANT: Final = "default"


class Connection:
    """One accepted WebSocket."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_room",
        "_send",
        "_wake",
        "after",
        "after_lines",
        "client_id",
        "closing",
        "ears",
        "last_sent_s",
        "missed",
        "principal",
        "sending_since_s",
        "subscriptions",
        "suspended",
        "tenant",
    )

    def __init__(
        self, client_id: str, principal: Principal, send: Callable[[dict[str, Any]], Awaitable[None]], now_s: float
    ) -> None:
        self.client_id = client_id
        self.principal = principal
        self.tenant = principal.tenant or DEFAULT_TENANT
        self.ears = Ears(principal.subject, principal.roles)
        self.subscriptions: set[str] = set()
        # What was seen before this connection began: it may have resumed from a gateway that was ahead of this one.
        self.after = 0
        self.after_lines: dict[str, int] = {}
        self.suspended = False
        # Events of this process alone came while it was catching up, and nobody has kept them.
        self.missed = False
        self.closing: asyncio.Future[CloseCode] = asyncio.get_running_loop().create_future()
        self.last_sent_s = now_s
        self.sending_since_s: float | None = None
        self._send = send
        self._backlog: deque[str] = deque()
        self._backlog_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def end(self, code: CloseCode) -> None:
        """Decide that the connection ends; the first reason counts."""
        if not self.closing.done():
            self.closing.set_result(code)

    def may_hear(self, heard: Heard) -> bool:
        """Whether tenant and permissions let this event be delivered here."""
        return (heard.tenant or DEFAULT_TENANT) == self.tenant and self.ears.may_hear(heard.topic)

    def send(self, frame: str) -> None:
        """Queue a frame."""
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
            frame = backlog.popleft()
            self.sending_since_s = clock()
            await self._send({"type": "websocket.send", "text": frame})
            self.last_sent_s = clock()
            self.sending_since_s = None
            self._backlog_bytes -= len(frame)
            if self._backlog_bytes <= BACKLOG_BYTES // 4:
                self._room.set()
