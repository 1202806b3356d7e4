"""When a schedule fires, the slow and obvious way: every minute there is, one after the other.

Strategy: time is walked minute by minute in UTC; each minute is looked at on the wall clock of the zone. No cron
library and no parser take part: a test makes an expression and the sets of numbers it means together (`Fields`).

Rules:
- A `*` in minute or hour: the minutes whose wall clock fits.
- Both fixed: the same, but a wall-clock minute that comes a second time does not count; and where wall-clock minutes
  are left out, the minute after them counts if one of them would have.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
MINUTE_US = 60_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Fields(NamedTuple):
    """An expression and what it means; days of the week count from Sunday."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    def fits(self, wall: datetime) -> bool:
        """Whether the wall clock shows a time that the expression means."""
        _, _, day, _, weekday = self.text.split()
        on_day, on_weekday = wall.day in self.days, (wall.weekday() + 1) % 7 in self.weekdays
        either = not day.startswith("*") and not weekday.startswith("*")
        is_day = (on_day or on_weekday) if either else (on_day and on_weekday)
        return wall.minute in self.minutes and wall.hour in self.hours and wall.month in self.months and is_day

    @property
    def is_fixed(self) -> bool:
        """Whether it names times of day."""
        minute, hour, *_ = self.text.split()
        return not minute.startswith("*") and not hour.startswith("*")


@lru_cache(maxsize=16)
def walls(zone: str, first_us: int, minutes: int) -> list[tuple[int, datetime, int]]:
    """Each minute from a moment on: the moment, what the wall clock shows, and whether it shows that again."""
    start = EPOCH + timedelta(microseconds=first_us)
    found = []
    for step in range(minutes):
        wall = (start + step * MINUTE).astimezone(ZoneInfo(zone))
        found.append((first_us + step * MINUTE_US, wall.replace(tzinfo=None, fold=0), wall.fold))
    return found


def naive_times(fields: Fields, zone: str, first_us: int, minutes: int) -> list[int]:
    """The moments at which it fires, from the second of so many minutes on."""
    fired = []
    found = walls(zone, first_us, minutes)
    for (_, before, _), (moment, wall, again) in pairwise(found):
        if not fields.is_fixed:
            if fields.fits(wall):
                fired.append(moment)
            continue
        lost, steps = False, (wall - before) // MINUTE
        for step in range(1, steps):
            lost = lost or fields.fits(before + step * MINUTE)
        if lost or (fields.fits(wall) and not again):
            fired.append(moment)
    return fired
