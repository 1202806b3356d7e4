"""What a connection of a transport is to the stream that uses it, and how it ends.

Two are: a WebSocket (`flx_api.client.websocket`), on which topics are asked for one by one and tokens are offered, and
an event stream over HTTP (`flx_api.client.sse`), which is asked for once and only listened to.

Rules:
- `receive` may be cancelled at any moment and loses nothing.
- Nothing is read from the network before what was read last was received.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from flx_api.models.message import ServerMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flx_api.models.message import ClientMessage

OPEN_TIMEOUT_S: Final = 10.0
LOST: Final = 1006
"""The code of a connection that ended without one (RFC 6455, section 7.1.5)."""
GIVEN_UP: Final = 4000
"""A code of our own for connections that are to be made again; never sent by the service."""

_message = msgspec.json.Decoder(ServerMessage)


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


_problem = msgspec.json.Decoder(_Problem)


class Closed(Exception):
    """A connection has ended, with a close code."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the connection was closed ({code})")
        self.code = code
        self.reason = reason


class Denied(Exception):
    """A connection was answered with a status in place of being made.

    Attributes:
        code: of the service's problem document; empty when the answer is of somebody else, such as a proxy.
    """

    def __init__(self, status: int, body: bytes, retry_after: str) -> None:
        super().__init__(f"the service answered {status}")
        self.status = status
        self.retry_after = retry_after
        try:
            problem = _problem.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            problem = _Problem()
        self.code, self.detail = problem.code, problem.detail


class NotMade(Exception):
    """There is no connection. `speaks`: somebody was there, who did not speak as the service does."""

    def __init__(self, reason: str, *, speaks: bool) -> None:
        super().__init__(reason)
        self.speaks = speaks


class Connection(Protocol):
    """One connection.

    Attributes:
        asks: topics and tokens can be asked for on it; otherwise all topics were at its beginning, and it is made again
            for anything else.
    """

    asks: bool

    async def receive(self) -> ServerMessage | None:
        """The next message; None for one of a kind that this version does not know. Raises Closed."""
        ...

    def ask(self, messages: Sequence[ClientMessage]) -> None:
        """Send these, or end with `GIVEN_UP` where nothing can be asked."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


def read(text: str | bytes) -> ServerMessage:
    """A message of a known kind."""
    message: ServerMessage = _message.decode(text)
    return message
