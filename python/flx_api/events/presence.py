"""Who hears which topic, over all gateways: the part that decides, without clock, bus or hub.

Strategy: each gateway tells the others of its own subjects: changes as they come, all of them when it is asked, and a
sign of life every few seconds; each keeps what the others told. Messages of a gateway are numbered, so that whoever
misses one knows it and asks for all. A subject is present in a topic as long as one gateway has it. What becomes of
that is told to those who hear the topic's presence; a leave after a moment, in which a lost connection may be back.

Rules:
- A gateway of which nothing was heard for `EXPIRE_S` is taken for dead, if this one heard itself all the while: a bus
  that carries nothing says nothing about others.
- A gateway that was not heard whole (`is_whole` of it is False) keeps what it told before, until it tells all.
- Times are seconds of a clock that never goes back, passed in.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALIVE_S: Final = 2.0
EXPIRE_S: Final = 8.0
RETURN_S: Final = 2.0
"""How long a subject may be gone before that is told."""
MESSAGE_KEYS: Final = 500
_TOLD_SUBJECTS: Final = 500


class Key(NamedTuple):
    """A subject that hears a topic."""

    tenant: str
    topic: str
    subject: str


class Tidings(msgspec.Struct, frozen=True, array_like=True):
    """What a gateway tells the others.

    `some`: changes. `all`: everything it has, in parts of which the first and the last say so. `alive`: a sign of life.
    `bye`: it stops. With `asks` all others are to tell everything.
    """

    gateway: str
    number: int
    kind: Literal["some", "all", "alive", "bye"]
    asks: bool = False
    is_first: bool = False
    is_last: bool = False
    here: tuple[Key, ...] = ()
    gone: tuple[Key, ...] = ()


class Change(NamedTuple):
    """What is to be told to those who hear the presence of a topic; `present` is how many are there then."""

    tenant: str
    topic: str
    joined: tuple[str, ...]
    left: tuple[str, ...]
    present: int


class _Gateway:
    """What is known of another gateway."""

    __slots__ = ("collected", "heard_s", "is_whole", "keys", "number")

    def __init__(self) -> None:
        self.number = 0
        self.heard_s = 0.0
        self.is_whole = False
        self.keys: set[Key] = set()
        self.collected: set[Key] | None = None


class Presence:
    """All that one gateway knows.

    Args:
        me: the name of this gateway, another one for each process.
    """

    def __init__(self, me: str) -> None:
        self.me = me
        self._number = 0
        self._connections: Counter[Key] = Counter()
        self._others: dict[str, _Gateway] = {}
        # Gateways that have a key, this one included.
        self._holders: dict[Key, int] = {}
        # What those who hear a topic's presence believe, and since when it is not so any more.
        self._told: dict[tuple[str, str], set[str]] = {}
        self._gone_since: dict[Key, float] = {}
        self._joined: dict[Key, None] = {}
        self._heard_me_s: float | None = None
        self._steady_since_s = 0.0
        self._must_tell_all = True
        self._alive_due_s = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether all that the others have is known, as far as they were heard of."""
        return self._heard_me_s is not None and all(other.is_whole for other in self._others.values())

    def members(self, tenant: str, topic: str) -> set[str]:
        """Who is present in a topic."""
        return self._told.get((tenant, topic), set())

    # --- of this gateway ---------------------------------------------------------------------------------------------

    def note(self, changes: Iterable[tuple[str, str, str, bool]], now_s: float) -> Iterator[Tidings]:
        """Take in what has changed at this gateway; what is to be told to the others.

        Each is to be published in its order; what cannot be may be left out.
        """
        before: dict[Key, bool] = {}
        for tenant, topic, subject, is_here in changes:
            key = Key(tenant, topic, subject)
            before.setdefault(key, self._connections[key] > 0)
            self._connections[key] += 1 if is_here else -1
        changed = {key for key, was in before.items() if was != (self._connections[key] > 0)}
        here = [key for key in before if key in changed and self._connections[key] > 0]
        gone = [key for key in before if key in changed and self._connections[key] <= 0]
        for key in before:
            if self._connections[key] <= 0:
                del self._connections[key]
        self._hold(here, gone, now_s)
        asks = not self.is_whole
        if self._must_tell_all:
            self._must_tell_all = False
            yield from self._all(asks=asks, now_s=now_s)
            return
        for start in range(0, max(len(here), len(gone)), MESSAGE_KEYS):
            end = start + MESSAGE_KEYS
            yield self._tidings("some", now_s, here=tuple(here[start:end]), gone=tuple(gone[start:end]))
        if now_s >= self._alive_due_s:
            yield self._tidings("alive", now_s, asks=asks)

    def _all(self, *, asks: bool, now_s: float) -> Iterator[Tidings]:
        keys = list(self._connections)
        for start in range(0, max(len(keys), 1), MESSAGE_KEYS):
            part = tuple(keys[start : start + MESSAGE_KEYS])
            is_last = start + MESSAGE_KEYS >= len(keys)
            yield self._tidings("all", now_s, asks=asks and is_last, is_first=start == 0, is_last=is_last, here=part)

    def bye(self) -> Tidings:
        """The last words of this gateway."""
        return self._tidings("bye", 0.0)

    def _tidings(
        self,
        kind: Literal["some", "all", "alive", "bye"],
        now_s: float,
        *,
        asks: bool = False,
        is_first: bool = False,
        is_last: bool = False,
        here: tuple[Key, ...] = (),
        gone: tuple[Key, ...] = (),
    ) -> Tidings:
        self._number += 1
        self._alive_due_s = now_s + ALIVE_S
        return Tidings(self.me, self._number, kind, asks, is_first, is_last, here, gone)

    # --- of others ---------------------------------------------------------------------------------------------------

    def take(self, told: Tidings, now_s: float) -> None:
        """Take in what a gateway told, this one included: that says that the bus works."""
        if told.gateway == self.me:
            if self._heard_me_s is None or now_s - self._heard_me_s > 2 * ALIVE_S:
                self._steady_since_s = now_s
            self._heard_me_s = now_s
            return
        self._must_tell_all |= told.asks
        if told.kind == "bye":
            self._forget(told.gateway, now_s)
            return
        other = self._others.setdefault(told.gateway, _Gateway())
        follows = told.number == other.number + 1
        other.number, other.heard_s = told.number, now_s
        if told.kind == "all":
            self._collect(other, told, now_s, follows=follows)
        elif not follows:
            other.is_whole = False
        elif other.is_whole:
            here, gone = set(told.here) - other.keys, set(told.gone) & other.keys
            other.keys = (other.keys | here) - gone
            self._hold(here, gone, now_s)

    def _collect(self, other: _Gateway, told: Tidings, now_s: float, *, follows: bool) -> None:
        if told.is_first:
            other.collected = set()
        if other.collected is None or not (told.is_first or follows):
            other.collected, other.is_whole = None, False
            return
        other.collected |= set(told.here)
        if told.is_last:
            keys, other.collected = other.collected, None
            self._hold(keys - other.keys, other.keys - keys, now_s)
            other.keys, other.is_whole = keys, True

    def lose(self) -> None:
        """Something that others told may be missing, and something that this gateway told, for them."""
        self._must_tell_all = True
        for other in self._others.values():
            other.is_whole = False

    def expire(self, now_s: float) -> None:
        """Forget gateways that are dead."""
        if self._heard_me_s is None or now_s - self._heard_me_s > 2 * ALIVE_S:
            return
        dead = [
            name for name, other in self._others.items() if now_s - max(other.heard_s, self._steady_since_s) > EXPIRE_S
        ]
        for name in dead:
            self._forget(name, now_s)

    def _forget(self, gateway: str, now_s: float) -> None:
        other = self._others.pop(gateway, None)
        if other is not None:
            self._hold((), other.keys, now_s)

    # --- all together ------------------------------------------------------------------------------------------------

    def _hold(self, here: Iterable[Key], gone: Iterable[Key], now_s: float) -> None:
        """A gateway has these keys now, and those not any more."""
        for key in here:
            self._holders[key] = self._holders.get(key, 0) + 1
            if self._gone_since.pop(key, None) is None and self._holders[key] == 1:
                self._told.setdefault((key.tenant, key.topic), set()).add(key.subject)
                self._joined[key] = None
        for key in gone:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self._gone_since[key] = now_s

    def news(self, now_s: float) -> list[Change]:
        """What is to be told now."""
        joined: dict[tuple[str, str], list[str]] = {}
        left: dict[tuple[str, str], list[str]] = {}
        for key in self._joined:
            joined.setdefault((key.tenant, key.topic), []).append(key.subject)
        self._joined.clear()
        for key in [key for key, since_s in self._gone_since.items() if now_s - since_s >= RETURN_S]:
            del self._gone_since[key]
            left.setdefault((key.tenant, key.topic), []).append(key.subject)
        found: list[Change] = []
        for topic in {**joined, **left}:
            came, went = joined.get(topic, []), left.get(topic, [])
            present = self._told.setdefault(topic, set())
            present.difference_update(went)
            for start in range(0, max(len(came), len(went)), _TOLD_SUBJECTS):
                end = start + _TOLD_SUBJECTS
                then = len(present) - len(came[end:]) + len(went[end:])
                found.append(Change(*topic, tuple(came[start:end]), tuple(went[start:end]), then))
            if not present:
                del self._told[topic]
        return found
