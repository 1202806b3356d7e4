"""Single flight: few commands for many who ask, and nobody gets what was read before they asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api._core import Principal
from flx_api.errors import DeadlineExceeded, FlxError, Unavailable
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame
from flx_api.upstream import flights
from flx_api.upstream.flights import Flights, Question

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api.upstream.pending import Frame

ANNA = Principal(subject="anna", roles=("viewer",))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Sky:
    """The flights over a daemon that answers when it is told to, with the moment at which it was asked."""

    def __init__(self, width: int = 1) -> None:
        self.metrics = Metrics([], [])
        self.flights = Flights(self._call, self.metrics, width)
        self.moment = 0
        self.in_the_air: list[tuple[bytes, asyncio.Future[ReplyFrame]]] = []
        self.flown = 0

    async def _call(self, frame: Frame, deadline_s: float) -> ReplyFrame:
        reply: asyncio.Future[ReplyFrame] = asyncio.get_running_loop().create_future()
        entry = frame.args, reply
        self.in_the_air.append(entry)
        self.flown += 1
        moment = self.moment
        try:
            async with asyncio.timeout(deadline_s):
                told = await reply
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            self.in_the_air.remove(entry)
        return told if told.code else ReplyFrame(result=b"%s %d" % (frame.args, moment))

    def ask(
        self, args: bytes = b"{}", principal: Principal = ANNA, deadline_s: float = 20, command: str = "pipeline.list"
    ) -> asyncio.Task[ReplyFrame]:
        frame = CommandFrame(command=command, args=args)
        self.moment += 1
        return asyncio.create_task(self.flights.read(Question(principal, command, args, None), frame, deadline_s))

    def land(self, index: int = 0, error: FlxError | None = None, code: str = "") -> None:
        reply = self.in_the_air[index][1]
        if error is not None:
            reply.set_exception(error)
        elif not reply.done():
            reply.set_result(ReplyFrame(code=code))

    def is_clear(self) -> bool:
        return (self.flights._skies, self.flights._waiting) == ({}, 0)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def told() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(told())


def test_those_who_ask_while_one_is_in_the_air_share_the_next() -> None:
    async def story() -> None:
        sky = Sky()
        first = sky.ask()
        await settle()
        others = [sky.ask() for _ in range(5)]
        await settle()
        assert (1, 1) == (sky.flown, len(sky.in_the_air))
        sky.land()
        assert b"{} 1" == (await first).result
        await settle()
        sky.land()
        assert [b"{} 6"] * 5 == [reply.result for reply in await asyncio.gather(*others)]
        assert (2, 4, True) == (sky.flown, sky.metrics.reads_shared, sky.is_clear())

    run(story)


@pytest.mark.parametrize(
    "other",
    [
        {"principal": Principal(subject="anna", roles=("viewer", "admin"))},
        {"principal": Principal(subject="ben", roles=("viewer",))},
        {"principal": Principal(subject="anna", tenant="t", roles=("viewer",))},
        {"args": b'{"limit":2}'},
        {"command": "plugin.list"},
    ],
)
def test_others_never_share(other: dict[str, object]) -> None:
    async def story() -> None:
        sky = Sky()
        both = [sky.ask(), sky.ask(**other)]  # type: ignore[arg-type]
        await settle()
        assert 2 == len(sky.in_the_air)
        sky.land(1)
        sky.land(0)
        await asyncio.gather(*both)
        assert (0, True) == (sky.metrics.reads_shared, sky.is_clear())

    run(story)


def test_a_few_travel_as_if_there_were_no_others() -> None:
    async def story() -> None:
        sky = Sky(width=2)
        asking = [sky.ask() for _ in range(4)]
        await settle()
        assert 2 == len(sky.in_the_air)
        sky.land(1)
        await settle()
        # The place that became free is taken for both who wait.
        assert (3, 2) == (sky.flown, len(sky.in_the_air))
        sky.land(1)
        sky.land(0)
        await asyncio.gather(*asking)
        assert (3, 1, True) == (sky.flown, sky.metrics.reads_shared, sky.is_clear())

    run(story)


def test_a_flight_fails_for_those_it_was_for_and_no_others() -> None:
    async def story() -> None:
        sky = Sky()
        first = sky.ask()
        await settle()
        second, third = sky.ask(), sky.ask()
        await settle()
        sky.land(error=Unavailable(retry_after_s=3))
        with pytest.raises(Unavailable):
            await first
        await settle()
        fourth = sky.ask()
        await settle()
        sky.land(error=Unavailable("gone", retry_after_s=7))
        for failed in (second, third):
            with pytest.raises(Unavailable, match="gone") as error:
                await failed
            assert 7 == error.value.retry_after_s
        await settle()
        sky.land()
        assert b"{} 4" == (await fourth).result
        assert sky.is_clear()

    run(story)


@pytest.mark.parametrize("when", ["in the air", "woken", "waiting"])
def test_who_leaves_takes_nobody_along(when: str) -> None:
    async def story() -> None:
        sky = Sky()
        first = sky.ask()
        await settle()
        leader, follower, last = sky.ask(), sky.ask(), sky.ask()
        await settle()
        leaving = follower if when == "waiting" else leader
        if when == "waiting":
            leaving.cancel()
        sky.land()
        if when == "woken":
            # In the tick in which it is told to lead, before it could begin.
            asyncio.get_running_loop().call_soon(leaving.cancel)
        await first
        await settle()
        leaving.cancel()
        await settle()
        sky.land()
        stay = leader if when == "waiting" else follower
        assert [b"{} 4"] * 2 == [(await stay).result, (await last).result]
        assert leaving.cancelled()
        assert sky.is_clear()

    run(story)


def test_that_the_daemon_finds_a_leaders_time_over_says_nothing_to_the_others() -> None:
    async def story() -> None:
        sky = Sky()
        first = sky.ask()
        await settle()
        leader, *others = [sky.ask() for _ in range(3)]
        await settle()
        sky.land()
        await settle()
        sky.land(code="deadline_exceeded")
        assert "deadline_exceeded" == (await leader).code
        await settle()
        sky.land()
        assert [b"{} 4"] * 2 == [reply.result for reply in await asyncio.gather(*others)]
        assert b"{} 1" == (await first).result
        assert (3, 1, True) == (sky.flown, sky.metrics.reads_shared, sky.is_clear())

    run(story)


def test_each_waits_until_its_own_deadline() -> None:
    async def story() -> None:
        sky = Sky()
        first = sky.ask()
        await settle()
        short, leader, patient = sky.ask(deadline_s=0.001), sky.ask(deadline_s=0.05), sky.ask()
        with pytest.raises(DeadlineExceeded):
            await short
        sky.land()
        await first
        # It leads, and its time is over in the air; the other one's is not.
        with pytest.raises(DeadlineExceeded):
            await leader
        await settle()
        sky.land()
        assert b"{} 4" == (await patient).result
        assert sky.is_clear()

    run(story)


def test_what_is_large_or_too_much_travels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "MOST_WAITING", 1)

    async def story() -> None:
        sky = Sky()
        asking = [sky.ask(b"x" * 5000), sky.ask(b"x" * 5000), sky.ask(), sky.ask(), sky.ask()]
        await settle()
        assert 4 == len(sky.in_the_air)
        while not all(task.done() for task in asking):
            sky.land()
            await settle()
        assert (0, True) == (sky.metrics.reads_shared, sky.is_clear())

    run(story)


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "ask", "land", "fail", "leave", "pass"]), st.integers(0, 9)), max_size=50
)


Asked = list[tuple[bytes, int, asyncio.Task[ReplyFrame]]]


async def take(sky: Sky, asked: Asked, step: str, number: int) -> None:
    if step == "ask":
        args = b"%d" % (number % 2)
        task = sky.ask(args)
        asked.append((args, sky.moment, task))
    elif step == "pass":
        await settle()
    elif step == "leave" and asked:
        asked[number % len(asked)][2].cancel()
    elif step in {"land", "fail"} and sky.in_the_air:
        index = number % len(sky.in_the_air)
        if not sky.in_the_air[index][1].done():
            sky.land(index, Unavailable() if step == "fail" else None)


@given(STEPS, st.integers(1, 3))
def test_whatever_happens_everybody_who_stays_is_answered_with_what_came_after(
    steps: list[tuple[str, int]], width: int
) -> None:
    async def story() -> None:
        sky, asked = Sky(width), Asked()
        for step in steps:
            await take(sky, asked, *step)
            for args in (b"0", b"1"):
                assert sum(args == flown for flown, _ in sky.in_the_air) <= width
        while not all(task.done() for *_, task in asked):
            await settle()
            for index in range(len(sky.in_the_air)):
                sky.land(index)
            await settle()
        for args, moment, task in asked:
            if not task.cancelled() and task.exception() is None:
                read, at = task.result().result.split()
                assert args == read
                assert moment <= int(at)
        assert sky.is_clear()

    run(story)


def test_who_flies_without_a_coroutine_is_counted_and_makes_room_for_who_waits() -> None:
    async def story() -> None:
        sky = Sky(width=2)
        question = Question(ANNA, "pipeline.list", b"{}", None)
        assert [True, True, False] == [sky.flights.take_off(question) for _ in range(3)]
        assert not sky.flights.take_off(question._replace(args=b"x" * (flights.LARGEST + 1)))
        waiting = sky.ask()
        await settle()
        assert 0 == sky.flown
        sky.flights.landed(question)
        await settle()
        # It takes the place of the one that has landed, and counts for who comes then.
        assert (1, False) == (sky.flown, sky.flights.take_off(question))
        sky.land()
        assert b"{} 1" == (await waiting).result
        sky.flights.landed(question)
        assert sky.is_clear()

    run(story)
