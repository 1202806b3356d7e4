"""How many commands may be sent again: a fifth of those that are sent at all, and ten a second beside.

Strategy: a bucket of tokens. Each first try puts a fifth of one in, each second ten more come by themselves, and each
retry takes one. So retries follow the traffic: when everything fails, the daemon gets at most 1.2 times what it had to
bear anyway, and a quiet gateway can still repeat what it has. The numbers are those of Finagle's `RetryBudget`
(20 %, 10 a second, 10 s), which Linkerd took over; the simpler bucket gives such a bound without remembering when each
deposit was made.

Rules:
- Pure: `now_s` is an argument; it may come from any clock that does not go back (one that does adds nothing).
- Between any two moments at most `_MOST + 10 * seconds + 0.2 * first tries` retries are allowed.
- Whether a retry is safe is not decided here.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.2
PER_S: Final = 10.0
# What comes by itself in ten seconds: enough for the commands that one broken connection leaves behind.
_MOST: Final = 100.0


class RetryBudget:
    """The budget of one upstream.

    Args:
        now_s: when it begins; it is full then.
    """

    def __init__(self, now_s: float) -> None:
        self._tokens = _MOST
        self._now_s = now_s

    def sent(self, now_s: float) -> None:
        """A command was sent for the first time."""
        self._advance(now_s)
        self._tokens = min(self._tokens + SHARE, _MOST)

    def take(self, now_s: float) -> bool:
        """Whether a command may be sent again now; if so, it is counted."""
        self._advance(now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _advance(self, now_s: float) -> None:
        if now_s > self._now_s:
            self._tokens = min(self._tokens + PER_S * (now_s - self._now_s), _MOST)
            self._now_s = now_s
