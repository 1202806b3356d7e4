"""Choosing a counter, and both counts around a loader."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from flx_api.daemon import destinations

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def loader(tmp_path: Path) -> Path:
    """The executable of an installed target-jsonl."""
    (tmp_path / "lib" / "python3.11" / "site-packages" / "target_jsonl-0.1.4.dist-info").mkdir(parents=True)
    (tmp_path / "meter").mkdir()
    return tmp_path / "bin" / "target-jsonl"


def config(folder: Path, **values: Any) -> str:
    """A resolved config file."""
    path = folder / "config.json"
    path.write_text(json.dumps({"destination_path": str(folder / "out"), "do_timestamp_file": False, **values}))
    return str(path)


def producer(folder: Path, number: int, role: str, records: int | None, *, purpose: str = "sync") -> None:
    """A producer's meter file; without records it has not ended."""
    lines: list[dict[str, Any]] = [{"kind": "start", "role": role, "purpose": purpose}]
    if records is not None:
        stream = {"records": records, "key_properties": [], "distinct_keys": None, "activate_versions": 0}
        lines.append({"kind": "end", "keys_complete": True, "snapshot": {"streams": {"s": stream}}})
    path = folder / "meter" / f"{number:03d}-{role}-p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_both_counts_of_a_known_loader(tmp_path: Path, loader: Path) -> None:
    """The nearest sync producer below the loader's number says what must be there."""
    before = destinations.count_before([str(loader)], config(tmp_path), None)
    assert before.record() == {"ok": True, "method": "jsonl", "reason": None, "streams": {}, "tables": {}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s.jsonl").write_text("{}\n{}\n")
    producer(tmp_path, 0, "extractor", 9)
    producer(tmp_path, 1, "mapper", 2)
    producer(tmp_path, 2, "extractor", 5, purpose="discover")
    producer(tmp_path, 4, "extractor", 7)
    after: dict[str, Any] = destinations.count_after(before, str(tmp_path / "meter"), 3, None)
    assert (after["ok"], after["method"], after["reason"]) == (True, "jsonl", None)
    assert (after["streams"]["s"]["found"], after["streams"]["s"]["expected"]) == (2, 2)


def test_a_producer_without_an_end(tmp_path: Path, loader: Path) -> None:
    """Killed: what it piped is not known to the row."""
    producer(tmp_path, 0, "extractor", None)
    before = destinations.count_before([str(loader)], config(tmp_path), None)
    after = destinations.count_after(before, str(tmp_path / "meter"), 1, None)
    assert (after["ok"], after["reason"]) == (False, "the producer before the loader left no complete record")


def test_loaders_that_cannot_be_counted(tmp_path: Path, loader: Path) -> None:
    """Unknown, without a config, with settings that are not understood: `none` or the method, and a reason."""
    unknown = destinations.count_before(["/bin/cat"], None, None)
    assert (unknown.method, unknown.reason) == ("none", "no counter is known for this loader")
    bare = destinations.count_before([str(loader)], None, None)
    assert (bare.method, bare.reason) == ("jsonl", "the loader was started without a config file")
    after = destinations.count_after(bare, str(tmp_path / "meter"), 1, None)
    assert (after["ok"], after["reason"]) == (False, bare.reason)
    assert destinations.count_after(None, str(tmp_path / "meter"), 1, None) == {}
