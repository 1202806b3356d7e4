"""Verdicts and warnings from records: every condition, and that a healthy run meets none."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.ledger import PlannedBlock, StreamHistory, build_ledger, history_after
from flx_api.daemon.meter_records import Destination, Invocation, Snapshot, StreamCount, StreamFound, StreamSeen
from flx_api.models.ledger import Ledger

PLAN = PlannedBlock("tap", "target", state_id="dev:tap-to-target")
STATE = {"bookmarks": {"s": {"at": 10}}}


def producer(number: int = 0, role: str = "extractor", **changes: Any) -> Invocation:
    """A producer that emitted ten rows of stream `s` and a state."""
    snapshot: dict[str, Any] = {
        "states": 1,
        "last_state": json.dumps({"type": "STATE", "value": STATE}),
        "streams": {"s": StreamSeen(records=10, bytes=500, schema=True)},
    }
    snapshot |= changes.pop("snapshot", {})
    values: dict[str, Any] = {
        "number": number,
        "role": role,
        "plugin": "tap" if role == "extractor" else "map",
        "purpose": "sync",
        "started_us": 1_000_000,
        "ended_us": 3_000_000,
        "exit_code": 0,
        "snapshot": Snapshot(**snapshot),
    }
    return Invocation(**values | changes)


def loader(number: int = 1, found: StreamFound | None = None, **changes: Any) -> Invocation:
    """A loader whose destination holds all ten rows."""
    found = found or StreamFound(rows=12, before=2, mode="rows", found=10, expected=10)
    values: dict[str, Any] = {
        "number": number,
        "role": "loader",
        "plugin": "target",
        "purpose": "sync",
        "started_us": 1_000_000,
        "ended_us": 4_000_000,
        "exit_code": 0,
        "snapshot": Snapshot(last_state=json.dumps(STATE)),
        "before": Destination("before", 1, True, "jsonl"),
        "after": Destination("after", 2, True, "jsonl", None, {"s": found}),
    }
    return Invocation(**values | changes)


def codes(ledger: Ledger) -> list[tuple[str, str | None]]:
    """Codes and streams of the warnings."""
    return [(warning.code, warning.stream) for warning in ledger.warnings]


def test_a_healthy_run_is_verified_and_quiet() -> None:
    """All numbers are there, no warning is."""
    plan = msgspec.structs.replace(PLAN, state_before={"bookmarks": {"s": {"at": 3}}})
    discover = producer(0, purpose="discover", snapshot={"streams": {}})
    ledger = build_ledger([plan], [discover, producer(1), loader(2)], exit_code=0)
    (block,) = ledger.blocks
    (stream,) = block.streams
    assert (ledger.verdict, ledger.records, ledger.warnings) == ("verified", 10, ())
    assert (stream.extracted, stream.piped, stream.loaded_found, stream.expected) == (10, 10, 10, 10)
    assert (stream.loaded_before, stream.loaded_after, stream.counted_by) == (2, 12, "rows")
    assert (stream.bytes, stream.rows_per_s, stream.state_moved) == (500, 5.0, True)
    assert (block.method, block.verdict, block.reason) == ("jsonl", "verified", None)
    assert [(plugin.role, plugin.purpose) for plugin in ledger.plugins] == [
        ("extractor", "discover"),
        ("extractor", "sync"),
        ("loader", "sync"),
    ]


def test_an_incremental_run_with_nothing_new_is_quiet() -> None:
    """No row, a state of before, a loader that echoes an older one: nothing to say."""
    idle = {"s": StreamSeen(schema=True)}
    echo = Snapshot(last_state=json.dumps({"bookmarks": {}}))
    found = StreamFound(rows=12, before=12, mode="rows", found=0, expected=0)
    ledger = build_ledger(
        [PLAN], [producer(snapshot={"streams": idle}), loader(found=found, snapshot=echo)], exit_code=0
    )
    assert (ledger.verdict, ledger.warnings) == ("verified", ())
    uncounted = loader(snapshot=echo, after=Destination("after", 2, False, "none", "no counter"))
    assert build_ledger([PLAN], [producer(snapshot={"streams": idle}), uncounted], exit_code=0).warnings == ()


FELL = {"s": StreamHistory(100)}
EMPTY = {"s": StreamSeen(schema=True)}
PARTITIONED = {"bookmarks": {"s": {"partitions": [{"context": {}, "progress_markers": {"at": 1}}]}}}


@pytest.mark.parametrize(
    ("changes", "plan", "history", "expected"),
    [
        ({"snapshot": {"partial_bytes": 7}}, {}, {}, [("cut_off", None)]),
        ({"snapshot": {"malformed": 1}}, {}, {}, [("malformed", None)]),
        (
            {"snapshot": {"streams": {"s": StreamSeen(10, 500, True, records_after_state=4)}}},
            {},
            {},
            [("cut_off", "s")],
        ),
        # An extractor without states cannot be judged by them.
        (
            {
                "snapshot": {
                    "states": 0,
                    "last_state": None,
                    "streams": {"s": StreamSeen(10, 500, True, records_after_state=10)},
                }
            },
            {},
            {},
            [],
        ),
        ({"snapshot": {"last_state": json.dumps({"type": "STATE", "value": PARTITIONED})}}, {}, {}, [("cut_off", "s")]),
        # Markers of a stream that did not run are an old story.
        (
            {"snapshot": {"last_state": json.dumps({"value": {"bookmarks": {"old": {"progress_markers": {"a": 1}}}}})}},
            {},
            {},
            [],
        ),
        ({"exit_code": -9}, {}, {}, [("cut_off", None)]),
        ({"ended_us": None, "exit_code": None, "snapshot": {}}, {}, {}, [("cut_off", None)]),
        ({"snapshot": {"streams": {}}}, {}, {}, [("nothing_selected", None)]),
        ({"snapshot": {"streams": EMPTY}}, {"first_run": True}, {}, [("no_rows", "s")]),
        ({"snapshot": {"streams": EMPTY}}, {"full_refresh": True}, FELL, [("no_rows", "s")]),
        ({"snapshot": {"streams": EMPTY}}, {"full_refresh": True}, {"s": StreamHistory(0)}, []),
        ({"snapshot": {"streams": EMPTY}}, {}, {}, []),
        ({"snapshot": {"streams": EMPTY}, "missing_inputs": ("data/s.csv",)}, {}, {}, [("input_missing", None)]),
        ({"missing_inputs": ("data/other.csv",)}, {}, {}, []),
        # Rows may have come in batches.
        ({"snapshot": {"streams": EMPTY, "other": 3}}, {"full_refresh": True}, FELL, []),
        ({"snapshot": {"streams": EMPTY, "other": 3}, "missing_inputs": ("data/s.csv",)}, {}, {}, []),
        ({"snapshot": {"other": 3}}, {"full_refresh": True}, FELL, []),
        ({}, {"full_refresh": True}, FELL, [("stream_fell", "s")]),
        ({}, {}, FELL, []),
        ({}, {"full_refresh": True}, {"s": StreamHistory(20)}, []),
        ({}, {"full_refresh": True}, {"s": StreamHistory(21)}, []),
        # An extractor that failed is not accused of silence as well.
        ({"snapshot": {"streams": {}}, "exit_code": 1}, {}, {}, []),
    ],
)
def test_warnings(changes: Any, plan: Any, history: Any, expected: Any) -> None:
    """One condition each, beside a loader that is fine."""
    counted = (
        {"s": StreamFound(mode="rows", found=0, expected=0)}
        if changes.get("snapshot", {}).get("streams") == EMPTY
        else None
    )
    good = loader() if counted is None else loader(after=Destination("after", 2, True, "jsonl", None, counted))
    planned = msgspec.structs.replace(PLAN, **plan)
    ledger = build_ledger([planned], [producer(**changes), good], exit_code=0, history={"dev:tap-to-target": history})
    assert expected == codes(ledger)


@pytest.mark.parametrize(
    ("changes", "verdict", "warnings", "reason"),
    [
        (
            {"found": StreamFound(rows=9, before=0, mode="rows", found=9, expected=10)},
            "mismatch",
            [("mismatch", "s")],
            "10 rows piped, 9 found at the destination",
        ),
        (
            {"found": StreamFound(rows=9, before=0, mode="keys", found=9, expected=10)},
            "mismatch",
            [("mismatch", "s")],
            "10 keys piped, 9 found at the destination",
        ),
        ({"found": StreamFound(reason="no table")}, "unverified", [], "no table"),
        ({"after": Destination("after", 2, True, "jsonl")}, "unverified", [], "the counter does not know the stream"),
        ({"after": None}, "unverified", [], "the destination was not counted after the run"),
        ({"after": Destination("after", 2, False, "none", "no counter")}, "unverified", [], "no counter"),
        (
            {
                "after": Destination("after", 2, False, "none", "no counter"),
                "snapshot": Snapshot(last_state='{"bookmarks":{"s":{"at":5}}}'),
            },
            "unverified",
            [("state_not_confirmed", None)],
            "no counter",
        ),
        # Verified rows speak for a loader that echoes an older state.
        ({"snapshot": Snapshot(last_state='{"bookmarks":{"s":{"at":5}}}')}, "verified", [], None),
        ({"snapshot": Snapshot(), "after": None}, "unverified", [], "the destination was not counted after the run"),
        ({"exit_code": -9}, "verified", [("cut_off", None)], None),
    ],
)
def test_verdicts(changes: Any, verdict: str, warnings: Any, reason: str | None) -> None:
    """What the loader's side decides."""
    ledger = build_ledger([PLAN], [producer(), loader(**changes)], exit_code=0)
    assert (verdict, warnings) == (ledger.verdict, codes(ledger))
    assert (ledger.blocks[0].streams[0].reason, ledger.blocks[0].reason) == (reason, reason)


