"""Counting what a loader's destination holds, before and after the loader ran.

Strategy: the executable's venv says which loader it really is (the installed distribution, not the plugin's name), its
resolved config says where it writes, and `naming` repeats the loader's own rules for which table or file a stream goes
to. Files are counted here; databases by a small script in the loader's own Python, which has the driver and the very
version of the database engine that wrote. What each comparison means:

    rows      rows after minus rows before   against   records piped             (appending loaders, no key)
    replaced  rows after                     against   records piped             (loaders that start afresh)
    keys      distinct keys present          against   distinct keys piped       (upserting loaders)

Rules:
- Imported by the meter shell as the top-level package `destinations` and by tests as part of `flx_api`: relative
  imports and the standard library only.
- What cannot be counted is `none` with a reason; a guess is never made. Nothing here raises for a bad destination.
- A password is never in an argv, a record or a reason: scripts get the config's path and read it themselves.
- Each count has 30 s.
"""

# Pathlib, with what it imports, would be part of every start.
# ruff: noqa: PTH110, PTH118, PTH123, PTH208

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from .naming import NotCountable, distribution_of

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 30.0


class Counter(Protocol):
    """Counts one loader's destination."""

    def before(self, deadline: float) -> dict[str, int | None]:
        """Rows per file or table as far as they are worth counting; NotCountable."""
        ...

    def after(
        self, piped: dict[str, dict[str, Any]], keys_path: str | None, deadline: float
    ) -> dict[str, dict[str, object]]:
        """The comparison for each stream that was piped; NotCountable."""
        ...


METHODS = {
    "target-jsonl": "jsonl",
    "meltanolabs-target-csv": "csv",
    "target-duckdb": "duckdb",
    "meltanolabs-target-postgres": "postgres",
}


def counter_of(method: str) -> Callable[..., Counter]:
    """The counter's class, imported when it is wanted: databases bring `subprocess` with them."""
    if method in {"jsonl", "csv"}:
        from .files import CsvCounter, JsonlCounter  # noqa: PLC0415

        return JsonlCounter if method == "jsonl" else CsvCounter
    from .databases import DuckdbCounter, PostgresCounter  # noqa: PLC0415

    return DuckdbCounter if method == "duckdb" else PostgresCounter


class Before:
    """The first count: the counter that was chosen (None: not countable) and what it saw."""

    def __init__(self, method: str, counter: Counter | None, reason: str | None, tables: dict[str, int | None]) -> None:
        self.method, self.counter, self.reason, self.tables = method, counter, reason, tables

    def record(self) -> dict[str, object]:
        """The fields of the `destination` record of the first count; streams are not known yet, tables are."""
        return {
            "ok": self.reason is None,
            "method": self.method,
            "reason": self.reason,
            "streams": {},
            "tables": self.tables,
        }


def count_before(argv: list[str], config_path: str | None, child_setup: Callable[[], None] | None) -> Before:
    """Choose a counter for the loader of this argv and count for the first time."""
    method = "none"
    try:
        distribution = distribution_of(argv[0], tuple(METHODS))
        if distribution is None:
            return Before("none", None, "no counter is known for this loader", {})
        method = METHODS[distribution]
        if config_path is None:
            return Before(method, None, "the loader was started without a config file", {})
        with open(config_path, encoding="utf-8") as file:
            config = json.load(file)
        counter = counter_of(method)(config, config_path, argv[0], child_setup)
        return Before(method, counter, None, counter.before(time.monotonic() + DEADLINE_S))
    except NotCountable as reason:
        return Before(method, None, str(reason), {})


def count_after(
    before: Before | None, folder: str, loader_number: int, child_setup: Callable[[], None] | None
) -> dict[str, object]:
    """Count again: the fields of the second `destination` record.

    Args:
        before: the first count.
        folder: the run's meter folder.
        loader_number: the number of the loader's meter file; its producer is the nearest one below it.
        child_setup: run in the child before a counting script starts.
    """
    del child_setup  # the counter has it
    if before is None:
        return {}
    fields: dict[str, object] = {"ok": False, "method": before.method, "reason": before.reason, "streams": {}}
    if before.counter is None:
        return fields
    piped, keys_path = producer_of(folder, loader_number)
    if piped is None:
        return fields | {"reason": "the producer before the loader left no complete record"}
    try:
        found = before.counter.after(piped, keys_path, time.monotonic() + DEADLINE_S)
    except NotCountable as reason:
        return fields | {"reason": str(reason)}
    return fields | {"ok": True, "reason": None, "streams": found}


def producer_of(folder: str, loader_number: int) -> tuple[dict[str, dict[str, Any]] | None, str | None]:
    """What the producer next to the loader piped (its last snapshot's streams) and its keys file, if complete."""
    names = sorted((name for name in os.listdir(folder) if name.endswith(".jsonl")), reverse=True)
    for name in names:
        number, _, rest = name.partition("-")
        if int(number) >= loader_number or not rest.startswith(("extractor-", "mapper-")):
            continue
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file if line.endswith("\n")]
        if not records or records[0].get("purpose") != "sync":
            continue
        end = records[-1]
        if end.get("kind") != "end" or end.get("snapshot") is None:
            return None, None
        keys_path = path.removesuffix(".jsonl") + ".keys"
        complete = end.get("keys_complete") and os.path.exists(keys_path)
        return end["snapshot"]["streams"], keys_path if complete else None
    return None, None
