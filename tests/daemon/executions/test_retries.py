"""The pauses between attempts, against what the documentation says of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.executions.retries import LONGEST_S, left_us, pause_us
from flx_api.models.pipeline import RetryPolicy

POLICIES = st.builds(RetryPolicy, st.integers(0, 10), st.integers(0, 3600), st.just(("failed", "crashed", "timed_out")))


@given(POLICIES, st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_a_pause_doubles_up_to_an_hour_and_is_drawn_from_its_upper_half(
    policy: RetryPolicy, tries: int, jitter: float
) -> None:
    pause = pause_us(policy, "failure", tries, jitter)
    if tries > policy.retries:
        assert pause is None
        return
    assert pause is not None
    whole_s = policy.backoff_s
    for _ in range(tries - 1):
        whole_s = min(2 * whole_s, LONGEST_S)
    assert whole_s * 500_000 <= pause <= whole_s * 1_000_000


@given(POLICIES, st.integers(1, 12), st.floats(0, 1, exclude_max=True), st.integers(-(10**13), 10**13))
def test_a_clock_that_was_put_back_lengthens_no_pause(
    policy: RetryPolicy, tries: int, jitter: float, passed_us: int
) -> None:
    pause = pause_us(policy, "failure", tries, jitter)
    if pause is None:
        return
    left = left_us(policy, tries, 10**15 + pause, 10**15 + passed_us)
    if passed_us >= 0:
        assert left == max(0, pause - passed_us)
    else:
        assert pause <= left <= max(pause, policy.backoff_s * 2 ** (tries - 1) * 1_000_000)
        assert left <= LONGEST_S * 1_000_000


@pytest.mark.parametrize(
    ("event", "on", "again"),
    [
        ("failure", ("failed",), True),
        ("unable", ("failed",), True),
        ("vanished", ("crashed",), True),
        ("timeout", ("timed_out",), True),
        ("failure", ("crashed", "timed_out"), False),
        ("vanished", ("failed",), False),
        ("timeout", ("failed", "crashed"), False),
        ("stopped", ("failed", "crashed", "timed_out"), False),
        ("success", ("failed", "crashed", "timed_out"), False),
        ("failure", (), False),
    ],
)
def test_only_the_ends_that_are_named(event: str, on: tuple[str, ...], again: bool) -> None:
    policy = RetryPolicy(1, 1, on)  # type: ignore[arg-type]
    assert (pause_us(policy, event, 1, 0.0) is not None) == again  # type: ignore[arg-type]
