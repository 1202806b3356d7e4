"""What can go wrong for a client of the live events, beyond what it mends by itself.

RealtimeError
 +-- Refused               the service does not let the client in
 +-- SubscriptionRefused   it does not let it hear a topic
 +-- TokenEnded            the token is used up, and there is no way to a new one
 +-- Ended                 the service closed the connection for good
 +-- Unreachable           it could not be reached as often as was tried
 +-- EventsSkipped         events are missing, and nobody asked to be told of that
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flx_api.client.progress import Gap


class RealtimeError(Exception):
    """The root. `str()` is a sentence for people."""


class Refused(RealtimeError):
    """A handshake was answered with a status that trying again does not change.

    `status` is that of HTTP, `code` one of the error codes, or empty where the answer was no problem document.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{code or status}: {detail}")
        self.status = status
        self.code = code


class SubscriptionRefused(RealtimeError):
    """A topic may not be heard, or there is none of that name. `topic` is None when it is not known which one."""

    def __init__(self, topic: str | None, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" if topic is None else f"{code}: {topic}: {detail}")
        self.topic = topic
        self.code = code


class TokenEnded(RealtimeError):
    """The token has ended. With a function in place of a token, a new one would have been asked for."""

    def __init__(self) -> None:
        super().__init__("the token has ended")


class Ended(RealtimeError):
    """The service closed the connection with a code that says not to come back."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the service closed the connection ({code}{f': {reason}' if reason else ''})")
        self.code = code


class Unreachable(RealtimeError):
    """As many attempts in a row failed as were allowed."""


class EventsSkipped(RealtimeError):
    """Events were skipped. The stream goes on behind them when it is asked for the next event."""

    def __init__(self, gap: Gap) -> None:
        where = "" if gap.topic is None else f" of {gap.topic}"
        super().__init__(f"events{where} were skipped ({gap.reason})")
        self.gap = gap
