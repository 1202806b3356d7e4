"""Who starts next, by example; tests/properties holds it against a naive twin."""

from __future__ import annotations

from flx_api.daemon.executions.planning import Waiting, startable

A, B, NONE = frozenset("a"), frozenset("b"), frozenset[str]()


def test_first_come_first_served_within_the_slots() -> None:
    queue = [Waiting("1", A), Waiting("2", B), Waiting("3", NONE)]
    assert startable(queue, [], 2) == ["1", "2"]
    assert startable(queue, [], 0) == []
    # Adopted runs may be more than there are slots.
    assert startable(queue, [], -1) == []


def test_who_waits_for_a_state_id_does_not_keep_back_the_others() -> None:
    assert startable([Waiting("1", A), Waiting("2", B)], [A], 1) == ["2"]


def test_nobody_is_overtaken_on_a_state_id() -> None:
    queue = [Waiting("both", A | B), Waiting("b", B), Waiting("none", NONE)]
    assert startable(queue, [A], 5) == ["none"]
