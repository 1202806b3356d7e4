"""Credits: in turn, never too many, also while their number changes."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from flx_api.upstream.credits import Credits


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_whoever_waits_gets_one_in_turn_and_nobody_overtakes() -> None:
    async def story() -> None:
        held, order = Credits(), []
        assert not held.take()

        async def wait(name: str) -> None:
            assert await held.acquire(20)
            order.append(name)

        waiting = [asyncio.create_task(wait(name)) for name in "abc"]
        await settle()
        held.resize(1)
        # It is given already, though nobody has run yet.
        assert not held.take()
        await settle()
        assert ["a"] == order
        held.release()
        held.release()
        await asyncio.gather(*waiting)
        assert ["a", "b", "c"] == order

    asyncio.run(story())


def test_one_that_was_given_to_a_caller_who_left_goes_to_the_next() -> None:
    async def story() -> None:
        held = Credits()
        first, second = (asyncio.create_task(held.acquire(20)) for _ in range(2))
        await settle()
        held.resize(1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await second
        assert not held.take()
        held.release()
        assert held.take()

    asyncio.run(story())


def test_nothing_is_given_until_enough_has_come_back() -> None:
    async def story() -> None:
        held = Credits()
        held.resize(3)
        assert [True] * 3 == [held.take() for _ in range(3)]
        held.resize(-2)
        waiting = asyncio.create_task(held.acquire(20))
        for _ in range(2):
            held.release()
            await settle()
            assert not waiting.done()
        held.release()
        assert await waiting

    asyncio.run(story())


@given(st.lists(st.one_of(st.sampled_from(["take", "release", "wait", "leave"]), st.integers(-3, 3)), max_size=60))
def test_as_many_are_out_as_a_simple_count_says(steps: list[str | int]) -> None:
    async def story() -> None:
        held, size, out = Credits(), 0, 0
        waiting: list[asyncio.Task[bool]] = []
        for step in steps:
            if isinstance(step, int):
                size += step
                held.resize(step)
            elif step == "take":
                may = out < size and not waiting
                assert may == held.take()
                out += may
            elif step == "release" and out > 0:
                out -= 1
                held.release()
            elif step == "wait":
                waiting.append(asyncio.create_task(held.acquire(20)))
            elif step == "leave" and waiting:
                waiting.pop().cancel()
            await settle()
            while waiting and out < size:
                assert waiting.pop(0).done()
                out += 1
            assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(story())


def test_it_begins_with_none() -> None:
    async def story() -> None:
        assert not await Credits().acquire(0)

    asyncio.run(story())


def test_what_is_free_is_nobodys_who_comes_later_while_somebody_waits() -> None:
    async def story() -> None:
        credits_ = Credits()
        credits_.resize(2)
        assert (2, True, 1, True, 0) == (
            credits_.free,
            credits_.take(),
            credits_.free,
            credits_.take(),
            credits_.free,
        )
        credits_.resize(-1)
        assert 0 == credits_.free
        waiting = asyncio.create_task(credits_.acquire(20))
        await asyncio.sleep(0)
        credits_.resize(3)
        assert await waiting
        assert 1 == credits_.free

    asyncio.run(story())
