"""Fire times against the minute-by-minute walk, in zones and around moments where clocks do what they can."""

from __future__ import annotations

from datetime import datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.daemon.schedules.naive_times import MINUTE_US, Fields, naive_times

from flx_api.daemon.schedules.times import Rule, times_between

# A zone and a moment in UTC near which its clocks change: an hour forth and back, half an hour, at midnight, a whole
# day left out, Ireland's negative summer time, and zones that never change.
CHANGES = (
    ("UTC", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("Europe/Dublin", "2026-10-25T01:00"),
    ("America/New_York", "2026-03-08T07:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("America/Sao_Paulo", "2018-11-04T03:00"),
    ("America/Sao_Paulo", "2018-02-18T02:00"),
    ("Africa/Cairo", "2026-04-23T22:00"),
    ("Africa/Cairo", "2026-10-29T21:00"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("America/St_Johns", "2026-11-01T04:30"),
    ("Asia/Kathmandu", "2026-06-01T00:00"),
)
BEFORE_MIN, ALL_MIN = 30 * 60, 60 * 60


def us(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp()) * 1_000_000


def field(first: int, last: int, likely: int | None = None) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """A field's text and its numbers; those that are named are not above `likely`."""
    whole = frozenset(range(first, last + 1))
    number = st.integers(first, last if likely is None else likely)
    return st.one_of(
        st.just(("*", whole)),
        st.integers(1, 30).map(lambda n: (f"*/{n}", frozenset(sorted(whole)[::n]))),
        st.frozensets(number, min_size=1, max_size=4).map(lambda s: (",".join(map(str, sorted(s))), s)),
        st.tuples(number, number).map(lambda p: (f"{min(p)}-{max(p)}", frozenset(range(min(p), max(p) + 1)))),
    )


def fields(
    minutes: st.SearchStrategy[tuple[str, frozenset[int]]], hours: st.SearchStrategy[tuple[str, frozenset[int]]]
) -> st.SearchStrategy[Fields]:
    # Most expressions mean every day: those that do not would seldom meet a change.
    days = st.one_of(st.just(("*", frozenset(range(1, 32)))), field(1, 31))
    weekdays = st.one_of(st.just(("*", frozenset(range(7)))), field(0, 6))
    months = st.just(("*", frozenset(range(1, 13))))
    return st.tuples(minutes, hours, days, months, weekdays).map(
        lambda parts: Fields(" ".join(text for text, _ in parts), *(numbers for _, numbers in parts))
    )


ANY = fields(field(0, 59), field(0, 23))
# Times in the hours that changes take or give.
NIGHTLY = fields(field(0, 59), field(0, 23, likely=4))

# Many begin within an hour that comes twice, or right beside one that does not come at all.
BEGIN = st.one_of(st.integers(0, ALL_MIN - 2), st.integers(BEFORE_MIN - 90, BEFORE_MIN + 90))


@settings(max_examples=400)
@given(st.sampled_from(CHANGES), st.one_of(ANY, NIGHTLY), BEGIN)
def test_fire_times_are_those_of_the_walk(change: tuple[str, str], expression: Fields, begin: int) -> None:
    """From any moment on, also from within an hour that comes twice."""
    zone, moment = change
    first_us = us(moment) - BEFORE_MIN * MINUTE_US
    expected = [at for at in naive_times(expression, zone, first_us, ALL_MIN) if at > first_us + begin * MINUTE_US]
    until_us = first_us + (ALL_MIN - 1) * MINUTE_US
    found = list(times_between(Rule(expression.text, zone), first_us + begin * MINUTE_US, until_us))
    assert expected == found
