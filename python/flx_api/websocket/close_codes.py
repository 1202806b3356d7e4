"""Why a WebSocket ends: the only place that knows a close code.

Ranges: 1000-1015 are those of RFC 6455; 44xx are ours, by the HTTP status they resemble. What a client does about each
is said by `advice`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal

Advice = Literal["resume", "new_token", "stop"]
"""What a client does: come back with its last position; the same with a new token; not come back."""


class CloseCode(IntEnum):
    """A close code; `reason` is what the Close frame says."""

    BYE = 1000
    PROTOCOL = 1002
    GONE = 1005
    NOT_TEXT = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    RESTARTING = 1012
    TOKEN_ENDED = 4401
    NOT_ALLOWED = 4403
    TOO_SLOW = 4408
    TOO_MANY = 4429

    @property
    def reason(self) -> str:
        """The sentence in the Close frame (at most 123 bytes)."""
        return _REASONS[self]


_REASONS: dict[CloseCode, str] = {
    CloseCode.BYE: "bye",
    CloseCode.PROTOCOL: "a frame that may not be",
    CloseCode.GONE: "the peer went away",
    CloseCode.NOT_TEXT: "text that is not UTF-8",
    CloseCode.POLICY: "too many messages that are not acceptable",
    CloseCode.TOO_LARGE: "a message is longer than 64 KiB",
    CloseCode.INTERNAL: "something broke on our side",
    CloseCode.RESTARTING: "restarting; come back and resume",
    CloseCode.TOKEN_ENDED: "the token has ended",
    CloseCode.NOT_ALLOWED: "no longer allowed",
    CloseCode.TOO_SLOW: "too slow; come back and resume",
    CloseCode.TOO_MANY: "too many connections",
}

# 1001 is a proxy's or the server's farewell, 1006 stands for a connection that ended without a Close frame.
_RESUME: Final = frozenset(
    {
        1001,
        1006,
        CloseCode.GONE,
        CloseCode.INTERNAL,
        CloseCode.RESTARTING,
        CloseCode.TOO_SLOW,
        CloseCode.TOO_MANY,
    }
)


def advice(code: int) -> Advice:
    """What a client does when its connection ends with a code, ours or another's."""
    if code in _RESUME:
        return "resume"
    return "new_token" if code == CloseCode.TOKEN_ENDED else "stop"
