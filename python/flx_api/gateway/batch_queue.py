"""Plain batches that wait for room for all of their operations.

Strategy: a batch leaves as a whole or waits here for `BURST_S` at most; whenever something under way is over, or a
daemon is there again, all that wait are looked at, in the order in which they came. Who fits passes those who do not:
how long these wait is bounded.

Rules:
- Nobody waits in vain. What is larger than any daemon takes of batches, what could be too late afterwards, what comes
  while no daemon takes anything or commands wait for room already, goes on in parts at once, and so does what comes
  while `MOST` wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flx_api.upstream.channel import BURST_S

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flx_api._core import Ride

MOST: Final = 32


class BatchQueue:
    """Nothing waits at first.

    Args:
        loop: its clock and its turns.
        largest: how many operations may leave together where nothing else is under way; 0: there is no use in waiting.
        leaves: lets a batch leave, or ends it otherwise; False when there is no room for it.
        go_on: lets a batch go on in parts.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        largest: Callable[[], int],
        leaves: Callable[[Ride], bool],
        go_on: Callable[[Ride], None],
    ) -> None:
        self._loop = loop
        self._largest = largest
        self._leaves = leaves
        self._go_on = go_on
        # Since when each waits, by the loop's clock; the first came first.
        self._since_s: dict[Ride, float] = {}
        self._is_looked_at = False
        self._patience: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._since_s)

    def enter(self, ride: Ride) -> None:
        """Let a batch leave, wait, or go on in parts."""
        if self._leaves(ride):
            return
        if len(self._since_s) >= MOST or not self._may_wait(ride):
            self._go_on(ride)
            return
        self._since_s[ride] = self._loop.time()
        if self._patience is None:
            self._patience = self._loop.call_later(BURST_S, self._lose_patience)

    def freed(self) -> None:
        """There may be room that was not there before: look in a moment, when all of it is known."""
        if self._since_s and not self._is_looked_at:
            self._is_looked_at = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._is_looked_at = False
        for ride in list(self._since_s):
            if self._leaves(ride):
                del self._since_s[ride]
            elif not self._may_wait(ride):
                del self._since_s[ride]
                self._go_on(ride)

    def _may_wait(self, ride: Ride) -> bool:
        batch = ride.batch
        return batch is not None and len(batch) <= self._largest() and batch.deadline_s >= 2 * BURST_S

    def _lose_patience(self) -> None:
        """What has waited long enough goes on in parts, each as there is room for it."""
        now, self._patience = self._loop.time(), None
        for ride, since_s in list(self._since_s.items()):
            if (due_s := since_s + BURST_S) > now:
                self._patience = self._loop.call_at(due_s, self._lose_patience)
                return
            del self._since_s[ride]
            self._go_on(ride)
