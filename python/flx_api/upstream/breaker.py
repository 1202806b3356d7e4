"""The circuit breaker of one daemon: whoever does not answer is left alone for a while, then asked again carefully.

Strategy: three states and a table of what leads from one to the other. While it is closed everything passes, and the
outcomes of a rolling window of time are counted, by tenths of it, since this is on every command's way. Too many
failures open it: nothing passes, for a pause that grows from time to time. Then it is half open: a few probes pass, and
their outcomes close it or open it again.

Rules:
- Pure: `now_s` and `jitter` are arguments. All transitions are in `TABLE`.
- Only what says something about the daemon is a failure: it could not be reached, did not answer in time, or said that
  it cannot. A refusal of a command is a success.
- An outcome counts for the state in which its command passed: what was sent before the breaker opened says nothing
  about the daemon that is probed now. `admit` gives the ticket that tells.
- It never stays shut: a probe whose outcome is never told is given up after `PROBE_S`, and another one may pass.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW_S: Final = 5.0
_SLICE_S: Final = WINDOW_S / 10
# Of the outcomes of a window, and at least so many: a single failure at night opens nothing.
FAILURE_RATIO: Final = 0.5
LEAST_OUTCOMES: Final = 20
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0
PROBES: Final = 3
PROBE_S: Final = 2.0
# So long without a reason to open, and the next pause is a first one again.
FORGET_S: Final = 60.0


class State(Enum):
    """Whether commands pass: all, none, or a few to find out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_CLOSED: Final = State.CLOSED
Event = Literal["tripped", "paused", "probe_failed", "probes_succeeded"]

TABLE: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.CLOSED, "tripped"): State.OPEN,
        (State.OPEN, "paused"): State.HALF_OPEN,
        (State.HALF_OPEN, "probe_failed"): State.OPEN,
        (State.HALF_OPEN, "probes_succeeded"): State.CLOSED,
    }
)
"""What leads from where to where; nothing else changes a state."""


class Ticket(NamedTuple):
    """That a command passed, and in which life of the breaker: a new one begins with each change of state."""

    life: int


@dataclass(slots=True)
class _Slice:
    """Outcomes of a part of the window."""

    began_s: float
    outcomes: int = 0
    failures: int = 0


class Breaker:
    """One breaker, closed at first."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._life = 0
        self._ticket = Ticket(self._life)
        # Those that are over, and the present one.
        self._slices: deque[_Slice] = deque()
        # The last of them.
        self._slice = _Slice(-inf)
        self._slice = _Slice(-inf)
        self._outcomes = self._failures = 0
        self._opened = 0
        self._opened_s = 0.0
        self._until_s = 0.0
        # When each probe that is out was let pass.
        self._probes: list[float] = []
        self._succeeded = 0

    def admit(self, now_s: float) -> Ticket | None:
        """Let a command pass; None when it must not."""
        if self.state is _CLOSED:
            return self._ticket
        if self.state is State.OPEN and now_s >= self._until_s:
            self._move("paused")
        if self.state is State.OPEN:
            return None
        if self.state is State.HALF_OPEN:
            self._probes = [at_s for at_s in self._probes if now_s - at_s < PROBE_S]
            if len(self._probes) + self._succeeded >= PROBES:
                return None
            self._probes.append(now_s)
        return self._ticket

    @property
    def ticket(self) -> Ticket | None:
        """That of all who pass now; None where each has to ask."""
        return self._ticket if self.state is _CLOSED else None

    @property
    def life(self) -> int:
        """That of the tickets that mean anything now."""
        return self._life

    def retry_after_s(self, now_s: float) -> float:
        """Seconds after which it makes sense to come again; 0 when commands pass."""
        if self.state is State.OPEN:
            return max(self._until_s - now_s, 0.0)
        if self.state is State.HALF_OPEN and len(self._probes) + self._succeeded >= PROBES:
            return max(min(self._probes, default=now_s) + PROBE_S - now_s, 0.0)
        return 0.0

    def succeeded_many(self, count: int, now_s: float) -> None:
        """The daemon answered so many commands of the present life; while it is closed."""
        self._count(now_s, count, failed=False)

    def succeeded(self, ticket: Ticket, now_s: float) -> None:
        """The daemon answered, whatever it said about the command."""
        present = self._slice
        if self.state is _CLOSED and ticket.life == self._life and now_s - present.began_s < _SLICE_S:
            # The usual case of `_over`, without a call: this is on every command's way.
            present.outcomes += 1
            self._outcomes += 1
            return
        self._over(ticket, now_s, failed=False, jitter=0.0)

    def failed(self, ticket: Ticket, now_s: float, jitter: float) -> None:
        """The daemon did not answer, or said that it cannot. `jitter` in [0, 1) spreads the end of the pause."""
        self._over(ticket, now_s, failed=True, jitter=jitter)

    def abandoned(self, ticket: Ticket) -> None:
        """Nobody will ever know: the caller left before an answer could be expected."""
        if ticket.life == self._life and self._probes:
            self._probes.pop()

    def _over(self, ticket: Ticket, now_s: float, *, failed: bool, jitter: float) -> None:
        if ticket.life != self._life:
            return
        if self.state is State.HALF_OPEN:
            if failed:
                self._open("probe_failed", now_s, jitter)
                return
            if self._probes:
                self._probes.pop()
            self._succeeded += 1
            if self._succeeded >= PROBES:
                self._move("probes_succeeded")
            return
        self._count(now_s, 1, failed=failed)
        if failed and self._outcomes >= LEAST_OUTCOMES and self._failures >= FAILURE_RATIO * self._outcomes:
            self._open("tripped", now_s, jitter)

    def _count(self, now_s: float, count: int, *, failed: bool) -> None:
        present = self._slice
        if now_s - present.began_s >= _SLICE_S:
            present = self._slice = _Slice(now_s)
            self._slices.append(present)
            while now_s - self._slices[0].began_s > WINDOW_S:
                gone = self._slices.popleft()
                self._outcomes -= gone.outcomes
                self._failures -= gone.failures
        present.outcomes += count
        self._outcomes += count
        if failed:
            present.failures += count
            self._failures += count

    def _open(self, event: Event, now_s: float, jitter: float) -> None:
        if event == "tripped" and now_s - self._opened_s > FORGET_S:
            self._opened = 0
        self._move(event)
        # Doubled from time to time. The exponent is bounded as well: a float of 2**2000 does not exist.
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._opened, 32), LONGEST_PAUSE_S)
        self._opened += 1
        self._opened_s = now_s
        self._until_s = now_s + pause_s * (1 - jitter / 2)

    def _move(self, event: Event) -> None:
        self.state = TABLE[self.state, event]
        self._life += 1
        self._ticket = Ticket(self._life)
        self._slices.clear()
        self._slice = _Slice(-inf)
        self._probes.clear()
        self._outcomes = self._failures = self._succeeded = 0
