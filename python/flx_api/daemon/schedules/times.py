"""When a schedule fires: from its cron expression and a time zone to moments.

Strategy: `cronsim` walks the calendar; this module reads Meltano's spelling, speaks microseconds since the epoch and
holds that moments only go forward. What happens when clocks change is that of Debian's cron:

    minute and hour are fixed   fires once a wall-clock time: in an hour that comes twice the first time only; a time
                                that an hour takes with it is made up for at the first minute that exists again, once
                                however many times were lost
    minute or hour is a `*`     fires by the clock on the wall, minute by minute: `0 * * * *` each hour there is, also
                                in an hour that comes twice, and not in one that does not exist

Fixed times are left to cronsim. For the others it walks the wall clock of one offset from UTC at a time, and the walk
goes on with the next offset where that ends: by itself it errs where clocks change at midnight or by half an hour.

Rules:
- Pure: a rule and a moment in, moments out. No clock is looked at; time zones are data.
- Moments of one rule are strictly increasing, whatever the zone does.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flx_api.daemon.project import Schedule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
_FIELDS = 5
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SATURDAY = 6
_DAY_RANGE = re.compile(r"([0-7]|sun|mon|tue|wed|thu|fri|sat)-([0-7]|sun|mon|tue|wed|thu|fri|sat)")


class UnusableError(Exception):
    """A schedule cannot fire as it is written; the text says why, for people."""


class Rule(msgspec.Struct, frozen=True):
    """When to fire: five fields of cron in a time zone, not before a moment. Rules that are equal fire together."""

    cron: str
    zone: str
    not_before_us: int | None = None

    @property
    def mark(self) -> str:
        """A text that changes with the rule: what was decided under another one says nothing about this one."""
        return f"{self.cron}|{self.zone}|{'' if self.not_before_us is None else self.not_before_us}"


def rule_of(schedule: Schedule, zone: str) -> Rule | None:
    """The rule of a schedule of meltano.yml; None for one that only a person starts.

    Raises:
        UnusableError: its interval or its start date cannot be read, or it would never fire.
    """
    if schedule.cron is None:
        return None
    cron = _canonical(schedule.cron)
    start = None if schedule.start_date is None else _start_us(schedule.start_date, zone)
    rule = Rule(cron, zone, start)
    problem = _problem_of(rule)
    if problem is not None:
        raise UnusableError(problem)
    return rule


def fire_times(rule: Rule, after_us: int) -> Iterator[int]:
    """The moments after this one at which the rule fires, in order; endless unless the calendar ends."""
    last = after_us if rule.not_before_us is None else max(after_us, rule.not_before_us - 1)
    minute, hour, *_ = rule.cron.split()
    walk = _by_the_wall if minute.startswith("*") or hour.startswith("*") else _at_fixed_times
    try:
        for found in walk(rule.cron, local(last, rule.zone)):
            moment = (found - _EPOCH) // _MICROSECOND
            # Several times of a lost hour are made up for at one moment, and that counts once.
            if moment > last:
                last = moment
                yield moment
    except (OverflowError, ValueError):
        return  # the year 9999 is over


def next_times(rule: Rule, after_us: int, count: int) -> tuple[int, ...]:
    """The next `count` moments."""
    return tuple(islice(fire_times(rule, after_us), count))


# Asked each second for the same moment, until it has come.
@lru_cache(maxsize=1024)
def next_time(rule: Rule, after_us: int) -> int | None:
    """The next moment, None when there is none."""
    return next(fire_times(rule, after_us), None)


def times_between(rule: Rule, after_us: int, until_us: int) -> Iterator[int]:
    """The moments after one moment and up to another one."""
    return takewhile(lambda moment: moment <= until_us, fire_times(rule, after_us))


def local(moment_us: int, zone: str) -> datetime:
    """A moment by the clock of a zone."""
    return (_EPOCH + moment_us * _MICROSECOND).astimezone(_zone(zone))


def spell(moment_us: int, zone: str) -> str:
    """A moment as people read it: ISO 8601 with the zone's offset, to the second."""
    return local(moment_us, zone).isoformat(timespec="seconds")


def _at_fixed_times(cron: str, after: datetime) -> Iterator[datetime]:
    return CronSim(cron, after)


def _by_the_wall(cron: str, after: datetime) -> Iterator[datetime]:
    """The moments whose wall clock fits, also where it shows the same time again."""
    zone, start = after.tzinfo, after.astimezone(UTC)
    same, offset = start, after.utcoffset() or timedelta()
    while True:
        for wall in CronSim(cron, (start + offset).replace(tzinfo=None)):
            found = (wall - offset).replace(tzinfo=UTC)
            if found.astimezone(zone).utcoffset() != offset:
                break
            same = found
            yield found
        else:
            return
        same = _first_of_another_offset(same, found, zone)
        start, offset = same - _SECOND, same.astimezone(zone).utcoffset() or timedelta()


def _first_of_another_offset(same: datetime, other: datetime, zone: tzinfo | None) -> datetime:
    """The second at which a zone leaves the offset that it has at `same`, not later than `other`."""
    offset = same.astimezone(zone).utcoffset()
    same = same.replace(microsecond=0)
    while other - same > _SECOND:
        middle = same + (other - same) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            same = middle
        else:
            other = middle
    return other


@lru_cache(maxsize=8)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


# The same few rules are asked for over and over, and one that never fires takes a walk over fifty years to find out.
@lru_cache(maxsize=1024)
def _problem_of(rule: Rule) -> str | None:
    """Why a rule cannot be used: cronsim does not know it, or it never fires."""
    try:
        CronSim(rule.cron, _EPOCH)
    except CronSimError as error:
        return f"the interval is no cron expression: {str(error).lower()}"
    return "the interval never comes true" if next_time(rule, 0) is None else None


def _canonical(text: str) -> str:
    """The expression as cronsim spells it: Meltano also takes `?` for any day, and days of the week across Sunday."""
    fields = text.lower().split()
    if len(fields) != _FIELDS:
        raise UnusableError("the interval is no cron expression: it must have five fields, or be one like @daily")
    minute, hour, day, month, weekday = fields
    day = "*" if day == "?" else day
    weekday = "*" if weekday == "?" else ",".join(_without_wrap(part) for part in weekday.split(","))
    return f"{minute} {hour} {day} {month} {weekday}"


def _without_wrap(part: str) -> str:
    found = _DAY_RANGE.fullmatch(part)
    if found is None:
        return part
    first, last = (_DAYS.index(word) if word in _DAYS else int(word) for word in found.groups())
    if first <= last:
        return part
    return f"{first}-{_SATURDAY},0-{last}" if first <= _SATURDAY else f"0-{last}"


def _start_us(text: str, zone: str) -> int:
    """The moment of a start date; one that names no offset is by the zone's clock."""
    try:
        found = datetime.fromisoformat(text.strip())
        moment = found if found.tzinfo is not None else found.replace(tzinfo=_zone(zone))
        return (moment - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise UnusableError("start_date is no date such as 2026-01-31 or 2026-01-31T06:00:00Z") from None
