"""Live counts, told at a bounded rate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flx_api.daemon.executions.meter_counts import MeterCounts
from flx_api.models.event import MetricEvent, StreamCount

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, role: str, plugin: str, **streams: int) -> None:
    counts = {name: {"records": records, "bytes": records * 10} for name, records in streams.items()}
    lines = [
        {"kind": "start", "role": role, "plugin": plugin, "ts_us": 1, "pid": 1, "purpose": "sync"},
        {"kind": "count", "ts_us": 2, "streams": counts},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def append(path: Path, **streams: int) -> None:
    counts = {name: {"records": records, "bytes": records * 10} for name, records in streams.items()}
    with path.open("a") as file:
        file.write(json.dumps({"kind": "count", "ts_us": 3, "streams": counts}) + "\n")


def test_counts_are_told_when_there_is_news_and_not_too_often(tmp_path: Path) -> None:
    counts = MeterCounts(tmp_path, "e")
    counts.poll()
    assert counts.due(0, 500) == []
    tap = tmp_path / "000-extractor-tap.jsonl"
    write(tap, "extractor", "tap", a=1)
    counts.poll()
    assert counts.due(0, 500) == [MetricEvent("e", "tap", "extractor", {"a": StreamCount(1, 10)})]
    assert counts.due(1000, 500) == []
    append(tap, a=5)
    counts.poll()
    assert counts.due(1000, 2000) == []
    assert [event.streams["a"].records for event in counts.due(2000, 2000)] == [5]


def test_processes_of_one_plugin_are_added_up_and_only_extractors_count_as_streams(tmp_path: Path) -> None:
    write(tmp_path / "000-extractor-tap.jsonl", "extractor", "tap", a=1, b=2)
    write(tmp_path / "001-loader-target.jsonl", "loader", "target", a=9)
    write(tmp_path / "002-extractor-tap.jsonl", "extractor", "tap", a=3)
    counts = MeterCounts(tmp_path, "e")
    counts.poll()
    assert counts.streams == {"a": 4, "b": 2}
    assert {event.plugin: event.streams["a"].records for event in counts.due(0, 1)} == {"tap": 4, "target": 9}


def test_no_folder_is_no_news(tmp_path: Path) -> None:
    counts = MeterCounts(tmp_path / "absent", "e")
    counts.poll()
    assert counts.streams == {}
