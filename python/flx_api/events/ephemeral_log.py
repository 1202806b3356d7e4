"""Ephemeral events on their way to those who follow: the newest in memory, numbered without a hole, in no journal.

Strategy: a bounded list and a number. A follower asks for what is after its number; when that is no longer here, or the
epoch is another one, it is told so and goes on from the present.

Rules:
- One log is one epoch: a new process has another one.
- Memory is bounded by number and by bytes; the oldest go first.
- One loop, no thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from flx_api.events.news import News

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

KEPT_EVENTS: Final = 8192
KEPT_BYTES: Final = 16 * 1024 * 1024
# What an event takes beside its data.
_OVERHEAD: Final = 200


class EphemeralEvent(NamedTuple):
    """One event; `data` is JSON."""

    tenant: str
    topic: str
    ts_us: int
    data: bytes


class Once(NamedTuple):
    """What is to happen once: whose key, and what was asked with it."""

    key: Hashable
    asked: str


class EphemeralLog:
    """The newest ephemeral events of one process.

    Args:
        epoch: another one for each log.
        now_us: microseconds since 1970.
    """

    def __init__(
        self, epoch: str, now_us: Callable[[], int], *, events: int = KEPT_EVENTS, size: int = KEPT_BYTES
    ) -> None:
        self.epoch = epoch
        self.seq = 0
        self._now_us = now_us
        self._most = (events, size)
        self._events: deque[EphemeralEvent] = deque()
        self._onces: dict[Hashable, str] = {}
        self._size = 0
        self.news = News()

    def append(self, tenant: str, topic: str, data: bytes, once: Once | None = None) -> bool:
        """Tell an event; nothing happens when one with the same key is still remembered.

        Returns:
            Whether it is told; False when something else was asked with its key.
        """
        if once is not None:
            asked = self._onces.get(once.key)
            if asked is not None:
                return asked == once.asked
            self._onces[once.key] = once.asked
            while len(self._onces) > self._most[0]:
                del self._onces[next(iter(self._onces))]
        self._events.append(EphemeralEvent(tenant, topic, self._now_us(), data))
        self._size += len(data) + _OVERHEAD
        self.seq += 1
        most, size = self._most
        while len(self._events) > most or (self._size > size and len(self._events) > 1):
            self._size -= len(self._events.popleft().data) + _OVERHEAD
        self.news.tell()
        return True

    def lost(self, epoch: str, seq: int) -> str:
        """Why what is after this number of an epoch cannot be had, or nothing."""
        if epoch != self.epoch or seq > self.seq:
            return "epoch"
        return "evicted" if seq < self.seq - len(self._events) else ""

    def after(self, seq: int, limit: int, size: int) -> list[EphemeralEvent]:
        """At most so many events after a number that is not lost, and no more than so many bytes but for the last."""
        found: list[EphemeralEvent] = []
        for index in range(len(self._events) - (self.seq - seq), len(self._events)):
            if size <= 0 or len(found) == limit:
                break
            found.append(self._events[index])
            size -= len(found[-1].data) + _OVERHEAD
        return found

    async def changed(self, seq: int) -> int:
        """Wait until there is an event after this number."""
        while self.seq <= seq:
            await self.news.wait()
        return self.seq
