"""Credits: how many commands may be outstanding; whoever has to wait for one gets it in turn.

Rules:
- Their number grows and shrinks with the streams there are. It may shrink below what is out: then nothing is given
  until enough has come back.
- First come, first served: nobody who comes later takes what somebody waits for.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Credits:
    """So many at once; none at first."""

    __slots__ = ("_value", "_waiters")

    def __init__(self) -> None:
        self._value = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """One without waiting, if nobody waits. The usual case, and several times cheaper than `acquire`."""
        if self._value <= 0 or self._waiters:
            return False
        self._value -= 1
        return True

    async def acquire(self) -> None:
        """One, as soon as it is this caller's turn."""
        if self.take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # It was given in the same tick; the next one gets it.
                self.release()
            else:
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Give one back."""
        self._value += 1
        self._give()

    def resize(self, by: int) -> None:
        """So many more, or fewer."""
        self._value += by
        self._give()

    def _give(self) -> None:
        while self._value > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._value -= 1
                waiter.set_result(None)
