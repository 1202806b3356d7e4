"""Retries are a fifth of the traffic and ten a second, never more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flx_api.upstream.retry_budget import PER_S, SHARE, SLICE_S, TTL_S, RetryBudget

MOST = 100


@given(st.lists(st.tuples(st.sampled_from("sr"), st.floats(-0.5, 4), st.integers(1, 40)), max_size=300))
def test_between_any_two_moments_the_bound_holds(history: list[tuple[str, float, int]]) -> None:
    budget, now_s, latest_s = RetryBudget(0.0), 0.0, 0.0
    tries: list[float] = []
    retries: list[float] = []
    for what, pause_s, times in history:
        # A clock that goes back adds nothing.
        now_s = max(0.0, now_s + pause_s)
        latest_s = max(latest_s, now_s)
        for _ in range(times):
            if what == "s":
                budget.sent(now_s)
                tries.append(latest_s)
            elif budget.take(now_s):
                retries.append(latest_s)
    for number, then_s in enumerate(retries):
        # What is earned in a second that has begun is good from its beginning on; one second more for each end.
        earned = SHARE * sum(at_s >= then_s - TTL_S - 2 * SLICE_S - 0.5 for at_s in tries)
        assert len(retries) - number <= MOST + PER_S * (latest_s - then_s) + earned + 1e-6


def test_when_everything_fails_a_fifth_is_sent_again() -> None:
    """A thousand a second, each wanting a retry, for a minute."""
    budget, retries = RetryBudget(0.0), 0
    for step in range(60_000):
        budget.sent(step / 1000)
        retries += budget.take(step / 1000)
    assert 0.2 * 60_000 <= retries <= 0.2 * 60_000 + 60 * PER_S + MOST + 1


def test_a_quiet_gateway_may_repeat_what_a_lost_connection_leaves() -> None:
    budget = RetryBudget(0.0)
    assert [budget.take(0.0) for _ in range(MOST + 1)] == [True] * MOST + [False]
    assert sum(budget.take(1.0) for _ in range(50)) == PER_S
    assert sum(budget.take(1000.0) for _ in range(500)) == MOST
    # A clock that goes back gives nothing.
    assert not budget.take(500.0)


def test_a_busy_one_may_repeat_more_for_as_long_as_it_was_busy_lately() -> None:
    budget = RetryBudget(0.0)
    for _ in range(5000):
        budget.sent(5.0)
    assert sum(budget.take(6.0) for _ in range(3000)) == MOST + SHARE * 5000
    for _ in range(5000):
        budget.sent(7.0)
    assert sum(budget.take(7.0 + TTL_S + 2 * SLICE_S) for _ in range(3000)) == MOST
    # Of what was earned long ago nothing is left either when nothing was earned since.
    budget = RetryBudget(0.0)
    budget.sent(0.0)
    assert sum(budget.take(1000.0) for _ in range(500)) == MOST
