"""A client hears the log, with declared gaps: whatever is cut, forgotten or dropped on the way.

The judge is the log itself, event by event. The service is a slow and obvious model of what docs/protocol.md says: each
subscription is answered with the position of that moment, caught up from the log, then live; a position is how long the
log was.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from flx_api.client.progress import Gap, Progress
from flx_api.models.message import ClientMessage, Error, Event, Pong, ServerMessage, Subscribe, Subscribed

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPICS = ("a", "b", "c")
EPOCH = "e"


class Round(NamedTuple):
    """One connection: what is written before it and after each of its messages, how many messages arrive."""

    before: list[str]
    during: list[str]
    arrive: int
    forget: bool
    drop: set[int]


class Service:
    """The log and how it is told."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.floor = 0

    def write(self, topic: str) -> None:
        prev = next((seq for name, seq, _ in reversed(self.log) if name == topic), 0)
        self.log.append((topic, len(self.log) + 1, prev))

    def connection(self, requests: list[ClientMessage], during: Iterator[str]) -> Iterator[ServerMessage]:
        """Messages of one connection, while the log grows by one of `during` between them, as long as it lasts."""
        heard: set[str] = set()
        told = len(self.log)
        for request in requests:
            if isinstance(request, Subscribe):
                now = len(self.log)
                yield Subscribed(request.event, str(now))
                for topic in itertools.islice(during, 1):
                    self.write(topic)
                yield from self.history(request, now)
                # Those that passed by meanwhile, for all that is subscribed, in the one order of the log.
                yield from self.live(told, now, heard)
                heard.add(request.event)
                yield from self.live(max(now, told), len(self.log), heard)
                told = len(self.log)
        yield Pong(0)
        for topic in during:
            self.write(topic)
            yield from self.live(told, len(self.log), heard)
            told = len(self.log)

    def history(self, request: Subscribe, now: int) -> Iterator[ServerMessage]:
        """What a subscription brings of before it."""
        begin = now if request.from_ is None else int(request.from_)
        if begin < self.floor:
            yield Error("gap", "m", "evicted", EPOCH, str(now))
            return
        yield from self.live(begin, now, {request.event})

    def live(self, begin: int, end: int, topics: set[str]) -> Iterator[Event]:
        """A part of the log, for these topics."""
        for index in range(begin, end):
            if self.log[index][0] in topics:
                yield self.event(index)

    def event(self, index: int) -> Event:
        topic, seq, prev = self.log[index]
        return Event(topic, seq, prev, EPOCH, 0, str(index + 1), None)


ROUNDS = st.lists(
    st.builds(
        Round,
        st.lists(st.sampled_from(TOPICS), max_size=5),
        st.lists(st.sampled_from(TOPICS), max_size=8),
        st.integers(0, 25),
        st.booleans(),
        st.sets(st.integers(0, 25), max_size=3),
    ),
    max_size=6,
)


def told(rounds: list[Round], topics: int, *, lossy: bool) -> tuple[Service, dict[str, int], list[Event | Gap]]:
    """What a client hears, the log, and from which index on each topic was promised."""
    service, client = Service(), Progress(TOPICS[:topics])
    promised: dict[str, int] = {}
    heard: list[Event | Gap] = []
    last = Round(list(TOPICS), [*TOPICS, *TOPICS], 1_000, forget=False, drop=set())
    for part in [*rounds, last]:
        for topic in part.before:
            service.write(topic)
        if part.forget:
            service.floor = len(service.log)
        for number, message in enumerate(service.connection(client.begin(), iter(part.during))):
            if number >= part.arrive:
                break
            if isinstance(message, Subscribed):
                promised.setdefault(message.event, int(message.pos))
            if lossy and isinstance(message, Event) and number in part.drop:
                continue
            heard += client.take(message)
    return service, promised, heard


def unexplained(service: Service, topic: str, begin: int, heard: list[Event | Gap]) -> list[int]:
    """The sequence numbers of a topic behind `begin` that were neither heard nor lie in a declared gap."""
    wanted = [seq for name, seq, _ in service.log[begin:] if name == topic]
    missing: list[int] = []
    at, excused = 0, False
    for item in heard:
        if isinstance(item, Gap):
            excused = excused or item.topic in {None, topic}
        elif item.event == topic:
            where = wanted.index(item.seq)
            missing += [] if excused else wanted[at:where]
            at, excused = where + 1, False
    return missing + ([] if excused else wanted[at:])


@settings(max_examples=300)
@given(ROUNDS, st.integers(1, 3))
def test_each_event_is_heard_once_or_lies_in_a_gap(rounds: list[Round], topics: int) -> None:
    service, promised, heard = told(rounds, topics, lossy=False)
    assert set(TOPICS[:topics]) == set(promised)
    for topic, begin in promised.items():
        seqs = [item.seq for item in heard if isinstance(item, Event) and item.event == topic]
        assert seqs == sorted(set(seqs)), "twice, or out of order"
        assert [] == unexplained(service, topic, begin, heard)
    if not any(part.forget for part in rounds):
        assert [] == [item for item in heard if isinstance(item, Gap)], "a gap where nothing is missing"


@settings(max_examples=300)
@given(ROUNDS, st.integers(1, 3))
def test_what_is_dropped_on_the_way_is_noticed(rounds: list[Round], topics: int) -> None:
    service, _, heard = told(rounds, topics, lossy=True)
    for topic in TOPICS[:topics]:
        seqs = [item.seq for item in heard if isinstance(item, Event) and item.event == topic]
        assert seqs == sorted(set(seqs)), "twice, or out of order"
        # The first event of a topic has nothing to be compared with.
        assert [] == unexplained(service, topic, seqs[0] - 1, heard)


def test_the_judge_can_say_no() -> None:
    service = Service()
    for _ in range(3):
        service.write("a")
    first, second, third = (service.event(index) for index in range(3))
    assert [2] == unexplained(service, "a", 0, [first, third])
    assert [3] == unexplained(service, "a", 0, [first, second])
    assert [] == unexplained(service, "a", 0, [first, Gap("missing", "a"), third])
    assert [2] == unexplained(service, "a", 0, [first, Gap("missing", "b"), third])
