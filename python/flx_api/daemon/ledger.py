"""What a run did to every row: meter records become verdicts and warnings.

Strategy: pure functions over frozen values. Invocations are grouped into blocks by start order (extractor, mappers,
loader; Meltano runs one block after the other) and matched to the plan. Per stream three numbers are compared: what
the extractor emitted, what the last producer passed to the loader, what was found at the destination. The warnings are
the marks of Meltano's silent faults, each a condition that a healthy run does not meet:

    mismatch             the destination was counted and differs from what was piped
    cut_off              last line unterminated; records after the last STATE; progress markers in the last STATE of a
                         stream that ran; a plugin killed by a signal or vanished
    state_not_confirmed  the loader's last state is not the producer's, and the rows are not verified otherwise
    nothing_selected     the extractor sent no SCHEMA at all
    no_rows              a stream without a row on a first run or full refresh, unless it had none last time either
    input_missing        a configured input file does not exist and a stream had no row
    stream_fell          a full refresh brought less than half of the last full count
    malformed            lines that are no Singer messages

Rules:
- `verified` needs a counted destination that equals; it speaks of the rows the extractor emitted, no more.
- What the counter cannot see is `unverified`, never `mismatch`.
- An incremental run with nothing new raises nothing.
- A loader may echo an older state than it has stored (target-duckdb does when the last states bring no rows), so the
  state alone never accuses a run whose rows are verified. A loader that echoes nothing is not accused at all.
- An extractor that never sends STATE cannot be judged by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from flx_api.daemon.meter_records import Invocation, Snapshot, StreamFound, StreamSeen
from flx_api.models.ledger import BlockLedger, Ledger, PluginCost, StreamLedger, Verdict, Warning_, WarningCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BATCHES = "messages of an unknown kind (BATCH) carry rows that are not counted"
FELL_BELOW = 0.5
# A stream of a few rows may halve in an ordinary day.
FELL_AT_LEAST = 20
_SECOND_US = 1_000_000


class PlannedBlock(msgspec.Struct, frozen=True):
    """One extract-load block of the plan and what the caller knows about its state id.

    `first_run`: no run of this state id has succeeded before. `state_before` is the state at the start, `{}` when
    there was none, None when unknown.
    """

    extractor: str
    loader: str
    mappers: tuple[str, ...] = ()
    state_id: str | None = None
    first_run: bool = False
    full_refresh: bool = False
    state_before: dict[str, Any] | None = None


class StreamHistory(msgspec.Struct, frozen=True):
    """What earlier runs of a state id say about a stream: the records of the last full run that succeeded."""

    full_records: int | None = None


History = dict[str, StreamHistory]


class _Group(msgspec.Struct, frozen=True):
    """The processes of one block that ran."""

    extractor: Invocation
    mappers: tuple[Invocation, ...] = ()
    loader: Invocation | None = None

    @property
    def last_producer(self) -> Invocation:
        return self.mappers[-1] if self.mappers else self.extractor

    @property
    def plugins(self) -> tuple[Invocation, ...]:
        return (self.extractor, *self.mappers, *(() if self.loader is None else (self.loader,)))


def build_ledger(
    plan: Sequence[PlannedBlock],
    invocations: Sequence[Invocation],
    *,
    exit_code: int | None = None,
    history: Mapping[str, History] | None = None,
) -> Ledger:
    """The ledger of a run, also of one that is under way or failed.

    Args:
        plan: the extract-load blocks in the order they run.
        invocations: what `read_invocations` found.
        exit_code: of the run; None while it is under way (or when it vanished): then there are no warnings.
        history: per state id, per stream.
    """
    groups = _groups(invocations)
    blocks = []
    for index, planned in enumerate(plan):
        group = next((g for g in groups if _fits(g, planned)), None)
        if group is not None:
            groups = groups[groups.index(group) + 1 :]
        past = (history or {}).get(planned.state_id or "", {})
        blocks.append(_block(index, planned, group, past, exit_code))
    return Ledger(
        verdict=_worst(block.verdict for block in blocks),
        records=sum(stream.extracted or 0 for block in blocks for stream in block.streams),
        blocks=tuple(blocks),
        warnings=tuple(warning for block in blocks for warning in block.warnings),
        plugins=tuple(_cost(invocation) for invocation in invocations),
    )


def history_after(planned: PlannedBlock, block: BlockLedger, past: History) -> History:
    """The history to keep after a run that exited 0: full counts, but of what was cut off or not counted."""
    if not (planned.full_refresh or planned.first_run):
        return past
    cut = {warning.stream for warning in block.warnings if warning.code == "cut_off"}
    if None in cut:
        return past
    whole = (s for s in block.streams if s.extracted is not None and s.reason != _BATCHES)
    counted = {s.stream: StreamHistory(s.extracted) for s in whole}
    return past | {stream: seen for stream, seen in counted.items() if stream not in cut}


def _groups(invocations: Iterable[Invocation]) -> list[_Group]:
    """Blocks by start order: an extractor opens one, a loader closes it."""
    groups: list[_Group] = []
    opened = False
    for invocation in sorted(invocations, key=lambda one: one.number):
        if invocation.purpose != "sync" or invocation.role == "utility":
            continue
        if invocation.role == "extractor":
            groups.append(_Group(invocation))
            opened = True
        elif opened and invocation.role == "mapper":
            group = groups[-1]
            groups[-1] = msgspec.structs.replace(group, mappers=(*group.mappers, invocation))
        elif opened:
            groups[-1] = msgspec.structs.replace(groups[-1], loader=invocation)
            opened = False
    return groups


def _fits(group: _Group, planned: PlannedBlock) -> bool:
    return group.extractor.plugin == planned.extractor and (
        group.loader is None or group.loader.plugin == planned.loader
    )


def _block(
    index: int, planned: PlannedBlock, group: _Group | None, past: History, exit_code: int | None
) -> BlockLedger:
    loader = None if group is None else group.loader
    method = "none" if loader is None or loader.before is None else loader.before.method
    streams: tuple[StreamLedger, ...] = ()
    warnings: tuple[Warning_, ...] = ()
    if group is None:
        reason: str | None = "not metered" if exit_code == 0 else "the block has not started"
        verdict: Verdict = "unverified"
    else:
        streams = _streams(planned, group)
        verdict = _worst(stream.verdict for stream in streams)
        reason = next((stream.reason for stream in streams if stream.verdict == verdict != "verified"), None)
        if not streams:
            reason = "no stream was emitted"
        # While the run is under way everything is incomplete, and nothing is a fault yet.
        warnings = () if exit_code is None else tuple(_warnings(planned, group, streams, past, verdict))
    return BlockLedger(
        index=index,
        extractor=planned.extractor,
        mappers=planned.mappers,
        loader=planned.loader,
        state_id=planned.state_id,
        method=method,
        verdict=verdict,
        reason=reason,
        streams=streams,
        warnings=warnings,
    )


def _streams(planned: PlannedBlock, group: _Group) -> tuple[StreamLedger, ...]:
    extracted, piped = _seen(group.extractor), _seen(group.last_producer)
    names = dict.fromkeys((*extracted, *piped))
    confirmed = None if group.loader is None else _state_of(group.loader.snapshot)
    rows = []
    for name in names:
        emitted, passed = extracted.get(name), piped.get(name)
        found = _found(group, name)
        verdict, reason = _judge(group, passed, found)
        if verdict == "verified" and emitted is not None and passed is not None and emitted.records != passed.records:
            reason = f"a mapper passed on {passed.records} of {emitted.records} rows"
        rows.append(
            StreamLedger(
                stream=name,
                extracted=None if emitted is None else emitted.records,
                piped=None if passed is None else passed.records,
                expected=found.expected,
                loaded_before=found.before,
                loaded_after=found.rows,
                loaded_found=found.found,
                counted_by=found.mode,
                bytes=None if emitted is None else emitted.bytes,
                rows_per_s=_rate(group.extractor, emitted),
                state_moved=_moved(planned.state_before, confirmed, name),
                verdict=verdict,
                reason=reason,
            )
        )
    return tuple(rows)


def _seen(invocation: Invocation) -> dict[str, StreamSeen]:
    """The streams of an invocation; of one that vanished, what it had last counted."""
    if invocation.snapshot is not None:
        return invocation.snapshot.streams
    return {name: StreamSeen(count.records, count.bytes) for name, count in invocation.counts.items()}


def _found(group: _Group, name: str) -> StreamFound:
    after = None if group.loader is None else group.loader.after
    if after is None:
        return StreamFound(reason="the destination was not counted after the run")
    if not after.ok:
        return StreamFound(reason=after.reason or "the destination was not counted")
    return after.streams.get(name) or StreamFound(reason="the counter does not know the stream")


def _judge(group: _Group, passed: StreamSeen | None, found: StreamFound) -> tuple[Verdict, str | None]:
    if group.last_producer.snapshot is None:
        return "unverified", "the producer before the loader left no complete record"
    if group.last_producer.snapshot.other:
        return "unverified", _BATCHES
    if found.found is None or found.expected is None:
        return "unverified", found.reason or "the destination was not counted"
    if passed is None:
        return "unverified", "a mapper passed on nothing of the stream"
    if found.found == found.expected:
        return "verified", None
    what = "keys" if found.mode == "keys" else "rows"
    return "mismatch", f"{found.expected} {what} piped, {found.found} found at the destination"


def _warnings(
    planned: PlannedBlock, group: _Group, streams: tuple[StreamLedger, ...], past: History, verdict: Verdict
) -> Iterable[Warning_]:
    for stream in streams:
        if stream.verdict == "mismatch":
            yield _warning("mismatch", stream.reason or "", stream.stream)
    for plugin in group.plugins:
        yield from _ended_badly(plugin)
    for producer in (group.extractor, *group.mappers):
        if producer.snapshot is not None:
            yield from _cut_off(producer.plugin, producer.snapshot)
    yield from _unconfirmed(group, verdict)
    snapshot = group.extractor.snapshot
    # Rows that come as batches are not counted, so that nobody can say that there were none, or few.
    if snapshot is not None and not snapshot.other and group.extractor.exit_code == 0:
        yield from _empty(planned, group.extractor, snapshot, past)
        if planned.full_refresh:
            yield from _fell(snapshot, past)


def _ended_badly(plugin: Invocation) -> Iterable[Warning_]:
    if plugin.ended_us is None:
        yield _warning("cut_off", f"{plugin.plugin} vanished before it was done")
    elif plugin.exit_code is not None and plugin.exit_code < 0:
        yield _warning("cut_off", f"{plugin.plugin} was killed by signal {-plugin.exit_code}")


def _cut_off(plugin: str, snapshot: Snapshot) -> Iterable[Warning_]:
    if snapshot.partial_bytes:
        yield _warning("cut_off", f"the last line of {plugin} has no end ({snapshot.partial_bytes} bytes)")
    if snapshot.malformed:
        yield _warning("malformed", f"{plugin} sent {snapshot.malformed} lines that are no Singer messages")
    state = _state_of(snapshot)
    for name, seen in snapshot.streams.items():
        if snapshot.states and seen.records_after_state:
            detail = f"{plugin} sent {seen.records_after_state} rows and no state after them"
            yield _warning("cut_off", detail, name)
        if seen.schema and _has_progress_markers(_bookmark(state, name)):
            yield _warning("cut_off", f"the last state of {plugin} says that the stream was interrupted", name)


def _unconfirmed(group: _Group, verdict: Verdict) -> Iterable[Warning_]:
    producer = group.last_producer.snapshot
    if group.loader is None or producer is None or verdict == "verified":
        return
    if not any(seen.records for seen in producer.streams.values()):
        return
    sent, confirmed = _state_of(producer), _state_of(group.loader.snapshot)
    if sent is not None and confirmed is not None and sent != confirmed:
        yield _warning(
            "state_not_confirmed", f"the last state of {group.loader.plugin} is not the last one it was sent"
        )


def _empty(planned: PlannedBlock, extractor: Invocation, snapshot: Snapshot, past: History) -> Iterable[Warning_]:
    streams = {name: seen for name, seen in snapshot.streams.items() if seen.schema or seen.records}
    if not streams:
        yield _warning("nothing_selected", f"{extractor.plugin} sent no schema: no stream is selected")
        return
    empty = [name for name, seen in streams.items() if not seen.records]
    if empty and extractor.missing_inputs:
        names = ", ".join(name.rpartition("/")[2] for name in extractor.missing_inputs[:5])
        yield _warning("input_missing", f"input of {extractor.plugin} does not exist: {names}")
    if planned.first_run or planned.full_refresh:
        run = "full refresh" if planned.full_refresh else "first run"
        for name in empty:
            if past.get(name, StreamHistory()).full_records != 0:
                yield _warning("no_rows", f"{extractor.plugin} sent no row on a {run}", name)


def _fell(snapshot: Snapshot, past: History) -> Iterable[Warning_]:
    for name, seen in snapshot.streams.items():
        before = past.get(name, StreamHistory()).full_records
        if before is None or not seen.records:
            continue
        if seen.records < before * FELL_BELOW and before - seen.records >= FELL_AT_LEAST:
            yield _warning("stream_fell", f"{seen.records} rows on a full refresh, {before} last time", name)


def _warning(code: WarningCode, detail: str, stream: str | None = None) -> Warning_:
    return Warning_(code, detail, stream)


def _state_of(snapshot: Snapshot | None) -> object:
    """The last state as a value; a whole STATE message is opened. None without one or when it is no JSON."""
    if snapshot is None or snapshot.last_state is None:
        return None
    try:
        value = msgspec.json.decode(snapshot.last_state)
    except (msgspec.DecodeError, RecursionError):
        return None
    if isinstance(value, dict) and value.get("type") == "STATE" and "value" in value:
        return value["value"]
    return value


def _bookmark(state: object, stream: str) -> object:
    bookmarks = state.get("bookmarks") if isinstance(state, dict) else None
    return bookmarks.get(stream) if isinstance(bookmarks, dict) else None


def _has_progress_markers(bookmark: object) -> bool:
    if isinstance(bookmark, dict):
        return bool(bookmark.get("progress_markers")) or any(map(_has_progress_markers, bookmark.values()))
    if isinstance(bookmark, list):
        return any(map(_has_progress_markers, bookmark))
    return False


def _moved(before: dict[str, Any] | None, confirmed: object, stream: str) -> bool | None:
    if before is None:
        return None
    now = _bookmark(confirmed, stream)
    return bool(now) and now != _bookmark(before, stream)


def _rate(extractor: Invocation, seen: StreamSeen | None) -> float | None:
    if seen is None or extractor.ended_us is None or extractor.ended_us <= extractor.started_us:
        return None
    return round(seen.records * _SECOND_US / (extractor.ended_us - extractor.started_us), 1)


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    found = set(verdicts)
    if "mismatch" in found:
        return "mismatch"
    return "verified" if found == {"verified"} else "unverified"


def _cost(invocation: Invocation) -> PluginCost:
    return PluginCost(
        role=invocation.role,
        plugin=invocation.plugin,
        purpose=invocation.purpose,
        exit_code=invocation.exit_code,
        started_us=invocation.started_us,
        ended_us=invocation.ended_us,
        cpu_s=invocation.cpu_s,
        max_rss_kib=invocation.max_rss_kib,
    )
