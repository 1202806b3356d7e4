"""What the daemon has of the past, asked for once where many ask for the same.

Strategy: after a gateway was away, thousands of clients come back at positions that the new process has no memory of,
most of them at the same few. The first who asks for a history has it recorded to its end, as fast as the daemon tells
it; who asks for the same while that goes on, or shortly after, gets the recording, which is read once for all.
Recordings are made a few at a time, so that a crowd waits for its turn and not for a daemon that is asked everything at
once.

Rules:
- A recording may be short of what happened since: whoever needs more than it has goes on by a stream of its own.
  Whether that is so is for the hub to say, which knows what it has in memory.
- What cannot be had is not remembered: the next one asks anew.
- Memory is bounded: recordings are short, few and soon forgotten.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from flx_api.events.follower import past

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from flx_api.events.follower import Past
    from flx_api.events.position import Position
    from flx_api.proto.flx.v1.daemon_pb2 import EventBatch

FRESH_S: Final = 2.0
AT_ONCE: Final = 8
RECORDINGS: Final = 64
RECORDING_BYTES: Final = 256 * 1024

_Key = tuple[tuple[str, ...], str, int, tuple[tuple[str, int], ...]]


class _Recording(NamedTuple):
    """A history from a position on, and until when it is given away."""

    batches: asyncio.Task[list[Past]]
    until_s: float


class Histories:
    """The histories of one process.

    Args:
        source: asks the daemon: everything of these topics since a position, and on from there until it is closed.
            Raises Unavailable.
        clock: monotonic seconds.
    """

    def __init__(
        self, source: Callable[[list[str], Position], AsyncGenerator[EventBatch, None]], clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._recordings: OrderedDict[_Key, _Recording] = OrderedDict()

    async def of(self, topics: list[str], position: Position) -> AsyncGenerator[Past, None]:
        """What the daemon has of these topics since a position, and on from there until the caller stops.

        Raises:
            Unavailable: the daemon is away, or went away.
        """
        recording = self._recording(topics, position)
        # Shielded: who leaves must not take it away from the others.
        for batch in recording.result() if recording.done() else await asyncio.shield(recording):
            yield batch
        batches = self._source(topics, position)
        try:
            async for batch in batches:
                yield past(batch)
        finally:
            await batches.aclose()

    def known(self, topics: list[str], position: Position) -> list[Past]:
        """What `of` gives first, where that is there already; else nothing."""
        known = self._recordings.get(_key(topics, position))
        if known is None or self._clock() >= known.until_s or not known.batches.done():
            return []
        # What failed is forgotten at the loop's next turn.
        return [] if known.batches.cancelled() or known.batches.exception() else known.batches.result()

    async def close(self) -> None:
        """Stop recording."""
        tasks = [recording.batches for recording in self._recordings.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _recording(self, topics: list[str], position: Position) -> asyncio.Task[list[Past]]:
        key = _key(topics, position)
        now_s = self._clock()
        known = self._recordings.get(key)
        if known is not None and (now_s < known.until_s or not known.batches.done()):
            return known.batches
        task = asyncio.create_task(self._record(topics, position), name="history")
        task.add_done_callback(lambda done: self._recorded(key, done))
        self._recordings[key] = _Recording(task, now_s + FRESH_S)
        self._recordings.move_to_end(key)
        self._tidy(now_s)
        return task

    def _recorded(self, key: _Key, done: asyncio.Task[list[Past]]) -> None:
        # Looked at here, so that a failure for which nobody waits any more is not reported as forgotten.
        if done.cancelled() or done.exception() is not None:
            known = self._recordings.get(key)
            if known is not None and known.batches is done:
                del self._recordings[key]

    def _tidy(self, now_s: float) -> None:
        """Forget what is old, and the oldest of what is too much; what is being made stays."""
        ready = [key for key, known in self._recordings.items() if known.batches.done()]
        for place, key in enumerate(ready):
            if len(ready) - place > RECORDINGS or self._recordings[key].until_s <= now_s:
                del self._recordings[key]

    async def _record(self, topics: list[str], position: Position) -> list[Past]:
        found: list[Past] = []
        size = 0
        async with self._turns:
            batches = self._source(topics, position)
            try:
                async for batch in batches:
                    found.append(past(batch))
                    size += found[-1].size
                    if batch.gap_reason or found[-1].is_last or size > RECORDING_BYTES:
                        break
            finally:
                await batches.aclose()
        return found


def _key(topics: list[str], position: Position) -> _Key:
    return (tuple(topics), position.epoch, position.seq, tuple(sorted(position.logs.items())))