def test_a_mapper_changes_what_is_compared() -> None:
    """The last producer before the loader is what the destination must hold."""
    mapper = producer(1, "mapper", snapshot={"streams": {"s": StreamSeen(4, 200, True), "t": StreamSeen(2, 20, True)}})
    found = {
        "s": StreamFound(mode="rows", found=4, expected=4),
        "t": StreamFound(mode="rows", found=2, expected=2),
    }
    plan = msgspec.structs.replace(PLAN, mappers=("map",))
    end = loader(2, after=Destination("after", 2, True, "jsonl", None, found))
    ledger = build_ledger([plan], [producer(), mapper, end], exit_code=0)
    s, t = ledger.blocks[0].streams
    assert (s.extracted, s.piped, s.verdict, s.reason) == (10, 4, "verified", "a mapper passed on 4 of 10 rows")
    assert (t.extracted, t.piped, t.verdict) == (None, 2, "verified")
    assert ledger.warnings == ()


def test_a_producer_that_vanished_leaves_its_counts() -> None:
    """What it had counted is shown; nothing is verified by it."""
    vanished = producer(ended_us=None, exit_code=None)
    vanished = msgspec.structs.replace(vanished, snapshot=None, counts={"s": StreamCount(7, 70)})
    (stream,) = build_ledger([PLAN], [vanished, loader()]).blocks[0].streams
    assert (stream.extracted, stream.piped, stream.verdict) == (7, 7, "unverified")


