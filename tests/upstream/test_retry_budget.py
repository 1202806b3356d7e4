"""Retries are a fifth of the traffic and ten a second, never more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flx_api.upstream.retry_budget import PER_S, SHARE, RetryBudget

MOST = 100


@given(st.lists(st.tuples(st.sampled_from("sr"), st.floats(-0.5, 3)), max_size=400))
def test_between_any_two_moments_the_bound_holds(history: list[tuple[str, float]]) -> None:
    budget, now_s, latest_s = RetryBudget(0.0), 0.0, 0.0
    # What was so far at each step: seconds, first tries, retries.
    past = [(0.0, 0, 0)]
    for what, pause_s in history:
        # A clock that goes back adds nothing.
        now_s += pause_s
        latest_s = max(latest_s, now_s)
        _, sent, retries = past[-1]
        if what == "s":
            budget.sent(now_s)
            past.append((latest_s, sent + 1, retries))
        else:
            past.append((latest_s, sent, retries + budget.take(now_s)))
    at_s, sent, retries = past[-1]
    for then_s, sent_then, retries_then in past:
        assert retries - retries_then <= MOST + PER_S * (at_s - then_s) + SHARE * (sent - sent_then) + 1e-6


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
    for _ in range(1000):
        budget.sent(1000.0)
    # A clock that goes back takes nothing away.
    assert sum(budget.take(500.0) for _ in range(500)) == MOST
