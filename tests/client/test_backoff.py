"""Pauses between attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flx_api.client.backoff import Backoff


@given(st.floats(0.01, 5), st.floats(5, 100), st.integers(0, 200), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_within_a_bound_that_doubles(first_s: float, longest_s: float, failures: int, chance: float) -> None:
    backoff = Backoff(first_s, longest_s, lambda: chance)
    for count in range(failures):
        bound_s = longest_s
        for doublings in range(60):  # the slow way to the bound
            if doublings == count:
                bound_s = min(longest_s, first_s * 2**doublings)
        assert chance * bound_s == backoff.pause_s()
    assert failures == backoff.failures


def test_what_the_service_asks_for_is_kept_and_spread() -> None:
    backoff = Backoff(1, 8, lambda: 0.5)
    assert [5.5, 6.0, 2.0, 4.0, 4.0] == [backoff.pause_s(asked) for asked in (5, 5, 0, 0, 0)]
    backoff.reset()
    assert 0.5 == backoff.pause_s()


def test_chance_is_chance() -> None:
    backoff = Backoff()
    assert 1 < len({backoff.pause_s() for _ in range(20)})
