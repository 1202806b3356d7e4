"""Many waits of one length by one timer: what nearly every request begins to wait for and hardly any waits out.

Strategy: waits of the same length end in the order in which they began, so a dict in that order is all there is, and
the loop's one timer is for the first of them. Beginning and giving up a wait are then a dict's insertion and removal;
a timer of its own for each request costs the loop several times that, and `asyncio.timeout` over ten times.

Rules:
- One loop for each of these, as long as they live.
- An alarm goes off once, never early, and as late as the loop is.
- Whoever set one clears it, also after it went off.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Ringing(Protocol):
    """Whoever can be told that it has waited long enough."""

    def ring(self) -> None:
        """The wait is over."""
        ...


class Alarms:
    """Waits of one length.

    Args:
        after_s: the length, in seconds.
        clock: seconds, never going back.
    """

    __slots__ = ("_after_s", "_clock", "_loop", "_timer", "_until")

    def __init__(self, after_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._after_s = after_s
        self._clock = clock
        self._until: dict[Ringing, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def task(self) -> asyncio.Task[None] | None:
        """The task that runs now. Asking asyncio for the loop each time is a call of the kernel each time."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return asyncio.current_task(self._loop)

    def set(self, who: Ringing) -> None:
        """Begin to wait."""
        self._until[who] = self._clock() + self._after_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._look)

    def clear(self, who: Ringing) -> None:
        """Wait no more."""
        self._until.pop(who, None)

    def _look(self) -> None:
        """Tell those whose wait is over, and come again for the first of the others."""
        self._timer = None
        now = self._clock()
        due = []
        for who, until in self._until.items():
            if until > now:
                self._timer = asyncio.get_running_loop().call_later(until - now, self._look)
                break
            due.append(who)
        for who in due:
            # One that rings may clear another one.
            if self._until.pop(who, None) is not None:
                who.ring()
