"""Load shedding: whether a command may go to a daemon now. What is too much is refused at once instead of waiting.

Strategy: a `Load` for each daemon (for each address, since that is what gets slow) puts three pure cores together: the
adaptive limit (`concurrency`), the gate that counts against it, and the breaker. A command enters, and leaves in one of
three ways: answered, unanswered, or abandoned; what that says goes to the limit and to the breaker. `Loads` keeps them
by address, beyond the connections that come and go.

Rules:
- Pure: `now_s` and `jitter` are arguments.
- A command that was given little time says nothing about the daemon when that is over: only who did not answer for
  `PATIENT_S` counts as one that does not answer. Else a client with tiny deadlines could open the breaker for all.
- A lost connection counts for the breaker; that it takes the commands on it along is one fault, not hundreds.
- What waits by nature and what keeps a connection alive does not pass here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flx_api.upstream.breaker import Breaker, State
from flx_api.upstream.concurrency import AdaptiveLimit, Gate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flx_api.upstream.breaker import Ticket

PATIENT_S: Final = 1.0
# What is known of an address that nothing was heard of for so long is of no use.
_FORGET_S: Final = 600.0
# As many as a name may lead to, several times over.
_MOST_PLACES: Final = 1024


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
    def state(self) -> State:
        """That of its breaker."""
        return self._breaker.state

    def enter(self, now_s: float, *, vital: bool) -> Ticket | None:
        """Let a command go to it; None when it must not."""
        if not self._gate.enter(vital=vital):
            return None
        ticket = self._breaker.admit(now_s)
        if ticket is None:
            self._gate.leave(vital=vital)
        return ticket

    def answered(self, ticket: Ticket, command: str, began_s: float, now_s: float, *, vital: bool) -> None:
        """It answered, whatever it said."""
        self._limit.sample(command, now_s - began_s, self._gate.outstanding, now_s)
        self._breaker.succeeded(ticket, now_s)
        self._gate.leave(vital=vital)
        self.last_s = now_s

    def unanswered(self, ticket: Ticket, began_s: float, now_s: float, jitter: float, *, vital: bool) -> None:
        """Its time is over, or nobody waits for it any more and the daemon has not answered."""
        if now_s - began_s >= PATIENT_S:
            self._limit.failure(self._gate.outstanding, now_s)
            self._breaker.failed(ticket, now_s, jitter)
        else:
            self._breaker.abandoned(ticket)
        self._gate.leave(vital=vital)

    def lost(self, ticket: Ticket, *, vital: bool) -> None:
        """Its connection has ended."""
        self._breaker.abandoned(ticket)
        self._gate.leave(vital=vital)

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
        self._by_place: dict[object, Load] = {}

    def of(self, place: object, now_s: float) -> Load:
        """That of an address."""
        load = self._by_place.get(place)
        if load is None:
            if len(self._by_place) >= _MOST_PLACES:
                self._forget(now_s)
            load = self._by_place[place] = Load(now_s)
        return load

    def all_of(self, places: Iterable[object]) -> list[Load]:
        """Those of these addresses that are known."""
        return [self._by_place[place] for place in dict.fromkeys(places) if place in self._by_place]

    def _forget(self, now_s: float) -> None:
        for place in [place for place, load in self._by_place.items() if now_s - load.last_s >= _FORGET_S]:
            del self._by_place[place]
