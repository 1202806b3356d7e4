"""A queue: whoever found nothing free waits in turn, for as long as each of them has time.

Rules:
- First come, first served: whoever comes later looks whether somebody waits before taking what is free.
- A turn is never lost: when someone leaves after being woken, `left_over` is told; without it the next one is woken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Queue:
    """Nobody waits at first.

    Args:
        left_over: called with a turn that nobody took.
    """

    __slots__ = ("_left_over", "waiting")

    def __init__(self, left_over: Callable[[], object] | None = None) -> None:
        self._left_over = left_over or self.wake
        # Public, and not asked by a call: this is on every command's way.
        self.waiting: deque[asyncio.Future[bool]] = deque()

    async def wait(self, within_s: float) -> bool:
        """Wait for a turn; False when it did not come within so many seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self.waiting.append(waiter)
        timer = loop.call_later(within_s, self._give_up, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self._left_over()
            else:
                self._leave(waiter)
            raise
        finally:
            timer.cancel()

    def wake(self) -> bool:
        """Give the first one its turn; whether there was one."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return True
        return False

    def _give_up(self, waiter: asyncio.Future[bool]) -> None:
        if not waiter.done():
            self._leave(waiter)
            waiter.set_result(False)

    def _leave(self, waiter: asyncio.Future[bool]) -> None:
        if waiter in self.waiting:
            self.waiting.remove(waiter)
