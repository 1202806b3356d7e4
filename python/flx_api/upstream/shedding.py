"""Load shedding: whether a command may go to a daemon now. What is too much is refused at once instead of waiting.

Strategy: a `Load` for each daemon (for each address, since that is what gets slow) puts three pure cores together: the
adaptive limit (`concurrency`), the gate that counts against it, and the breaker. A command that enters gets a
`Passage`, which ends in one of three ways: answered, unanswered, or lost with its connection; what that says goes to
the limit and to the breaker. `Loads` keeps them by address, beyond the connections that come and go.

Rules:
- Pure: `now_s` and `jitter` are arguments.
- A command that was given little time says nothing about the daemon when that is over: only who did not answer for
  `PATIENT_S` counts as one that does not answer. Else a client with tiny deadlines could open the breaker for all.
- A lost connection counts for the breaker; that it takes the commands on it along is one fault, not hundreds.
- What waits by nature and what keeps a connection alive does not pass here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from flx_api.upstream.breaker import Breaker, State, Ticket
from flx_api.upstream.concurrency import AdaptiveLimit, Gate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flx_api.upstream.concurrency import Sort

Place = tuple[int, str]
"""An address: the daemon it belongs to, by its number in the configuration, and where it is."""

Together = Literal["ordinary", "grouped"]
"""What those are that enter and leave together."""

PATIENT_S: Final = 1.0
# What is known of an address that nothing was heard of for so long is of no use.
_FORGET_S: Final = 600.0
# As many as a name may lead to, several times over.
_MOST_PLACES: Final = 1024


class Passage:
    """That a command went to a daemon; ended once."""

    __slots__ = ("_load", "began_s", "command", "is_over", "sort", "ticket")

    def __init__(self, load: Load, ticket: Ticket, command: str, began_s: float, sort: Sort) -> None:
        self._load = load
        self.ticket = ticket
        self.command = command
        self.began_s = began_s
        self.sort = sort
        self.is_over = False

    def answered(self, now_s: float) -> None:
        """There was an answer."""
        if not self.is_over:
            self.is_over = True
            self._load.answered(self, now_s)

    def unanswered(self, now_s: float, jitter: float) -> None:
        """There was none; does nothing when it has ended before."""
        if not self.is_over:
            self.is_over = True
            self._load.unanswered(self, now_s, jitter)

    def lost(self) -> None:
        """Its connection has ended."""
        if not self.is_over:
            self.is_over = True
            self._load.lost(self)


class Load:
    """What one daemon bears."""

    __slots__ = ("_breaker", "_gate", "_limit", "last_s")

    def __init__(self, now_s: float) -> None:
        self._limit = AdaptiveLimit(now_s)
        self._gate = Gate(self._limit)
        self._breaker = Breaker()
        self.last_s = now_s

    @property
    def limit(self) -> int:
        """How many commands it may have at once."""
        return self._limit.limit

    @property
    def grouped(self) -> int:
        """How many of these may belong to batches."""
        return self._limit.grouped

    @property
    def room(self) -> int:
        """How many commands of batches it lets in now."""
        return self._gate.room() if self._breaker.state is State.CLOSED else 0

    @property
    def state(self) -> State:
        """That of its breaker."""
        return self._breaker.state

    def enter(self, command: str, now_s: float, sort: Sort) -> Passage | None:
        """Let a command go to it; None when it must not."""
        if not self._gate.enter(sort):
            return None
        ticket = self._breaker.admit(now_s)
        if ticket is None:
            self._gate.leave(sort)
            return None
        return Passage(self, ticket, command, now_s, sort)

    def enter_many(self, count: int, sort: Together = "ordinary") -> tuple[int, int]:
        """Let commands go to it together, as many of these as it takes: how many, and the life of all."""
        ticket = self._breaker.ticket
        return (0, 0) if ticket is None else (self._gate.enter_many(count, sort), ticket.life)

    @property
    def life(self) -> int:
        """The life whose commands say something about it now."""
        return self._breaker.life

    @property
    def since_s(self) -> float:
        """How long a command took that was sent before this moment says nothing now."""
        return self._limit.since_s

    def answered_many(
        self, took: Iterable[tuple[str, int, float]], ordinary: int, grouped: int, of_life: int, now_s: float
    ) -> None:
        """It answered so many that had entered together.

        Args:
            took: those sent after `since_s`: their name, how many, and how long they took together.
            ordinary: how many were answered of one sort.
            grouped: and of the other.
            of_life: of all, those of the present life.
            now_s: the moment.
        """
        self._limit.samples(took, self._gate.outstanding, ordinary + grouped, now_s)
        if of_life:
            self._breaker.succeeded_many(of_life, now_s)
        self.lost_many(ordinary, grouped)
        self.last_s = now_s

    def unanswered_one(self, began_s: float, life: int, now_s: float, jitter: float, sort: Together) -> None:
        """The time of one of these is over, and there was no answer."""
        Passage(self, Ticket(life), "", began_s, sort).unanswered(now_s, jitter)

    def lost_many(self, ordinary: int, grouped: int) -> None:
        """So many of these were lost with their connection, or cut short."""
        if ordinary:
            self._gate.leave("ordinary", ordinary)
        if grouped:
            self._gate.leave("grouped", grouped)

    def answered(self, passage: Passage, now_s: float) -> None:
        """It answered, whatever it said."""
        self._limit.sample(passage.command, now_s - passage.began_s, self._gate.outstanding, now_s)
        self._breaker.succeeded(passage.ticket, now_s)
        self._gate.leave(passage.sort)
        self.last_s = now_s

    def unanswered(self, passage: Passage, now_s: float, jitter: float) -> None:
        """The time of a command is over, and there was no answer."""
        if now_s - passage.began_s >= PATIENT_S:
            self._limit.failure(self._gate.outstanding, now_s)
            self._breaker.failed(passage.ticket, now_s, jitter)
        else:
            self._breaker.abandoned(passage.ticket)
        self._gate.leave(passage.sort)

    def lost(self, passage: Passage) -> None:
        """The connection of a command has ended."""
        self._breaker.abandoned(passage.ticket)
        self._gate.leave(passage.sort)

    def broke(self, now_s: float, jitter: float) -> None:
        """A connection on which commands were under way has ended before its time."""
        ticket = self._breaker.admit(now_s)
        if ticket is not None:
            self._breaker.failed(ticket, now_s, jitter)

    def retry_after_s(self, now_s: float) -> float:
        """Seconds after which it makes sense to come again; 0 when only its limit stands against it."""
        return self._breaker.retry_after_s(now_s)


class Loads:
    """What each daemon bears, by its address."""

    def __init__(self) -> None:
        self._by_place: dict[Place, Load] = {}

    def of(self, place: Place, now_s: float) -> Load:
        """That of an address."""
        load = self._by_place.get(place)
        if load is None:
            if len(self._by_place) >= _MOST_PLACES:
                self._forget(now_s)
            load = self._by_place[place] = Load(now_s)
        return load

    def of_daemon(self, daemon: int) -> list[Load]:
        """Those of the addresses of one daemon."""
        return [load for place, load in self._by_place.items() if place[0] == daemon]

    def _forget(self, now_s: float) -> None:
        for place in [place for place, load in self._by_place.items() if now_s - load.last_s >= _FORGET_S]:
            del self._by_place[place]
