"""Counting files that a loader writes: JSON lines and CSV.

Strategy: the first count notes each file of the folder (identity, size); the second reads only what is new. A file that
kept its identity and grew was appended to, so only its new end is read; any other file is read whole.

Rules:
- Lines are counted in chunks of 1 MiB; memory does not grow with the file.
- A CSV line break inside quotes is no row: quotes are balanced, so a break is a row's end when an even number of
  quotes stands before it (a doubled quote keeps the balance).
"""

# Pathlib, with what it imports, would be part of every start.
# ruff: noqa: PTH116, PTH118, PTH123

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from .naming import NotCountable, csv_pattern, jsonl_pattern, refuse_stream_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CHUNK = 1024 * 1024
MAX_FILES = 50_000
# A file up to this size is also counted before the run, so that the ledger can show both totals.
COUNT_BEFORE_BYTES = 64 * 1024 * 1024


def count_lines(path: str, start: int, deadline: float) -> int:
    """Line breaks from an offset to the end of a file."""
    lines = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while chunk := file.read(CHUNK):
            lines += chunk.count(b"\n")
            _check(deadline)
    return lines


def count_csv_rows(path: str, deadline: float) -> int:
    """Rows of a CSV file without its header."""
    rows, quoted = 0, False
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            if b'"' not in chunk:
                rows += 0 if quoted else chunk.count(b"\n")
            else:
                for index, piece in enumerate(chunk.split(b'"')):
                    quoted = quoted != (index > 0)
                    rows += 0 if quoted else piece.count(b"\n")
            _check(deadline)
    return max(rows - 1, 0)


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        msg = "counting took too long"
        raise NotCountable(msg)


def listing(folder: str) -> dict[str, tuple[int, int]]:
    """The files of a folder: name -> (identity, size). A folder that does not exist is empty."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    found[entry.name] = status.st_ino, status.st_size
                if len(found) > MAX_FILES:
                    msg = "the destination folder holds too many files"
                    raise NotCountable(msg)
    except FileNotFoundError:
        return {}
    except OSError:
        msg = "the destination folder cannot be read"
        raise NotCountable(msg) from None
    return found


class JsonlCounter:
    """Files of target-jsonl: one line per record, always appended to."""

    def __init__(
        self, config: dict[str, Any], _config_path: str, _executable: str, _setup: Callable[[], None] | None
    ) -> None:
        self._config = config
        self._folder = jsonl_pattern(config, "x")[0]
        self._before: dict[str, tuple[int, int]] = {}
        self._lines: dict[str, int] = {}

    def before(self, deadline: float) -> dict[str, int | None]:
        """Note every file; count those that are small."""
        self._before = listing(self._folder)
        for name, (_, size) in self._before.items():
            if name.endswith(".jsonl") and size <= COUNT_BEFORE_BYTES:
                self._lines[name] = count_lines(os.path.join(self._folder, name), 0, deadline)
        return {name: self._lines.get(name) for name in self._before if name.endswith(".jsonl")}

    def after(
        self, piped: dict[str, dict[str, Any]], _keys_path: str | None, deadline: float
    ) -> dict[str, dict[str, object]]:
        """Lines that are new, per stream."""
        if self._config.get("custom_name") and len(piped) > 1:
            msg = "custom_name puts all streams into one file"
            raise NotCountable(msg)
        found: dict[str, dict[str, object]] = {}
        for stream, seen in piped.items():
            folder, pattern = jsonl_pattern(self._config, stream)
            if folder != self._folder:
                found[stream] = unseen("the stream's name contains a folder")
                continue
            names = [name for name in listing(folder) if pattern.match(name)]
            if not names and seen["records"]:
                found[stream] = unseen("the destination has no file for the stream")
                continue
            found[stream] = self._stream(names, seen["records"], deadline)
        return found

    def _stream(self, names: list[str], records: int, deadline: float) -> dict[str, object]:
        new, before, known = 0, 0, True
        now = listing(self._folder)
        for name in names:
            identity, size = now[name]
            old_identity, old_size = self._before.get(name, (identity, 0))
            grown = old_identity == identity and size >= old_size
            new += count_lines(os.path.join(self._folder, name), old_size if grown else 0, deadline)
            if name in self._before and grown:
                known = known and name in self._lines
                before += self._lines.get(name, 0)
        return {
            "rows": before + new if known else None,
            "before": before if known else None,
            "mode": "rows",
            "found": new,
            "expected": records,
            "reason": None,
        }


class CsvCounter:
    """Files of meltanolabs-target-csv: a header line, then a row per record; each run starts the file afresh."""

    def __init__(
        self, config: dict[str, Any], _config_path: str, _executable: str, _setup: Callable[[], None] | None
    ) -> None:
        refuse_stream_maps(config)
        if config.get("escape_character") or str(config.get("encoding") or "utf-8").lower() not in ("utf-8", "ascii"):
            msg = "escape_character and encoding are not understood by the counter"
            raise NotCountable(msg)
        self._config = config
        self._folder = csv_pattern(config, "x")[0]
        self._before: dict[str, tuple[int, int]] = {}
        self._started_ns = 0

    def before(self, _deadline: float) -> dict[str, int | None]:
        """Note every file. Rows are not counted: the loader is going to empty the file."""
        self._before = listing(self._folder)
        self._started_ns = time.time_ns()
        return {name: None for name in self._before if name.endswith(".csv")}

    def after(
        self, piped: dict[str, dict[str, Any]], _keys_path: str | None, deadline: float
    ) -> dict[str, dict[str, object]]:
        """Rows of the file that the loader wrote in this run, per stream."""
        found: dict[str, dict[str, object]] = {}
        owned = self._files_by_stream(piped)
        for stream, seen in piped.items():
            folder, names = self._folder, owned[stream]
            # With a time in the name earlier runs left files too; only what this run touched counts.
            touched = [name for name in names if self._touched(os.path.join(folder, name), name)]
            if not touched and seen["records"]:
                found[stream] = unseen("the destination has no file for the stream")
                continue
            rows = sum(count_csv_rows(os.path.join(folder, name), deadline) for name in touched)
            found[stream] = {
                "rows": rows,
                "before": None,
                "mode": "replaced",
                "found": rows,
                "expected": seen["records"],
                "reason": None,
            }
        return found

    def _files_by_stream(self, streams: Iterable[str]) -> dict[str, list[str]]:
        """The files of each stream. With a time in the name `a` matches those of `a-b` too: the longest name has it."""
        patterns = {stream: csv_pattern(self._config, stream)[1] for stream in streams}
        owned: dict[str, list[str]] = {stream: [] for stream in patterns}
        for name in listing(self._folder):
            matching = [stream for stream, pattern in patterns.items() if pattern.match(name)]
            if matching:
                owned[max(matching, key=len)].append(name)
        return owned

    def _touched(self, path: str, name: str) -> bool:
        # File times come from the kernel's coarse clock, which lags by up to one tick.
        return name not in self._before or os.stat(path).st_mtime_ns >= self._started_ns - 20_000_000


def unseen(reason: str) -> dict[str, object]:
    """A stream that the counter cannot see."""
    return {"rows": None, "before": None, "mode": None, "found": None, "expected": None, "reason": reason}
