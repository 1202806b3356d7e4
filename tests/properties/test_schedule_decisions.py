"""Decisions against a walk over every minute: nothing fires twice, nothing is lost without a word.

Strategy: `World` plays the shell with dictionaries: what it remembers outlives a restart, a key that was used is used
for good. Beside it a diary is kept by the naive walk: at each look, the minutes since the last look (or since the
schedule was first seen) that fit the expression. The two must tell the same story.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.daemon.schedules.naive_times import MINUTE_US, Fields, naive_times

from flx_api.daemon.schedules.decisions import COUNTED, Missed, Past, decide, firing_key, is_news
from flx_api.daemon.schedules.times import Rule


def us(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[misc, arg-type]


# Zones, and an evening before their clocks change.
EVENINGS = (
    ("UTC", us(2026, 10, 24, 20)),
    ("Europe/Berlin", us(2026, 10, 24, 20)),
    ("Europe/Berlin", us(2026, 3, 28, 20)),
    ("America/New_York", us(2026, 11, 1, 1)),
    ("Australia/Lord_Howe", us(2026, 10, 3, 10)),
)
GRACE_US = 60 * MINUTE_US
EVERY = frozenset
EXPRESSIONS = (
    Fields("* * * * *", EVERY(range(60)), EVERY(range(24)), EVERY(range(1, 32)), EVERY(range(1, 13)), EVERY(range(7))),
    Fields(
        "*/7 * * * *",
        EVERY(range(0, 60, 7)),
        EVERY(range(24)),
        EVERY(range(1, 32)),
        EVERY(range(1, 13)),
        EVERY(range(7)),
    ),
    Fields("0 * * * *", EVERY({0}), EVERY(range(24)), EVERY(range(1, 32)), EVERY(range(1, 13)), EVERY(range(7))),
    Fields("30 2 * * *", EVERY({30}), EVERY({2}), EVERY(range(1, 32)), EVERY(range(1, 13)), EVERY(range(7))),
    Fields(
        "15,45 1,2,3 * * *",
        EVERY({15, 45}),
        EVERY({1, 2, 3}),
        EVERY(range(1, 32)),
        EVERY(range(1, 13)),
        EVERY(range(7)),
    ),
)


class Told(NamedTuple):
    """What one look led to."""

    fired: int | None
    missed: Missed | None


class World:
    """The shell in small."""

    def __init__(self) -> None:
        self.past: Past | None = None
        self.keys: set[str] = set()

    def look(self, rule: Rule, now_us: int, grace_us: int = GRACE_US) -> Told:
        decision = decide(rule, self.past, now_us, grace_us)
        if not is_news(decision, self.past):
            return Told(None, None)
        self.past = decision.past
        if decision.due_us is None:
            return Told(None, decision.missed)
        key = firing_key("s", decision.due_us)
        again = key in self.keys
        self.keys.add(key)
        return Told(None if again else decision.due_us, decision.missed)


# Minutes from one look to the next: as the service looks, after a stop of hours, and back.
STEP = st.one_of(st.integers(1, 3), st.integers(1, 300), st.integers(-200, -1))
CHANGE = st.one_of(st.none(), st.none(), st.none(), st.sampled_from(EXPRESSIONS))


@settings(max_examples=150)
@given(
    st.sampled_from(EVENINGS),
    st.sampled_from(EXPRESSIONS),
    st.integers(0, 59_999_999),
    st.lists(st.tuples(STEP, CHANGE), min_size=1, max_size=30),
)
def test_each_firing_is_told_once(
    evening: tuple[str, int], first: Fields, odd_us: int, steps: list[tuple[int, Fields | None]]
) -> None:
    """Restarts, clock steps and edits: the newest firing runs, the older ones are missed, the rest never was."""
    world, expression = World(), first
    zone, now_us = evening
    since_us = now_us
    fired: list[tuple[str, int]] = []
    assert Told(None, None) == world.look(Rule(expression.text, zone), now_us)
    for minutes, change in steps:
        now_us += minutes * MINUTE_US + odd_us
        before = expression
        expression = change or expression
        told = world.look(Rule(expression.text, zone), now_us)
        if now_us < since_us or expression is not before:
            assert Told(None, None) == told
        else:
            whole = since_us // MINUTE_US * MINUTE_US
            diary = [
                at for at in naive_times(expression, zone, whole, (now_us - whole) // MINUTE_US + 1) if at > since_us
            ]
            newest = diary[-1] if diary else None
            late = newest is not None and now_us - newest > GRACE_US
            missed = diary if late else diary[:-1]
            before_us = {at for _, at in fired}
            expected = None if late or newest in before_us else newest
            assert expected == told.fired
            assert (
                (missed[:1], len(missed)) == ([told.missed.first_us], told.missed.firings)
                if told.missed
                else not missed
            )
            assert not told.missed or (missed[-1], False) == (told.missed.last_us, told.missed.more)
        if told.fired is not None:
            fired.append((expression.text, told.fired))
        since_us = now_us
    assert len(fired) == len({at for _, at in fired})


@settings(max_examples=60)
@given(st.sampled_from(EVENINGS), st.sampled_from(EXPRESSIONS[:3]), st.integers(COUNTED, 4 * COUNTED))
def test_a_long_absence_is_counted_up_to_a_bound(evening: tuple[str, int], expression: Fields, minutes: int) -> None:
    """The newest and the oldest are told exactly, however many were between."""
    zone, begin_us = evening
    rule = Rule(expression.text, zone)
    now_us = begin_us + minutes * MINUTE_US
    decision = decide(rule, Past(rule.mark, begin_us), now_us, 0)
    diary = [at for at in naive_times(expression, zone, begin_us, minutes + 1) if at > begin_us]
    due = diary[-1] if diary[-1] == now_us else None
    missed = diary[:-1] if due is not None else diary
    count = min(COUNTED, len(missed))
    assert due == decision.due_us
    assert Missed(count, missed[0], missed[-1], len(missed) > COUNTED) == decision.missed
