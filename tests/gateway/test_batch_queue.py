"""Batches that wait for room: who leaves, who waits, who goes on in parts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flx_api.gateway.batch_queue import MOST, BatchQueue
from flx_api.upstream.channel import BURST_S


class Batch:
    """Stands for a plain batch."""

    def __init__(self, count: int, deadline_s: float) -> None:
        self.count, self.deadline_s = count, deadline_s

    def __len__(self) -> int:
        return self.count


class Waits:
    """Stands for a ride."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class Hall:
    """Somewhere with so much room, of which batches are let out."""

    def __init__(self, room: int, largest: int = 40) -> None:
        self.room, self.largest = room, largest
        self.left: list[int] = []
        self.gone_on: list[int] = []
        self.queue = BatchQueue(
            asyncio.get_running_loop(), lambda: self.largest, self.leaves, lambda it: self.gone_on.append(len_of(it))
        )

    def leaves(self, ride: Any) -> bool:
        if len_of(ride) > self.room:
            return False
        self.left.append(len_of(ride))
        return True

    def enter(self, *counts: int, deadline_s: float = 25.0) -> None:
        for count in counts:
            ride: Any = Waits(Batch(count, deadline_s))
            self.queue.enter(ride)

    async def free(self, room: int) -> None:
        self.room = room
        self.queue.freed()
        self.queue.freed()
        await asyncio.sleep(0)


def len_of(ride: Any) -> int:
    return len(ride.batch)


def test_who_fits_leaves_and_passes_who_does_not() -> None:
    async def story() -> None:
        hall = Hall(room=5)
        hall.enter(3, 30, 20, 2)
        assert ([3, 2], [], 2) == (hall.left, hall.gone_on, len(hall.queue))
        await hall.free(25)
        assert ([3, 2, 20], [], 1) == (hall.left, hall.gone_on, len(hall.queue))
        await hall.free(30)
        assert ([3, 2, 20, 30], [], 0) == (hall.left, hall.gone_on, len(hall.queue))

    asyncio.run(story())


def test_nobody_waits_in_vain() -> None:
    async def story() -> None:
        hall = Hall(room=0)
        hall.enter(41)
        hall.enter(2, deadline_s=BURST_S)
        assert ([41, 2], 0) == (hall.gone_on, len(hall.queue))
        hall.enter(*[7] * (MOST + 1))
        assert ([41, 2, 7], MOST) == (hall.gone_on, len(hall.queue))
        # What was small enough is not any more.
        hall.largest = 0
        await hall.free(0)
        assert ([41, 2, *[7] * (MOST + 1)], 0) == (hall.gone_on, len(hall.queue))

    asyncio.run(story())


@pytest.mark.parametrize("began", [0.0, 31.931, 511.912, 1023.981, 1e6 / 3])
def test_patience_is_each_ones_own(began: float) -> None:
    """Whatever the clock says, and however it rounds: who was to be late at a moment is late at it, not after it."""

    async def story() -> None:
        hall, loop = Hall(room=0), asyncio.get_running_loop()
        now = began
        loop.time = lambda: now  # type: ignore[method-assign]
        hall.enter(1)
        now = later = began + BURST_S / 2
        hall.enter(2)
        for now, gone_on in ((began + BURST_S, [1]), (later + BURST_S, [1, 2])):  # noqa: B007 (the loop's clock)
            hall.queue._lose_patience()
            assert (gone_on, 2 - len(gone_on)) == (hall.gone_on, len(hall.queue))

    asyncio.run(story())
