"""How long to wait before connecting again: exponential, with full jitter.

Strategy: a pause is anything between nothing and a bound that doubles with each failure. Clients that lost the same
gateway at the same moment so come back spread over the whole of it (AWS Architecture Blog, "Exponential Backoff And
Jitter", 2015).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_DOUBLINGS: Final = 32


class Backoff:
    """The pauses of one client.

    Args:
        first_s: the bound of the first pause, in seconds.
        longest_s: the bound that no pause exceeds, but for one that the service asks for.
        chance: a number from 0 up to 1, anew each time.
    """

    def __init__(
        self, first_s: float = 0.5, longest_s: float = 30.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = chance
        self.failures = 0

    def pause_s(self, asked_s: float = 0.0) -> float:
        """Count a failure and say how long to wait, at least as long as the service asked for."""
        bound_s = min(self._longest_s, self._first_s * float(2 ** min(self.failures, _MOST_DOUBLINGS)))
        self.failures += 1
        return asked_s + self._chance() * bound_s

    def reset(self) -> None:
        """It went well: the next failure is a first one."""
        self.failures = 0
