"""What was heard lately, so that a client that resumes seldom costs the daemon anything.

Strategy: journal events lie in one list in order of their sequence number; log lines in one list per execution, by
line number. Both are cut at the old end when they grow too large; what was cut is told by a floor: everything above
the floor is here, without holes. An event keeps the frame that was built for it.

Rules:
- No clock, no socket, no task: bytes in, lists out.
- `missing` answers whether a resume can be served from here; nothing is ever served with a hole.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.events.position import Position, encode, execution_of_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flx_api.proto.flx.v1.daemon_pb2 import Event

_JOURNAL_BYTES: Final = 16 * 1024 * 1024
_LOG_BYTES: Final = 4 * 1024 * 1024
_LOGS_BYTES: Final = 32 * 1024 * 1024
# Logs of executions that are over stay in positions until this many others are over, since late lines may follow.
_ENDED_KEPT: Final = 32
_OVER: Final = frozenset({"succeeded", "succeeded_with_warnings", "failed", "cancelled", "timed_out", "crashed"})
_SEQ: Final = attrgetter("seq")
_ORDER: Final = attrgetter("order")
_OVERHEAD: Final = 200


class Heard(msgspec.Struct, frozen=True):
    """An event with its frame; `order` counts all events that this process heard."""

    order: int
    topic: str
    tenant: str
    seq: int
    prev: int
    frame: str


class _Status(msgspec.Struct):
    """The part of a status event that says whether an execution is over."""

    execution: str = ""
    status: str = ""


class LogTopic:
    """The remembered lines of one execution, above `floor`. `born_seq` is where the journal was at its first line."""

    __slots__ = ("born_seq", "events", "floor", "last", "size")

    def __init__(self, floor: int, born_seq: int) -> None:
        self.floor = self.last = floor
        self.born_seq = born_seq
        self.events: list[Heard] = []
        self.size = 0


class Memory:
    """All that one follower heard lately, and how far it has come."""

    def __init__(self, journal_bytes: int = _JOURNAL_BYTES, log_bytes: int = _LOG_BYTES) -> None:
        self._journal_bytes = journal_bytes
        self._log_bytes = log_bytes
        self.epoch = ""
        self.seq = 0
        self.floor = 0
        self.logs: dict[str, LogTopic] = {}
        self._ended: dict[str, None] = {}
        self._journal: list[Heard] = []
        self._journal_size = 0
        self._logs_size = 0
        self.order = 0
        self._cut_order = 0

    def restart(self, epoch: str, seq: int) -> None:
        """Begin anew at a position: nothing before it is known."""
        self.epoch, self.seq, self.floor = epoch, seq, seq
        self.logs, self._ended, self._journal = {}, {}, []
        self._journal_size = self._logs_size = 0
        self._cut_order = self.order

    @property
    def position(self) -> Position:
        """How far this process has come."""
        return Position(self.epoch, self.seq, {execution: log.last for execution, log in self.logs.items()})

    def advance(self, seq: int) -> None:
        """The daemon says that everything up to here was considered."""
        self.seq = max(self.seq, seq)

    def add(self, event: Event) -> Heard | None:
        """Remember an event; None when it was heard before (a reconnect may repeat some)."""
        execution = execution_of_log(event.topic)
        if execution is not None:
            return self._add_line(execution, event)
        if event.seq <= self.seq:
            return None
        self.seq = event.seq
        heard = self._heard(event)
        self._journal.append(heard)
        self._journal_size += len(heard.frame) + _OVERHEAD
        if self._journal_size > self._journal_bytes:
            self._cut_journal()
        if event.topic.endswith(".status"):
            self._note_end(event.data)
        return heard

    def _add_line(self, execution: str, event: Event) -> Heard | None:
        log = self.logs.get(execution)
        if log is None:
            log = self.logs[execution] = LogTopic(event.seq - 1, self.seq)
        if event.seq <= log.last:
            return None
        if event.seq != log.last + 1:
            # The daemon skipped lines: what is remembered before them no longer joins on.
            self._logs_size -= log.size
            log.events, log.size, log.floor = [], 0, event.seq - 1
        log.last = event.seq
        heard = self._heard(event)
        log.events.append(heard)
        size = len(heard.frame) + _OVERHEAD
        log.size += size
        self._logs_size += size
        if log.size > self._log_bytes or self._logs_size > _LOGS_BYTES:
            self._cut_log(log if log.size > self._log_bytes else max(self.logs.values(), key=attrgetter("size")))
        return heard

    def journal_after(self, seq: int) -> Iterator[Heard]:
        """Journal events after a sequence number that is not below the floor."""
        for index in range(bisect_right(self._journal, seq, key=_SEQ), len(self._journal)):
            yield self._journal[index]

    def lines_after(self, execution: str, line: int) -> Iterator[Heard]:
        """Lines of a log after a line that is not below its floor."""
        log = self.logs.get(execution)
        if log is not None:
            for index in range(bisect_right(log.events, line, key=_SEQ), len(log.events)):
                yield log.events[index]

    def first_lines(self, position: Position, wanted: Callable[[str], bool], born_from: int) -> dict[str, int]:
        """For each wanted log, the last line that the reader of a position has seen.

        A log that is not in the position counts from 0 when it began at or after `born_from`, where its reader began,
        and not at all when it had ended before.
        """
        seen: dict[str, int] = {}
        for execution, log in self.logs.items():
            if wanted(f"execution.{execution}.log"):
                if execution in position.logs:
                    seen[execution] = position.logs[execution]
                elif log.born_seq >= born_from:
                    seen[execution] = 0
        return seen

    def missing(
        self, position: Position, wanted: Callable[[str], bool], born_from: int, *, settled: bool = False
    ) -> bool:
        """Whether something since a position is not here, so that only the daemon can tell it.

        A log of the position that was never heard of here may have lines that are older than this process; `settled`
        says that the daemon has told them.
        """
        if position.seq < self.floor:
            return True
        seen = self.first_lines(position, wanted, born_from)
        if any(self.logs[execution].floor > line for execution, line in seen.items()):
            return True
        return not settled and any(
            execution not in self.logs and wanted(f"execution.{execution}.log") for execution in position.logs
        )

    def since(self, position: Position, wanted: Callable[[str], bool], born_from: int) -> list[Heard]:
        """Everything wanted since a position, in the order it was heard. Only when nothing is `missing`."""
        heard = [event for event in self.journal_after(position.seq) if wanted(event.topic)]
        for execution, line in self.first_lines(position, wanted, born_from).items():
            heard.extend(self.lines_after(execution, line))
        heard.sort(key=_ORDER)
        return heard

    def heard_after(self, order: int) -> list[Heard] | None:
        """Everything heard after the `order`th event; None when some of it was cut."""
        if order < self._cut_order:
            return None
        heard: list[Heard] = []
        for events in (self._journal, *(log.events for log in self.logs.values())):
            heard.extend(events[bisect_right(events, order, key=_ORDER) :])
        heard.sort(key=_ORDER)
        return heard

    def _heard(self, event: Event) -> Heard:
        self.order += 1
        pos = encode(self.position)
        return Heard(self.order, event.topic, event.tenant, event.seq, event.prev, frame_of(event, self.epoch, pos))

    def _cut_journal(self) -> None:
        keep = 0
        while keep < len(self._journal) and self._journal_size > self._journal_bytes * 3 // 4:
            self._journal_size -= len(self._journal[keep].frame) + _OVERHEAD
            keep += 1
        self.floor = self._journal[keep - 1].seq
        self._cut_order = max(self._cut_order, self._journal[keep - 1].order)
        del self._journal[:keep]

    def _cut_log(self, log: LogTopic) -> None:
        keep, target = 0, log.size * 3 // 4
        while keep < len(log.events) and log.size > target:
            size = len(log.events[keep].frame) + _OVERHEAD
            log.size -= size
            self._logs_size -= size
            keep += 1
        log.floor = log.events[keep - 1].seq
        self._cut_order = max(self._cut_order, log.events[keep - 1].order)
        del log.events[:keep]

    def _note_end(self, data: bytes) -> None:
        try:
            status = msgspec.json.decode(data, type=_Status)
        except msgspec.DecodeError:
            return
        if status.status in _OVER and status.execution in self.logs:
            self._ended[status.execution] = None
            while len(self._ended) > _ENDED_KEPT:
                oldest = next(iter(self._ended))
                del self._ended[oldest]
                log = self.logs.pop(oldest, None)
                if log is not None:
                    self._logs_size -= log.size


def frame_of(event: Event, epoch: str, pos: str) -> str:
    """The plain protocol's frame of an event: built once, sent to everyone."""
    head = msgspec.json.encode(
        {
            "type": "event",
            "event": event.topic,
            "seq": event.seq,
            "prev": event.prev,
            "epoch": epoch,
            "ts": event.ts_us,
            "pos": pos,
        }
    )
    return f'{head[:-1].decode()},"data":{(event.data or b"null").decode()}}}'
