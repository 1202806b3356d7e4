"""The newest events in memory."""

from __future__ import annotations

from flx_api.daemon.journal.tail import EventRow, Tail


def rows(first: int, count: int) -> list[EventRow]:
    return [EventRow(seq, 0, 0, "t", "d", b"{}") for seq in range(first, first + count)]


def test_what_is_forgotten_leaves_its_place() -> None:
    tail = Tail(10, 4)
    tail.extend(rows(11, 3))
    tail.forget(lambda row: row.seq == 12)
    assert [(11, b"{}"), (12, b""), (13, b"{}")] == [(row.seq, row.data) for row in tail.after(10, 9) or []]


def test_it_keeps_the_newest_and_says_when_it_has_let_go() -> None:
    tail = Tail(10, 4)
    assert tail.after(10, 5) == []
    for first in range(11, 31, 2):
        tail.extend(rows(first, 2))
    assert tail.after(10, 5) is None
    assert [row.seq for row in tail.after(26, 9) or []] == [27, 28, 29, 30]
    assert [row.seq for row in tail.after(28, 1) or []] == [29]
    assert tail.after(30, 1) == []
