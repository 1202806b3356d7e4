"""The breaker: when it opens, how it finds back, and that it never stays shut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.upstream import breaker as module
from flx_api.upstream.breaker import TABLE, Breaker, State, Ticket


def let(breaker: Breaker, now_s: float) -> Ticket:
    ticket = breaker.admit(now_s)
    assert ticket is not None
    return ticket


def tripped(now_s: float = 0.0, jitter: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker()
    for _ in range(module.LEAST_OUTCOMES):
        breaker.failed(let(breaker, now_s), now_s, jitter)
    assert breaker.state is State.OPEN
    return breaker


def test_the_table_leads_from_every_state_to_every_other() -> None:
    assert {state for state, _ in TABLE} == set(State) == set(TABLE.values())


def test_few_failures_among_many_open_nothing() -> None:
    breaker = Breaker()
    for step in range(10_000):
        ticket = let(breaker, step / 100)
        if step % 5 < 2:
            breaker.failed(ticket, step / 100, 0.0)
        else:
            breaker.succeeded(ticket, step / 100)
    assert breaker.state is State.CLOSED


def test_failures_at_night_open_nothing() -> None:
    breaker = Breaker()
    for step in range(1000):
        breaker.failed(let(breaker, step * 1.0), step * 1.0, 0.0)
    assert breaker.state is State.CLOSED


def test_it_opens_pauses_probes_and_closes() -> None:
    breaker = tripped()
    assert breaker.admit(0.1) is None
    assert breaker.retry_after_s(0.1) == pytest.approx(module.FIRST_PAUSE_S - 0.1)
    at_s = module.FIRST_PAUSE_S
    assert breaker.retry_after_s(at_s) == 0
    probes = [let(breaker, at_s) for _ in range(module.PROBES)]
    # Only so many find out whether it is well again.
    assert (breaker.admit(at_s), breaker.state) == (None, State.HALF_OPEN)
    assert 0 < breaker.retry_after_s(at_s) <= module.PROBE_S
    for probe in probes:
        breaker.succeeded(probe, at_s)
    assert breaker.state is State.CLOSED
    assert breaker.retry_after_s(at_s) == 0


def test_a_probe_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now_s, pauses = tripped(), 0.0, []
    for _ in range(12):
        pauses.append(breaker.retry_after_s(now_s))
        now_s += pauses[-1]
        breaker.failed(let(breaker, now_s), now_s, 0.0)
    assert pauses == [min(module.FIRST_PAUSE_S * 2**step, module.LONGEST_PAUSE_S) for step in range(12)]


def test_after_a_long_calm_the_pause_is_a_first_one_again() -> None:
    breaker = tripped()
    now_s = module.FIRST_PAUSE_S
    breaker.failed(let(breaker, now_s), now_s, 0.0)
    now_s += 2 * module.FIRST_PAUSE_S
    for _ in range(module.PROBES):
        breaker.succeeded(let(breaker, now_s), now_s)
    now_s += module.FORGET_S + 1
    for _ in range(module.LEAST_OUTCOMES):
        breaker.failed(let(breaker, now_s), now_s, 0.0)
    assert breaker.retry_after_s(now_s) == module.FIRST_PAUSE_S


def test_jitter_ends_a_pause_earlier_by_at_most_a_half() -> None:
    assert tripped(jitter=0.5).retry_after_s(0.0) == module.FIRST_PAUSE_S * 0.75
    assert tripped(jitter=0.999).retry_after_s(0.0) > module.FIRST_PAUSE_S / 2


def test_what_was_sent_before_says_nothing_about_now() -> None:
    breaker = Breaker()
    old = [let(breaker, 0.0) for _ in range(2 * module.LEAST_OUTCOMES)]
    for ticket in old[: module.LEAST_OUTCOMES]:
        breaker.failed(ticket, 0.0, 0.0)
    at_s = module.FIRST_PAUSE_S
    probe = let(breaker, at_s)
    for ticket in old[module.LEAST_OUTCOMES : -2]:
        breaker.succeeded(ticket, at_s)
    assert breaker.state is State.HALF_OPEN
    breaker.failed(old[-1], at_s, 0.0)
    breaker.abandoned(old[-2])
    assert sum(breaker.admit(at_s) is not None for _ in range(9)) == module.PROBES - 1
    breaker.failed(probe, at_s, 0.0)
    assert breaker.admit(at_s) is None


def test_an_abandoned_probe_makes_room_for_another() -> None:
    breaker = tripped()
    at_s = module.FIRST_PAUSE_S
    probes = [let(breaker, at_s) for _ in range(module.PROBES)]
    breaker.abandoned(probes[0])
    let(breaker, at_s)
    assert breaker.admit(at_s) is None
    # Nor do probes of which nothing is ever heard keep it shut.
    let(breaker, at_s + module.PROBE_S)


@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "success", "failure", "abandon"]), st.integers(0, 40), st.floats(0, 3)),
        max_size=200,
    ),
    st.floats(0, 0.999),
)
def test_it_never_stays_shut_and_never_lets_more_probes_out_than_it_may(
    history: list[tuple[str, int, float]], jitter: float
) -> None:
    breaker, now_s = Breaker(), 0.0
    tickets: list[Ticket] = []
    out: list[float] = []
    for what, number, pause_s in history:
        now_s += pause_s
        if what == "admit":
            for _ in range(number):
                half_open = breaker.state is State.HALF_OPEN
                ticket = breaker.admit(now_s)
                if ticket is None:
                    assert breaker.state is not State.CLOSED
                    break
                tickets.append(ticket)
                if breaker.state is State.HALF_OPEN:
                    out = [at_s for at_s in out if half_open and now_s - at_s < module.PROBE_S]
                    out.append(now_s)
                    assert len(out) <= module.PROBES + sum(other[1] for other in history if other[0] == "abandon")
            continue
        for _ in range(min(number, len(tickets))):
            act(breaker, what, tickets.pop(0), now_s, jitter)
        assert 0 <= breaker.retry_after_s(now_s) <= module.LONGEST_PAUSE_S
    # However it got there, after the longest pause somebody is let through.
    now_s += max(module.LONGEST_PAUSE_S, module.PROBE_S)
    assert breaker.admit(now_s) is not None
    # And once the daemon is well, it closes.
    for _ in range(module.PROBES):
        now_s += module.PROBE_S
        if (ticket := breaker.admit(now_s)) is not None:
            breaker.succeeded(ticket, now_s)
    assert breaker.state is State.CLOSED


def act(breaker: Breaker, what: str, ticket: Any, now_s: float, jitter: float) -> None:
    if what == "success":
        breaker.succeeded(ticket, now_s)
    elif what == "failure":
        breaker.failed(ticket, now_s, jitter)
    else:
        breaker.abandoned(ticket)
