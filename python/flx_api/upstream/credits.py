"""Credits: how many commands may be outstanding; whoever has to wait for one gets it in turn.

Rules:
- Their number grows and shrinks with the streams there are. It may shrink below what is out: then nothing is given
  until enough has come back.
- Whoever is woken in the queue has been given one: nobody who comes later takes what somebody waits for.
"""

from __future__ import annotations

from flx_api.upstream.queue import Queue


class Credits:
    """So many at once; none at first."""

    __slots__ = ("_queue", "_value", "_waiting")

    def __init__(self) -> None:
        self._value = 0
        self._queue = Queue(self.release)
        self._waiting = self._queue.waiting

    def take(self) -> bool:
        """One without waiting, if nobody waits. The usual case, and several times cheaper than `acquire`."""
        if self._value <= 0 or self._waiting:
            return False
        self._value -= 1
        return True

    @property
    def free(self) -> int:
        """How many could be taken now without waiting."""
        return 0 if self._waiting else max(self._value, 0)

    async def acquire(self, within_s: float) -> bool:
        """One, as soon as it is this caller's turn; False when that does not come within so many seconds."""
        return self.take() or await self._queue.wait(within_s)

    def release(self, count: int = 1) -> None:
        """Give so many back."""
        self._value += count
        if self._waiting:
            self._give()

    def resize(self, by: int) -> None:
        """So many more, or fewer."""
        self._value += by
        self._give()

    def _give(self) -> None:
        while self._value > 0 and self._queue.wake():
            self._value -= 1
