"""The queue for room: in turn, for as long as each has time, and no turn is lost."""

from __future__ import annotations

import asyncio

from flx_api.upstream.queue import Queue


def test_a_turn_is_never_lost() -> None:
    async def story() -> None:
        queue = Queue()
        waits = [asyncio.create_task(queue.wait(20)) for _ in range(3)]
        short = asyncio.create_task(queue.wait(0.001))
        assert await short is False
        assert 3 == len(queue.waiting)
        # Woken and cancelled in one tick: the turn is the next one's.
        queue.wake()
        waits[0].cancel()
        assert await waits[1] is True
        waits[2].cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert 0 == len(queue.waiting)
        assert not queue.wake()

    asyncio.run(story())
