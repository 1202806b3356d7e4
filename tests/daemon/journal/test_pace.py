"""When the log is moved: in calm moments, and else as seldom as a pause may be long."""

from __future__ import annotations

from flx_api.daemon.journal.pace import MOST_PAGES, Pace


def until_due(pace: Pace, changes: int = 36) -> int:
    """How many groups are committed until the log must be moved."""
    count = 0
    while not pace.is_due:
        pace.committed(changes)
        count += 1
    return count


def test_a_calm_moment_is_used_once_there_is_something_to_move() -> None:
    pace = Pace()
    pace.committed(1)
    assert (pace.is_worth_it, pace.is_due) == (False, False)
    for _ in range(20):
        pace.committed(1)
    assert (pace.is_worth_it, pace.is_due) == (True, False)
    pace.moved(0.004)
    assert (pace.is_worth_it, pace.is_due) == (False, False)


def test_a_quick_disk_is_let_gather_much_and_a_slow_one_little() -> None:
    quick, slow = Pace(), Pace()
    first = until_due(quick)
    assert first == until_due(slow)
    for _ in range(6):
        quick.moved(0.002)
        slow.moved(5.0)
        groups, few = until_due(quick), until_due(slow)
    assert groups == -(-MOST_PAGES // 48)
    assert few == first


def test_what_may_gather_is_less_when_a_pause_was_too_long_and_more_again_later() -> None:
    pace = Pace()
    for _ in range(6):
        until_due(pace)
        pace.moved(0.002)
    most = until_due(pace)
    pace.moved(0.2)
    fewer = until_due(pace)
    assert most // 5 < fewer < most // 3
    pace.moved(0.025)
    assert 2 * fewer - 2 <= until_due(pace) <= 2 * fewer + 2


def test_a_move_in_a_calm_moment_says_nothing_about_a_large_one() -> None:
    pace, other = Pace(), Pace()
    for _ in range(20):
        pace.committed(1)
    pace.moved(10.0)
    assert until_due(pace) == until_due(other)


def test_a_move_that_failed_is_not_tried_again_at_once() -> None:
    pace = Pace()
    first = until_due(pace)
    pace.failed()
    assert (pace.is_worth_it, pace.is_due) == (False, False)
    assert until_due(pace) >= first
