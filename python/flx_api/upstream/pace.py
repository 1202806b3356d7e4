"""How fast things come to their end: enough to say whether it is worth waiting for a turn.

Strategy: ends are counted, and once in a while the count becomes a rate. Counting is on every command's way and is one
addition; asking happens only where something waits.

Rules:
- Pure: `now_s` is an argument.
- What was seen in less than `WINDOW_S` is no rate yet, and over more than `STALE_S` none of now. Where there is none,
  everything is worth waiting for.
"""

from __future__ import annotations

from math import inf
from typing import Final

WINDOW_S: Final = 0.25
STALE_S: Final = 1.0


class Pace:
    """Nothing has ended at first.

    Args:
        now_s: when it begins.
    """

    __slots__ = ("_per_s", "_since_s", "ended")

    def __init__(self, now_s: float) -> None:
        # Public, and counted by whoever knows: a call for each would cost several times as much.
        self.ended = 0
        self._since_s = now_s
        self._per_s = inf

    def within(self, seconds: float, now_s: float) -> float:
        """How many will have ended after so many seconds, by the last rate that was seen."""
        elapsed_s = now_s - self._since_s
        if elapsed_s >= WINDOW_S:
            self._per_s = self.ended / elapsed_s if elapsed_s <= STALE_S else inf
            self.ended, self._since_s = 0, now_s
        return self._per_s * seconds
