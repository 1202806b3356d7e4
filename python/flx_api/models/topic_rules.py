"""Rules for topics of applications, as settings say them: who may publish and hear, and what is kept.

Rules:
- The first rule whose pattern fits a topic counts; a topic that none fits has none.
- A rule takes away and never grants: the permissions `event.publish` and `event.get` are needed in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORD = "[A-Za-z0-9_@+:-]+"
Topic = Annotated[str, Meta(max_length=200, pattern=rf"^app(\.{_WORD})+$(?!\n)")]
Pattern = Annotated[str, Meta(max_length=200, pattern=rf"^app(\.{_WORD})*\.({_WORD}|\*)$(?!\n)")]


class TopicRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule: `topics` is a topic `app.…`, or its beginning and `.*`.

    `publish` and `subscribe` are the roles that may (all, when not given). `events` says whether its events are in the
    journal, ephemeral, or as their publisher likes. With `presence` it is told who hears such a topic. `latest` is the
    member of `data` that says what an event is about: a slow client gets only the newest event of each value.
    """

    topics: Pattern
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None
    events: Literal["any", "journal", "ephemeral"] = "any"
    max_bytes: Annotated[int, Meta(ge=1, le=65_536)] = 65_536
    presence: bool = False
    latest: Annotated[str, Meta(min_length=1, max_length=64)] | None = None

    def fits(self, topic: str) -> bool:
        """Whether it is about this topic."""
        return topic.startswith(self.topics[:-1]) if self.topics.endswith(".*") else topic == self.topics

    def is_closed_to(self, roles: Iterable[str]) -> bool:
        """Whether it keeps a principal with these roles from hearing its topics."""
        return self.subscribe is not None and set(self.subscribe).isdisjoint(roles)


def rule_of(rules: Iterable[TopicRule], topic: str) -> TopicRule | None:
    """The rule of a topic."""
    return next((rule for rule in rules if rule.fits(topic)), None)


def closed_to(rules: Iterable[TopicRule], roles: Iterable[str]) -> list[tuple[str, bool]]:
    """The patterns of the rules in their order, and whether they keep a principal with these roles from hearing."""
    granted = tuple(roles)
    return [(rule.topics, rule.is_closed_to(granted)) for rule in rules]
