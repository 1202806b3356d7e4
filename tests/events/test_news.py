"""News of several sources, without a task for each."""

from __future__ import annotations

import asyncio

from flx_api.events.news import News


def test_one_of_several_sources_wakes_who_waits() -> None:
    one, other, event = News(), News(), asyncio.Event()
    for source in (one, other):
        source.wake(event)
    other.tell()
    assert event.is_set()
    event.clear()
    other.tell()
    assert not event.is_set()
    one.tell()
    assert event.is_set()


def test_who_is_spared_is_not_woken() -> None:
    source, event = News(), asyncio.Event()
    source.wake(event)
    source.spare(event)
    source.tell()
    assert not event.is_set()


def test_all_who_wait_are_woken_and_who_gives_up_leaves_nothing() -> None:
    async def story() -> None:
        source = News()
        waiting = [asyncio.ensure_future(source.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert len(source._waiting) == 2
        source.tell()
        await asyncio.gather(*waiting[1:])

    asyncio.run(story())
