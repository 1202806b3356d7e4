"""The newest events in memory, so that followers who keep up never touch the database.

Rules:
- Pure: rows in, rows out. Sequence numbers of the journal are dense, so a place is a subtraction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class EventRow(NamedTuple):
    """One event of the journal. `prev` is that of the event before in its tenant and topic, 0 for none.

    `data` is JSON; empty when the event was forgotten before its time, as the rule of its topic says.
    """

    seq: int
    prev: int
    ts_us: int
    topic: str
    tenant: str
    data: bytes


class Tail:
    """At least the last `rows` events, at most twice as many.

    Args:
        seq: the last sequence number before anything is added.
        rows: how many to keep.
    """

    def __init__(self, seq: int, rows: int) -> None:
        self._rows = rows
        self._events: list[EventRow] = []
        self._before = seq

    def extend(self, events: Sequence[EventRow]) -> None:
        """Add events that follow the last one without a hole."""
        self._events.extend(events)
        # Dropping half at a time makes it one move per event in the long run.
        if len(self._events) > 2 * self._rows:
            excess = len(self._events) - self._rows
            del self._events[:excess]
            self._before += excess

    def forget(self, is_forgotten: Callable[[EventRow], bool]) -> None:
        """Keep nothing of these events but that they were."""
        self._events = [row._replace(data=b"") if is_forgotten(row) else row for row in self._events]

    def after(self, seq: int, limit: int) -> list[EventRow] | None:
        """At most `limit` events after this one; None when some of them are not here any more."""
        start = seq - self._before
        if start < 0:
            return None
        return self._events[start : start + limit]
