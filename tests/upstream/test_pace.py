"""How fast things end."""

from __future__ import annotations

from math import inf

from flx_api.upstream.pace import STALE_S, WINDOW_S, Pace


def test_a_rate_is_what_was_seen_in_the_last_window() -> None:
    pace = Pace(10.0)
    pace.ended = 30
    assert inf == pace.within(1.0, 10.0 + WINDOW_S / 2)
    assert 30 / WINDOW_S == pace.within(1.0, 10.0 + WINDOW_S)
    # The next one counts for itself, once it is over.
    pace.ended = 1
    assert 15 / WINDOW_S == pace.within(0.5, 10.0 + WINDOW_S * 1.5)
    assert 1 / (2 * WINDOW_S) == pace.within(1.0, 10.0 + WINDOW_S * 3)
    assert 0 == pace.within(1.0, 10.0 + WINDOW_S * 4)


def test_a_quiet_hour_says_nothing_about_now() -> None:
    pace = Pace(0.0)
    pace.ended = 5
    assert inf == pace.within(1.0, 3600.0)
    pace.ended = 10
    assert 10 / STALE_S == pace.within(1.0, 3600.0 + STALE_S)
