"""How far a client has come: from where to go on, what was heard already, and what is missing.

Strategy: a position is one for all topics of a connection, and topics catch up one after the other. The service takes
messages in their order, and each subscription to its end, so the answer to a `ping` behind the last one says that all
are level. A connection lost before that is made again from where the lost one began: some events then come twice, and
are dropped here, by topic and sequence number.

Each event names the one before it in its topic (`prev`). Where that is not the one that was heard, events are missing,
whatever the service says: a gap. After a gap that the service told, what it concerns begins a new chain; where it told
between which numbers something may be missing, events may still come in between.

Rules:
- Pure: messages in; requests, events and gaps out. No socket, clock or task.
- Every request is answered by one message, in their order; an `error` with code `gap` is no answer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flx_api.client.errors import SubscriptionRefused
from flx_api.models.message import (
    GAP,
    ClientMessage,
    Error,
    Event,
    Ping,
    Pong,
    ServerMessage,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Of so many topics the last event is remembered; one that was quiet for longer than this many others begins anew.
REMEMBERED: Final = 10_000
_NO_CHAIN: Final = -1


class Gap(NamedTuple):
    """Events were skipped.

    `topic` is a topic or pattern, or None when it may concern all; `after` and `before` are the numbers between which
    something is missing, where they are known. `reason` is the service's; when the client found it out by itself, it is
    `missing` or `epoch` (the topic began anew).
    """

    reason: str
    topic: str | None = None
    after: int | None = None
    before: int | None = None


class Progress:
    """The progress of one client, over all its connections.

    Args:
        topics: what to hear: exact names, `*`, or a beginning and `.*`.
        start: from where on: a position for all topics, or positions by topic; what has none begins now.
    """

    def __init__(self, topics: Iterable[str], start: str | Mapping[str, str] | None = None) -> None:
        self._topics = dict.fromkeys(topics)
        given = dict.fromkeys(self._topics, start) if isinstance(start, str) else dict(start or {})
        self._begins = {topic: given[topic] for topic in self._topics if topic in given}
        self._asked: deque[ClientMessage] = deque()
        self._answered: str | None = None
        self._pings = 0
        self.level = self._together = False
        # By topic, and whether it was ephemeral: epoch and number of the last event, and in which chain it was heard.
        self._heard: dict[tuple[str, bool], tuple[str, int, int]] = {}
        self._chain = 0
        # By topic: up to where the last gap says that something may be missing, and in which epoch.
        self._told: dict[str, tuple[str | None, int]] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        """What is heard."""
        return tuple(self._topics)

    @property
    def positions(self) -> dict[str, str]:
        """From where each topic goes on. What was given out here is never changed afterwards."""
        return self._begins

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def position(self) -> str | None:
        """From where all topics go on together.

        Raises:
            ValueError: there is no such position: they begin at different ones.
        """
        found = {self._begins.get(topic) for topic in self._topics}
        if len(found) > 1:
            msg = "start: an event stream begins all its topics at one position"
            raise ValueError(msg)
        return next(iter(found), None)

    def begin_together(self) -> None:
        """A new connection brings all topics together, and every position on it covers all."""
        self._asked.clear()
        self._answered, self._pings = None, 0
        self.level = self._together = True

    def begin(self) -> list[ClientMessage]:
        """What to send on a new connection."""
        self._asked.clear()
        self._answered, self._pings = None, 0
        self._together = False
        # One topic has nobody to be ahead of.
        self.level = len(self._topics) == 1
        return self._request(*(Subscribe(topic, self._begins.get(topic)) for topic in self._topics))

    def subscribe(self, topic: str, start: str | None = None) -> list[ClientMessage]:
        """Hear another topic; what to send for it on the present connection."""
        self._topics[topic] = None
        if start is not None:
            self._begins = {**self._begins, topic: start}
        self.level = False
        return self._request(Subscribe(topic, start))

    def unsubscribe(self, topic: str) -> list[ClientMessage]:
        """Hear a topic no more; what to send for it on the present connection."""
        self._forget(topic)
        # What is no longer heard is no gap when it is heard again.
        self._chain += 1
        message = Unsubscribe(topic)
        self._asked.append(message)
        return [message]

    def _request(self, *messages: ClientMessage) -> list[ClientMessage]:
        made = [*messages, Ping()]
        self._pings += 1
        self._asked.extend(made)
        return made

    # --- what comes --------------------------------------------------------------------------------------------------

    def take(self, message: ServerMessage) -> list[Event | Gap]:
        """What a message means for the reader: nothing, an event, gaps, or gaps and then an event.

        Raises:
            SubscriptionRefused: what was asked for was refused; the topic is not asked for again.
        """
        match message:
            case Event():
                return self._take_event(message)
            case Error(code=code) if code == GAP:
                return self._take_gap(message)
            case Error(of=None):
                self._take_refusal(message)
            case Subscribed():
                self._take_subscribed(message)
            case Unsubscribed(reason=None):
                self._answer()
            case Unsubscribed(event=topic, reason=reason) if topic in self._topics:
                self._forget(topic)
                raise SubscriptionRefused(topic, reason or "", "The token does not permit to hear this any more")
            case Pong():
                self._answer()
                self._pings -= 1
                if self._pings == 0 and not self.level:
                    # All have heard what there was when the last one was answered, and go on together.
                    self.level = True
                    self._reach(self._answered)
            case _:
                pass
        return []

    def _answer(self) -> ClientMessage | None:
        return self._asked.popleft() if self._asked else None

    def _take_subscribed(self, message: Subscribed) -> None:
        if self._together:
            self._reach(message.pos)
            return
        self._answer()
        # The position of the moment of the answer: whoever began without one began here.
        self._answered = message.pos
        if message.event in self._topics and message.event not in self._begins:
            self._begins = {**self._begins, message.event: message.pos}

    def _take_refusal(self, error: Error) -> None:
        asked = self._answer()
        topic = asked.event if isinstance(asked, Subscribe | Unsubscribe) else None
        if topic is not None:
            self._forget(topic)
        raise SubscriptionRefused(topic, error.code, error.message)

    def _take_gap(self, gap: Error) -> list[Event | Gap]:
        if gap.event is None or gap.event.endswith("*"):
            self._chain += 1
        else:
            if gap.before is not None:
                self._told.pop(gap.event, None)
                self._told[gap.event] = (gap.epoch, gap.before)
                _bound(self._told)
            for chain in ((gap.event, False), (gap.event, True)):
                if (heard := self._heard.get(chain)) is not None:
                    # What was heard stays known; only the chain ends here.
                    self._heard[chain] = (heard[0], heard[1], _NO_CHAIN)
        if self.level:
            self._reach(gap.pos)
        return [Gap(gap.reason or GAP, gap.event, gap.after, gap.before)]

    def _take_event(self, event: Event) -> list[Event | Gap]:
        found: list[Event | Gap] = []
        its = (event.event, event.ephemeral)
        heard = self._heard.pop(its, None)
        if heard is not None:
            epoch, seq, chain = heard
            if event.epoch == epoch and event.seq <= seq:
                self._heard[its] = heard
                return []
            if chain == self._chain and event.epoch != epoch:
                found.append(Gap("epoch", event.event))
            elif chain == self._chain and event.prev != seq and not self._is_told(event):
                found.append(Gap("missing", event.event, seq, event.seq))
        self._heard[its] = (event.epoch, event.seq, self._chain)
        _bound(self._heard)
        if self.level:
            self._reach(event.pos)
        return [*found, event]

    def _is_told(self, event: Event) -> bool:
        """Whether what is missing before an event is all in a gap that was told."""
        epoch, before = self._told.get(event.event, (None, 0))
        return event.epoch == epoch and event.prev < before

    def _forget(self, topic: str) -> None:
        self._topics.pop(topic, None)
        self._begins = {name: position for name, position in self._begins.items() if name != topic}

    def _reach(self, position: str | None) -> None:
        if position is not None:
            self._begins = dict.fromkeys(self._topics, position)


def _bound(by_topic: dict[Any, Any]) -> None:
    """Forget the topic that was quiet for the longest time, where there are too many."""
    if len(by_topic) > REMEMBERED:
        del by_topic[next(iter(by_topic))]
