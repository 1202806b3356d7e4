"""A queue for room: who found none waits in turn, for as long as each of them has time.

Rules:
- First come, first served: whoever comes later looks whether somebody waits (`len`) before taking what is free.
- Being woken is a chance, not room: another look decides. Who finds none after all may wait again.
- A turn is never lost: who leaves after being woken wakes the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Queue:
    """Nobody waits at first."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[bool]] = deque()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def wait(self, within_s: float) -> bool:
        """Wait for a turn; False when it did not come within so many seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(within_s, self._give_up, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.wake()
            else:
                self._leave(waiter)
            raise
        finally:
            timer.cancel()

    def wake(self) -> None:
        """There may be room for one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return

    def _give_up(self, waiter: asyncio.Future[bool]) -> None:
        if not waiter.done():
            self._leave(waiter)
            waiter.set_result(False)

    def _leave(self, waiter: asyncio.Future[bool]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
