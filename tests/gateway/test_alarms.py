"""Alarms against a timer for each wait, over arbitrary histories."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.gateway.alarms import Alarms

AFTER_S = 10.0


class Bell:
    """Writes down that it rang, and may clear another one."""

    def __init__(self, number: int, rung: list[int]) -> None:
        self.number = number
        self._rung = rung
        self.others: list[Bell] = []
        self.alarms: Alarms | None = None
        self.over: asyncio.Event | None = None

    def ring(self) -> None:
        self._rung.append(self.number)
        if self.over is not None:
            self.over.set()
        for other in self.others:
            assert self.alarms is not None
            self.alarms.clear(other)


class Loop:
    """The one timer that alarms ask a loop for, and a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timer: tuple[float, object] | None = None

    def call_later(self, after_s: float, call: object) -> object:
        assert self.timer is None, "a second timer"
        assert after_s > 0
        self.timer = (self.now + after_s, call)
        return self.timer

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        while self.timer is not None and self.timer[0] <= self.now:
            _, call = self.timer
            self.timer = None
            call()  # type: ignore[operator]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 9)),
        st.tuples(st.just("clear"), st.integers(0, 9)),
        st.tuples(st.just("pass"), st.sampled_from([0.0, 1.0, 4.0, 9.0, 10.0, 25.0])),
    ),
    max_size=40,
)


@given(STEPS)
def test_they_go_off_as_timers_of_their_own_would(steps: list[tuple[str, float]]) -> None:
    rung: list[int] = []
    expected: list[int] = []
    loop, until = Loop(), dict[int, float]()
    alarms = Alarms(AFTER_S, clock=lambda: loop.now)
    bells = [Bell(number, rung) for number in range(10)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("flx_api.gateway.alarms.asyncio.get_running_loop", lambda: loop)
        for step, value in steps:
            if step == "pass":
                loop.pass_by(value)
                over = [number for number, end in until.items() if end <= loop.now]
                expected += over
                for number in over:
                    del until[number]
            elif step == "clear" or value in until:
                alarms.clear(bells[int(value)])
                until.pop(int(value), None)
            else:
                alarms.set(bells[int(value)])
                until[int(value)] = loop.now + AFTER_S
            assert expected == rung


def test_one_that_is_cleared_by_another_one_stays_silent() -> None:
    async def story() -> list[int]:
        rung: list[int] = []
        alarms = Alarms(0.001)
        first, second, third = (Bell(number, rung) for number in range(3))
        first.others, first.alarms = [second], alarms
        for bell in (first, second, third):
            alarms.set(bell)
        third.over = asyncio.Event()
        await third.over.wait()
        return rung

    assert [0, 2] == asyncio.run(story())