def test_a_run_under_way_is_not_accused() -> None:
    """No end record yet: numbers so far, no warning."""
    running = msgspec.structs.replace(producer(), ended_us=None, exit_code=None, snapshot=None)
    running = msgspec.structs.replace(running, counts={"s": StreamCount(7, 70)})
    waiting = loader(ended_us=None, exit_code=None, snapshot=None, after=None)
    ledger = build_ledger([PLAN], [running, waiting])
    assert (ledger.records, ledger.verdict, ledger.warnings) == (7, "unverified", ())


def test_batches_are_not_counted() -> None:
    """A tap that hands over files of rows cannot be verified by its messages."""
    ledger = build_ledger([PLAN], [producer(snapshot={"other": 3}), loader()], exit_code=0)
    assert ledger.verdict == "unverified"
    assert "BATCH" in (ledger.blocks[0].reason or "")
    full = msgspec.structs.replace(PLAN, full_refresh=True)
    assert history_after(full, ledger.blocks[0], FELL) == FELL


@pytest.mark.parametrize(
    ("code", "reason"), [(0, "not metered"), (1, "the block has not started"), (None, "the block has not started")]
)
def test_blocks_without_records(code: int | None, reason: str) -> None:
    """A Meltano that breaks the hook, or a run that failed before."""
    other = PlannedBlock("tap", "other")
    ledger = build_ledger([PLAN, other], [producer(), loader()], exit_code=code)
    assert [(block.verdict, block.reason) for block in ledger.blocks] == [("verified", None), ("unverified", reason)]
    assert ledger.verdict == "unverified"


