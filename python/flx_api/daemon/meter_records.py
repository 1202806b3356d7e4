"""Reading what the meter wrote: while a run lives (new counts) and after it (everything, as values).

Strategy: a meter file is append-only, one writer, one JSON record a line; a line counts when its line break is there.
The follower keeps an offset per file and reads only what is new; `read_invocations` reads a folder from the start and
folds each file into one frozen `Invocation`, which is all the ledger knows of a process.

Rules:
- A torn or unknown line is skipped: it costs that record, nothing else. A file without a start record is ignored.
- Counts are cumulative, so reading one twice (a restarted daemon) does no harm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

Role = Literal["extractor", "mapper", "loader", "utility"]
_NAME = re.compile(r"(\d{3,})-.*\.jsonl\Z")


class StreamCount(msgspec.Struct, frozen=True):
    """Records and bytes of one stream so far."""

    records: int
    bytes: int


class StreamSeen(msgspec.Struct, frozen=True):
    """What the meter knows of one stream at the end of an invocation."""

    records: int = 0
    bytes: int = 0
    schema: bool = False
    key_properties: tuple[str, ...] = ()
    distinct_keys: int | None = None
    records_after_state: int = 0
    activate_versions: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """What the meter knows of an invocation's whole output.

    `last_state` is JSON text: a producer's whole STATE message, a loader's line. `other` are messages of a kind that is
    not counted (BATCH), with which the records are not all the rows.
    """

    lines: int = 0
    bytes: int = 0
    malformed: int = 0
    other: int = 0
    partial_bytes: int = 0
    states: int = 0
    last_state: str | None = None
    streams: dict[str, StreamSeen] = {}


class StreamFound(msgspec.Struct, frozen=True):
    """What the second count of a destination says about one stream (see `daemon.destinations`)."""

    rows: int | None = None
    before: int | None = None
    mode: Literal["rows", "replaced", "keys"] | None = None
    found: int | None = None
    expected: int | None = None
    reason: str | None = None


class _Start(msgspec.Struct, tag="start", tag_field="kind"):
    role: Role
    plugin: str
    ts_us: int
    pid: int
    purpose: str = "sync"


class _Count(msgspec.Struct, tag="count", tag_field="kind"):
    ts_us: int
    streams: dict[str, StreamCount]


class Destination(msgspec.Struct, frozen=True, tag="destination", tag_field="kind"):
    """One count of a loader's destination."""

    when: Literal["before", "after"]
    ts_us: int
    ok: bool
    method: str
    reason: str | None = None
    streams: dict[str, StreamFound] = {}


class _Inputs(msgspec.Struct, tag="inputs", tag_field="kind"):
    missing: tuple[str, ...]


class _End(msgspec.Struct, tag="end", tag_field="kind"):
    ts_us: int
    exit_code: int
    cpu_s: float
    max_rss_kib: int
    snapshot: Snapshot | None = None


_Record = _Start | _Count | Destination | _Inputs | _End
_DECODER: msgspec.json.Decoder[_Record] = msgspec.json.Decoder(_Record)


class Invocation(msgspec.Struct, frozen=True):
    """One plugin process as its meter saw it. `ended_us` is None when no end record came: it was killed."""

    number: int
    role: Role
    plugin: str
    purpose: str
    started_us: int
    ended_us: int | None = None
    exit_code: int | None = None
    cpu_s: float | None = None
    max_rss_kib: int | None = None
    counts: dict[str, StreamCount] = {}
    snapshot: Snapshot | None = None
    before: Destination | None = None
    after: Destination | None = None
    missing_inputs: tuple[str, ...] = ()


class CountEvent(msgspec.Struct, frozen=True):
    """New counts of one invocation; numbers are cumulative for that invocation."""

    ts_us: int
    number: int
    role: Role
    plugin: str
    streams: dict[str, StreamCount]


class MeterFollower:
    """Yields the count events of a run's meter folder as they appear. One per run; call `poll` when it suits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}
        self._starts: dict[str, _Start] = {}

    def poll(self) -> list[CountEvent]:
        """Everything since the last call, by time. Cheap when nothing is new: one directory listing, a stat a file."""
        events: list[CountEvent] = []
        for number, path in _meter_files(self._folder):
            for record in self._new_records(path):
                if isinstance(record, _Start):
                    self._starts[path.name] = record
                elif isinstance(record, _Count) and (start := self._starts.get(path.name)):
                    events.append(CountEvent(record.ts_us, number, start.role, start.plugin, record.streams))
        events.sort(key=lambda event: event.ts_us)
        return events

    def _new_records(self, path: Path) -> list[_Record]:
        offset = self._offsets.get(path.name, 0)
        try:
            if path.stat().st_size <= offset:
                return []
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError:
            return []
        whole = data.rfind(b"\n") + 1
        self._offsets[path.name] = offset + whole
        return _decode_lines(data[:whole])


def read_invocations(folder: Path) -> tuple[Invocation, ...]:
    """All invocations of a run in start order; empty when nothing was metered."""
    found = []
    for number, path in _meter_files(folder):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        invocation = fold(number, _decode_lines(data[: data.rfind(b"\n") + 1]))
        if invocation is not None:
            found.append(invocation)
    return tuple(found)


def fold(number: int, records: list[_Record]) -> Invocation | None:
    """One invocation from its records; None without a start record."""
    if not records or not isinstance(records[0], _Start):
        return None
    start = records[0]
    whole = Invocation(number, start.role, start.plugin, start.purpose, start.ts_us)
    for record in records[1:]:
        if isinstance(record, _Count):
            whole = msgspec.structs.replace(whole, counts=record.streams)
        elif isinstance(record, Destination):
            whole = msgspec.structs.replace(whole, **{record.when: record})
        elif isinstance(record, _Inputs):
            whole = msgspec.structs.replace(whole, missing_inputs=record.missing)
        elif isinstance(record, _End):
            whole = msgspec.structs.replace(
                whole,
                ended_us=record.ts_us,
                exit_code=record.exit_code,
                cpu_s=record.cpu_s,
                max_rss_kib=record.max_rss_kib,
                snapshot=record.snapshot,
            )
    return whole


def _meter_files(folder: Path) -> list[tuple[int, Path]]:
    try:
        names = [path for path in folder.iterdir() if _NAME.match(path.name)]
    except OSError:
        return []
    return sorted((int(path.name.partition("-")[0]), path) for path in names)


def _decode_lines(data: bytes) -> list[_Record]:
    records = []
    for line in data.splitlines():
        try:
            records.append(_DECODER.decode(line))
        except (msgspec.DecodeError, RecursionError):  # a newer meter's record, or a torn line
            continue
    return records
