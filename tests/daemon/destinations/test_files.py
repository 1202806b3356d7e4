"""Counting files against the library's own reader."""

from __future__ import annotations

import csv
import io
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.destinations import files
from flx_api.daemon.destinations.naming import NotCountable

if TYPE_CHECKING:
    from pathlib import Path

FAR = float("inf")


def jsonl(folder: Path, **config: Any) -> files.JsonlCounter:
    """A counter for a folder."""
    return files.JsonlCounter({"destination_path": str(folder), "do_timestamp_file": False, **config}, "", "", None)


def seen(records: int) -> dict[str, Any]:
    """What the producer piped."""
    return {"records": records}


def test_appended_lines_only(tmp_path: Path) -> None:
    """A file that grew counts by what was added, a new one whole, a missing one not at all."""
    (tmp_path / "a.jsonl").write_text("{}\n" * 3)
    counter = jsonl(tmp_path)
    assert counter.before(FAR) == {"a.jsonl": 3}
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{}\n" * 2)
    (tmp_path / "b.jsonl").write_text("{}\n")
    found = counter.after({"a": seen(2), "b": seen(1), "c": seen(4), "idle": seen(0)}, None, FAR)
    assert (found["a"]["before"], found["a"]["rows"], found["a"]["found"]) == (3, 5, 2)
    assert (found["b"]["before"], found["b"]["rows"], found["b"]["found"]) == (0, 1, 1)
    assert (found["c"]["found"], found["c"]["reason"]) == (None, "the destination has no file for the stream")
    assert (found["idle"]["found"], found["idle"]["expected"]) == (0, 0)


def test_a_replaced_file_counts_whole(tmp_path: Path) -> None:
    """Another file of the same name, or one that shrank, is new from its first line."""
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n" * 3)
    counter = jsonl(tmp_path)
    counter.before(FAR)
    (tmp_path / "new").write_text("{}\n" * 4)
    (tmp_path / "new").replace(path)
    assert counter.after({"a": seen(4)}, None, FAR)["a"]["found"] == 4


def test_a_large_file_is_not_counted_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its totals stay unknown; what was added is still counted."""
    monkeypatch.setattr(files, "COUNT_BEFORE_BYTES", 5)
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n" * 3)
    counter = jsonl(tmp_path)
    assert counter.before(FAR) == {"a.jsonl": None}
    with path.open("a") as file:
        file.write("{}\n")
    assert counter.after({"a": seen(1)}, None, FAR)["a"] == {
        "rows": None,
        "before": None,
        "mode": "rows",
        "found": 1,
        "expected": 1,
        "reason": None,
    }


def test_one_file_for_all_streams(tmp_path: Path) -> None:
    """Rows of two streams in one file cannot be told apart."""
    counter = jsonl(tmp_path, custom_name="all")
    with pytest.raises(NotCountable):
        counter.after({"a": seen(1), "b": seen(1)}, None, FAR)


def test_csv_files_are_counted_without_header(tmp_path: Path) -> None:
    """Each run starts its file afresh; files of earlier runs do not count."""
    config = {"output_path": str(tmp_path), "file_naming_scheme": "{stream_name}-{timestamp}.csv"}
    old = tmp_path / "a-2020.csv"
    old.write_text("id\n1\n")
    os.utime(old, (0, 0))
    counter = files.CsvCounter(config, "", "", None)
    assert counter.before(FAR) == {"a-2020.csv": None}
    (tmp_path / "a-2026.csv").write_text('id\r\n"x\ny"\r\n2\r\n')
    found = counter.after({"a": seen(2), "b": seen(1)}, None, FAR)
    assert (found["a"]["mode"], found["a"]["found"], found["a"]["expected"]) == ("replaced", 2, 2)
    assert found["b"]["found"] is None


def test_a_csv_file_belongs_to_the_longest_stream_name_that_it_matches(tmp_path: Path) -> None:
    """A time may look like anything, so the files of `a-b` match the pattern of `a` too."""
    config = {"output_path": str(tmp_path), "file_naming_scheme": "{stream_name}-{timestamp}.csv"}
    counter = files.CsvCounter(config, "", "", None)
    counter.before(FAR)
    (tmp_path / "a-2026.csv").write_text("id\n1\n")
    (tmp_path / "a-b-2026.csv").write_text("id\n1\n2\n")
    found = counter.after({"a": seen(1), "a-b": seen(2)}, None, FAR)
    assert {stream: one["found"] for stream, one in found.items()} == {"a": 1, "a-b": 2}


@pytest.mark.parametrize("config", [{"escape_character": "\\"}, {"encoding": "utf-16"}, {"stream_maps": {"a": None}}])
def test_csv_settings_that_are_not_understood(config: Any) -> None:
    """Better no count than a wrong one."""
    with pytest.raises(NotCountable):
        files.CsvCounter(config, "", "", None)


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=2, max_size=2), max_size=8),
    st.integers(1, 9),
)
def test_csv_rows_as_the_library_counts_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], chunk: int
) -> None:
    """Quotes, line breaks in quotes and any cutting into chunks."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(text.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        assert files.count_csv_rows(str(path), FAR) == len(rows)


def test_a_count_that_takes_too_long(tmp_path: Path) -> None:
    """The deadline ends it with a reason."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(NotCountable, match="too long"):
        files.count_lines(str(tmp_path / "a.jsonl"), 0, time.monotonic() - 1)