def test_blocks_are_matched_in_order() -> None:
    """The same extractor twice, with other processes between."""
    second = PlannedBlock("tap", "other", state_id="dev:tap-to-other")
    dbt = producer(2, "utility", purpose="other", plugin="dbt")
    bad = StreamFound(mode="rows", found=9, expected=10)
    invocations = [producer(0), loader(1), dbt, producer(3), loader(4, bad, plugin="other")]
    ledger = build_ledger([PLAN, second], invocations, exit_code=0)
    assert [block.verdict for block in ledger.blocks] == ["verified", "mismatch"]
    assert ledger.verdict == "mismatch"
    assert ledger.records == 20


def test_no_plan_is_unverified() -> None:
    """A run of utilities only has no rows to vouch for."""
    ledger = build_ledger([], [producer(0, "utility", purpose="other")], exit_code=0)
    assert (ledger.verdict, ledger.blocks, ledger.warnings) == ("unverified", (), ())


def test_history_keeps_full_counts() -> None:
    """Only full runs are remembered, and never a stream that was cut off."""
    past = {"s": StreamHistory(100), "gone": StreamHistory(3)}
    full = msgspec.structs.replace(PLAN, full_refresh=True)
    (block,) = build_ledger([full], [producer(), loader()], exit_code=0).blocks
    assert history_after(full, block, past) == {"s": StreamHistory(10), "gone": StreamHistory(3)}
    assert history_after(PLAN, block, past) == past
    torn = producer(snapshot={"streams": {"s": StreamSeen(10, 500, True, records_after_state=4)}})
    (block,) = build_ledger([full], [torn, loader()], exit_code=0).blocks
    assert history_after(full, block, past) == past
    (block,) = build_ledger([full], [producer(exit_code=-9), loader()], exit_code=0).blocks
    assert history_after(full, block, past) == past


counts = st.integers(0, 50)
names = st.sampled_from(["a", "b", "c"])


@given(
    extracted=st.dictionaries(names, counts, max_size=3),
    found=st.dictionaries(names, st.tuples(st.none() | counts, st.none() | counts), max_size=3),
    ok=st.booleans(),
    whole=st.booleans(),
)
def test_verified_means_counted_and_equal(
    extracted: dict[str, int], found: dict[str, tuple[int | None, int | None]], ok: bool, whole: bool
) -> None:
    """Verified exactly where both numbers are there and equal; the whole is its worst part."""
    streams = {name: StreamSeen(records, records, schema=True) for name, records in extracted.items()}
    tap = producer(snapshot={"streams": streams})
    if not whole:
        tap = msgspec.structs.replace(tap, snapshot=None, counts={n: StreamCount(r, r) for n, r in extracted.items()})
    seen = {name: StreamFound(mode="rows", found=f, expected=e) for name, (f, e) in found.items()}
    ledger = build_ledger([PLAN], [tap, loader(after=Destination("after", 2, ok, "jsonl", None, seen))], exit_code=0)
    (block,) = ledger.blocks
    assert set(extracted) == {stream.stream for stream in block.streams}
    for stream in block.streams:
        here, there = found.get(stream.stream, (None, None))
        counted = ok and whole and here is not None and there is not None
        assert (stream.verdict == "unverified") == (not counted)
        if counted:
            assert (stream.verdict == "verified") == (here == there)
        assert (stream.reason is None) == (stream.verdict == "verified")
    assert ledger.records == sum(extracted.values())
    verdicts = {stream.verdict for stream in block.streams}
    assert (ledger.verdict == "verified") == (verdicts == {"verified"})
    assert (ledger.verdict == "mismatch") == ("mismatch" in verdicts)
    mismatches = {warning.stream for warning in ledger.warnings if warning.code == "mismatch"}
    assert mismatches == {stream.stream for stream in block.streams if stream.verdict == "mismatch"}
    assert msgspec.json.decode(msgspec.json.encode(ledger), type=Ledger) == ledger
