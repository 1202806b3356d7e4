"""The adaptive limit against simulated daemons, and the gate's shares."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.upstream.simulated_daemon import Open, Second, SimulatedDaemon, Work

from flx_api.upstream.concurrency import LEAST, MOST, AdaptiveLimit, Gate

if TYPE_CHECKING:
    from collections.abc import Callable

CALM_S, RUSH_S, AFTER_S = 10, 60, 20


class Shedding:
    """The limit and the gate as an upstream would use them."""

    def __init__(self) -> None:
        self.limit = AdaptiveLimit(0.0)
        self.gate = Gate(self.limit)

    def enter(self, *, vital: bool) -> bool:
        return self.gate.enter("vital" if vital else "ordinary")

    def leave(self, kind: str, took_s: float, now_s: float, *, vital: bool) -> None:
        self.limit.sample(kind, took_s, self.gate.outstanding, now_s)
        self.gate.leave("vital" if vital else "ordinary")


def about(mean_s: float) -> Callable[[Random], float]:
    """Times whose logarithms are normal: many short ones, few long ones."""
    return lambda random: mean_s * random.lognormvariate(-0.125, 0.5)


def anyhow(mean_s: float) -> Callable[[Random], float]:
    """Times that are exponential: the next may be many times as long."""
    return lambda random: random.expovariate(1 / mean_s)


DAEMONS = {
    "one fast": (1, [Work("read", 1, about(0.001))]),
    "one": (1, [Work("read", 1, anyhow(0.005))]),
    "one slow": (1, [Work("read", 1, about(0.02))]),
    "four": (4, [Work("read", 1, anyhow(0.02))]),
    "thirty": (30, [Work("read", 1, about(0.03))]),
    "mixed": (4, [Work("read", 9, about(0.002)), Work("change", 1, anyhow(0.03))]),
}


def rush(
    name: str, door: Shedding | Open, times: float = 3, calm: float = 0.5, *, seed: int = 1
) -> tuple[float, list[Second]]:
    """Calm, a rush of so many times the capacity, and calm again: the capacity, and all seconds."""
    servers, work = DAEMONS[name]
    daemon = SimulatedDaemon(Random(seed), servers, work)
    capacity = daemon.capacity

    def rate(now_s: float) -> float:
        return capacity * (times if CALM_S <= now_s < CALM_S + RUSH_S else calm)

    # What is vital is little: four in a hundred, and at most ten a second.
    return capacity, daemon.run(door, rate, CALM_S + RUSH_S + AFTER_S, max(25 / capacity, 0.1))


@pytest.mark.parametrize("name", DAEMONS)
def test_three_times_too_much_is_shed_and_the_rest_served_in_time(name: str) -> None:
    capacity, seconds = rush(name, Shedding())
    during = seconds[CALM_S : CALM_S + RUSH_S]
    assert sum(second.good for second in during) / RUSH_S >= 0.8 * capacity
    # Nobody waits for long: what is served is served soon.
    times = sorted(time_s for second in during[5:] for time_s in second.times_s)
    assert times[int(0.99 * len(times))] < 0.5
    # Five seconds after the rush it is as if there had been none.
    later = seconds[CALM_S + RUSH_S + 5 :]
    assert sum(second.refused for second in later) <= 0.01 * sum(second.offered for second in later)
    before = [time_s for second in seconds[2:CALM_S] for time_s in second.times_s]
    after = [time_s for second in later for time_s in second.times_s]
    assert sum(after) / len(after) < 1.5 * sum(before) / len(before)
    # What is vital was never refused.
    assert sum(second.vital_refused for second in seconds) == 0


def test_where_there_is_only_a_queue_the_limit_shrinks_to_the_least() -> None:
    """However long it lasts: what is measured in the rush itself does not make the queue look like work."""
    door = Shedding()
    daemon = SimulatedDaemon(Random(1), 1, [Work("read", 1, about(0.02))])
    daemon.run(door, lambda _now_s: 150, 120, 1.0)
    assert door.limit.limit <= LEAST + 1


def test_one_bad_moment_costs_a_part() -> None:
    limit = AdaptiveLimit(0.0)
    for step in range(2000):
        limit.sample("read", 0.001, limit.limit, step / 1000)
    before = limit.limit
    # The window that has begun is mixed; the next one is bad all through.
    for step in range(2000, 2220):
        limit.sample("read", 0.5, limit.limit, step / 1000)
    assert 0.75 * before < limit.limit < before


@pytest.mark.parametrize("name", ["one", "four", "mixed"])
def test_without_shedding_the_same_rush_leaves_nothing(name: str) -> None:
    capacity, seconds = rush(name, Open())
    during = seconds[CALM_S : CALM_S + RUSH_S]
    assert sum(second.good for second in during) / RUSH_S < 0.2 * capacity


@pytest.mark.parametrize("name", DAEMONS)
def test_what_can_be_served_is_not_shed(name: str) -> None:
    _, seconds = rush(name, Shedding(), times=0.7, calm=0.7)
    assert sum(second.refused for second in seconds) <= 0.01 * sum(second.offered for second in seconds)


@pytest.mark.parametrize("name", ["one", "four"])
def test_an_overload_from_the_first_moment_is_found_out_too(name: str) -> None:
    """There was never a calm second in which the base could have been seen."""
    door = Shedding()
    capacity, seconds = rush(name, door, times=3, calm=3)
    assert sum(second.good for second in seconds) / len(seconds) >= 0.8 * capacity
    times = sorted(time_s for second in seconds[30:] for time_s in second.times_s)
    assert times[len(times) // 2] < 0.25


def test_a_daemon_that_became_slower_for_good_keeps_its_share() -> None:
    """The base follows: half the speed is not an overload for ever."""
    slow = False

    def takes(random: Random) -> float:
        return (0.12 if slow else 0.03) * random.lognormvariate(-0.125, 0.5)

    daemon = SimulatedDaemon(Random(1), 30, [Work("read", 1, takes)])
    door = Shedding()

    def rate(now_s: float) -> float:
        nonlocal slow
        slow = now_s >= 20
        return 1.5 * (30 / 0.12 if slow else 30 / 0.03)

    seconds = daemon.run(door, rate, 120, 1.0)
    last = seconds[80:]
    assert sum(second.good for second in last) / len(last) >= 0.8 * 30 / 0.12


def test_much_of_what_takes_long_by_nature_is_no_overload() -> None:
    """After reads come changes, ten times as long, and nothing waits for anything."""
    limit = AdaptiveLimit(0.0)
    now_s = 0.0
    for step in range(4000):
        kind, took_s = ("read", 0.002) if step < 1000 else ("change", 0.03)
        now_s += 0.005
        limit.sample(kind, took_s, limit.limit, now_s)
    assert limit.limit > 100


def test_a_quiet_hour_does_not_raise_the_limit() -> None:
    limit = AdaptiveLimit(0.0)
    before = limit.limit
    for step in range(10_000):
        limit.sample("read", 0.001, 3, step / 10)
    assert limit.limit == before


def test_some_that_are_not_answered_lower_it_by_their_share() -> None:
    def after(one_in: int) -> int:
        limit = AdaptiveLimit(0.0)
        for step in range(2000):
            if step % one_in:
                limit.sample("read", 0.001, limit.limit, step / 200)
            else:
                limit.failure(limit.limit, step / 200)
        return limit.limit

    assert LEAST == after(1) < after(3) < after(5)


def test_commands_that_are_not_answered_lower_the_limit_at_once() -> None:
    limit = AdaptiveLimit(0.0)
    for step in range(400):
        limit.failure(limit.limit, step / 100)
    assert limit.limit <= LEAST


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sample", "failure"]),
            st.sampled_from(["a", "b"]),
            st.floats(0, 100),
            st.integers(1, 500),
            st.floats(0, 1),
        ),
        max_size=400,
    ),
    st.integers(1, 50),
)
def test_the_limit_stays_within_its_bounds_whatever_comes(
    history: list[tuple[str, str, float, int, float]], least: int
) -> None:
    limit = AdaptiveLimit(0.0, least=least, most=MOST)
    now_s = 0.0
    for what, kind, took_s, outstanding, pause_s in history:
        now_s += pause_s
        if what == "sample":
            limit.sample(kind, took_s, outstanding, now_s)
        else:
            limit.failure(outstanding, now_s)
        # A probe halves it for a moment.
        assert max(least // 2, 1) <= limit.limit <= MOST


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300), st.integers(1, 60))
def test_ordinary_commands_never_take_what_is_kept_for_vital_ones(steps: list[tuple[bool, bool]], least: int) -> None:
    limit = AdaptiveLimit(0.0, least=least, most=least)
    gate = Gate(limit)
    inside = {True: 0, False: 0}
    kept = min(max(-(-least // 10), 4), least)
    for enters, vital in steps:
        if not enters:
            if inside[vital]:
                gate.leave("vital" if vital else "ordinary")
                inside[vital] -= 1
            continue
        passed = gate.enter("vital" if vital else "ordinary")
        if vital:
            assert passed == (inside[True] < kept or sum(inside.values()) < least)
        else:
            assert passed == (inside[False] < least - max(kept, inside[True]))
        inside[vital] += passed
        assert gate.outstanding == sum(inside.values()) <= least


@given(st.lists(st.sampled_from(["ordinary", "vital", "grouped", "leave"]), max_size=60), st.integers(1, 40))
def test_the_room_of_a_gate_is_how_many_of_a_batch_would_pass(steps: list[Any], most: int) -> None:
    gate, inside = Gate(AdaptiveLimit(0.0, least=1, most=most)), []
    for step in steps:
        if step != "leave":
            inside += [step] if gate.enter(step) else []
        elif inside:
            gate.leave(inside.pop())
    room = gate.room()
    assert [True] * room + [False] == [gate.enter("grouped") for _ in range(room + 1)]
