"""How many commands may be sent again: a fifth of those that are sent at all, and ten a second beside.

Strategy: tokens of two kinds. Ten a second come by themselves, at most ten seconds' worth. Each first try earns a fifth
of one, which is good for ten seconds and is counted by the second. Each retry takes one. So retries follow the traffic:
when everything fails, the daemon gets at most 1.2 times what it had to bear anyway; a quiet gateway can still repeat
what it has, and a busy one what a single lost connection had under way. The numbers are those of Finagle's
`RetryBudget` (20 %, 10 a second, 10 s), which Linkerd took over.

Rules:
- Pure: `now_s` is an argument; it may come from any clock that does not go back (one that does adds nothing).
- Between any two moments at most `10 * (seconds + TTL_S)` retries are allowed, and 0.2 for each first try since
  `TTL_S` (to the second) before the first of them.
- Whether a retry is safe is not decided here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

SHARE: Final = 0.2
PER_S: Final = 10.0
TTL_S: Final = 10.0
SLICE_S: Final = 1.0
_MOST: Final = PER_S * TTL_S


@dataclass(slots=True)
class _Slice:
    """What the first tries of a second have earned, less what was taken."""

    began_s: float
    tokens: float = 0.0


class RetryBudget:
    """The budget of one upstream.

    Args:
        now_s: when it begins; what comes by itself is there then.
    """

    def __init__(self, now_s: float) -> None:
        self._given = _MOST
        self._now_s = now_s
        self._earned: deque[_Slice] = deque((_Slice(now_s),))

    def sent(self, now_s: float, count: int = 1) -> None:
        """So many commands were sent for the first time."""
        if now_s - self._earned[-1].began_s >= SLICE_S:
            self._earned.append(_Slice(now_s))
            self._expire(now_s)
        self._earned[-1].tokens += SHARE * count

    def take(self, now_s: float) -> bool:
        """Whether a command may be sent again now; if so, it is counted."""
        if now_s > self._now_s:
            self._given = min(self._given + PER_S * (now_s - self._now_s), _MOST)
            self._now_s = now_s
        self._expire(now_s)
        if self._given + sum(each.tokens for each in self._earned) < 1:
            return False
        wanted = 1.0
        # What is lost the soonest is taken first.
        for each in self._earned:
            taken = min(each.tokens, wanted)
            each.tokens -= taken
            wanted -= taken
        self._given -= wanted
        return True

    def _expire(self, now_s: float) -> None:
        while len(self._earned) > 1 and now_s - self._earned[0].began_s > TTL_S + SLICE_S:
            self._earned.popleft()
        if now_s - self._earned[0].began_s > TTL_S + SLICE_S:
            self._earned[0].tokens = 0.0
