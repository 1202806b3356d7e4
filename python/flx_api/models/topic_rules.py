"""Rules for topics of applications, as settings say them: who may publish and hear, and what is kept.

Rules:
- The first rule whose pattern fits a topic counts; a topic that none fits has none.
- A rule takes away and never grants: the permissions `event.publish` and `event.get` are needed in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOUR_US: Final = 3_600_000_000
_WORD = "[A-Za-z0-9_@+:-]+"
Topic = Annotated[str, Meta(max_length=200, pattern=rf"^app(\.{_WORD})+$(?!\n)")]
Pattern = Annotated[str, Meta(max_length=200, pattern=rf"^app(\.{_WORD})*\.({_WORD}|\*)$(?!\n)")]


class TopicRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule: `topics` is a topic `app.…`, or its beginning and `.*`.

    `publish` and `subscribe` are the roles that may (all, when not given). `events` says whether its events are in the
    journal, ephemeral, or as their publisher likes. With `presence` it is told who hears such a topic. `latest` is the
    member of `data` that says what an event is about: a slow client gets only the newest event of each value.

    `history_bytes`, `history_events` and `history_s` bound what a gateway remembers of a topic, in place of the bounds
    of all others. What is older comes from the journal, or for ephemeral events not at all. `retention_h` is after how
    many hours the journal forgets its events too, where that is sooner than for all others.
    """

    topics: Pattern
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None
    events: Literal["any", "journal", "ephemeral"] = "any"
    max_bytes: Annotated[int, Meta(ge=1, le=65_536)] = 65_536
    presence: bool = False
    latest: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    history_bytes: Annotated[int, Meta(ge=1024, le=32 << 20)] | None = None
    history_events: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    history_s: Annotated[int, Meta(ge=1, le=24 * 3600)] | None = None
    retention_h: Annotated[int, Meta(ge=1, le=24 * 36_500)] | None = None

    def fits(self, topic: str) -> bool:
        """Whether it is about this topic."""
        return _fits(self.topics, topic)

    def is_closed_to(self, roles: Iterable[str]) -> bool:
        """Whether it keeps a principal with these roles from hearing its topics."""
        return self.subscribe is not None and set(self.subscribe).isdisjoint(roles)


def _fits(pattern: str, topic: str) -> bool:
    return topic.startswith(pattern[:-1]) if pattern.endswith(".*") else topic == pattern


def rule_of(rules: Iterable[TopicRule], topic: str) -> TopicRule | None:
    """The rule of a topic."""
    return next((rule for rule in rules if rule.fits(topic)), None)


def remembered(rule: TopicRule) -> tuple[str, str | None, int | None, int | None, int | None]:
    """A rule as the hub takes it: what it remembers."""
    history_ms = None if rule.history_s is None else rule.history_s * 1000
    return rule.topics, rule.latest, rule.history_bytes, rule.history_events, history_ms


class Expiry(NamedTuple):
    """Events of topics that a pattern fits are forgotten when they are older (microseconds since 1970; 0: never)."""

    pattern: str
    before_us: int


def expiries(rules: Iterable[TopicRule], now_us: int) -> list[Expiry]:
    """What is forgotten now, in the order in which rules count; empty when no rule says anything about it."""
    found = [
        Expiry(rule.topics, 0 if rule.retention_h is None else max(now_us - rule.retention_h * _HOUR_US, 0))
        for rule in rules
    ]
    return found if any(expiry.before_us for expiry in found) else []


def expires(found: Iterable[Expiry], topic: str, ts_us: int) -> bool:
    """Whether an event of that time is forgotten."""
    return ts_us < next((expiry.before_us for expiry in found if _fits(expiry.pattern, topic)), 0)


def closed_to(rules: Iterable[TopicRule], roles: Iterable[str]) -> list[tuple[str, bool]]:
    """The patterns of the rules in their order, and whether they keep a principal with these roles from hearing."""
    granted = tuple(roles)
    return [(rule.topics, rule.is_closed_to(granted)) for rule in rules]
