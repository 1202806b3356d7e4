"""Why a WebSocket ends: the only place that knows a close code.

Ranges: 1000-1015 are those of RFC 6455; 44xx are ours, by the HTTP status they resemble. A client reconnects and
resumes after RESTARTING and TOO_SLOW, gets a new token after TOKEN_ENDED, and stops after the others.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """A close code; `reason` is what the Close frame says."""

    GONE = 1005
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    RESTARTING = 1012
    TOKEN_ENDED = 4401
    TOO_SLOW = 4408
    TOO_MANY = 4429

    @property
    def reason(self) -> str:
        """The sentence in the Close frame (at most 123 bytes)."""
        return _REASONS[self]

    @property
    def resume(self) -> bool:
        """Whether the client should come back at once with its last position."""
        return self in {CloseCode.RESTARTING, CloseCode.TOO_SLOW, CloseCode.GONE}


_REASONS: dict[CloseCode, str] = {
    CloseCode.GONE: "the peer went away",
    CloseCode.POLICY: "too many messages that are not acceptable",
    CloseCode.TOO_LARGE: "a message is longer than 64 KiB",
    CloseCode.INTERNAL: "something broke on our side",
    CloseCode.RESTARTING: "restarting; come back and resume",
    CloseCode.TOKEN_ENDED: "the token has expired",
    CloseCode.TOO_SLOW: "too slow; come back and resume",
    CloseCode.TOO_MANY: "too many connections",
}
