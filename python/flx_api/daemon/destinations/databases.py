"""Counting tables: the job for a script that runs in the loader's own Python, and what its answer means.

Strategy: the loader's venv has the driver and, for DuckDB, the only engine version that is certain to read the file.
The job goes to the script as JSON on stdin, the answer comes back as JSON on stdout. Tables are counted before and
after; of a stream with key properties, the distinct keys that were piped are looked up as well.

Rules:
- The job names the config file; the script reads the password itself. Nothing secret is in argv, job or answer.
- The script is killed at the deadline; it is in our process group and dies with us.
"""

# Pathlib, with what it imports, would be part of every start.
# ruff: noqa: PTH100, PTH110, PTH118, PTH120

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from .files import unseen
from .naming import (
    NotCountable,
    duckdb_path,
    duckdb_schemas,
    duckdb_table,
    postgres_schema,
    postgres_table,
    python_of,
    refuse_stream_maps,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Table = tuple[str | None, str]


def run_script(
    python: str, script: str, job: dict[str, object], deadline: float, child_setup: Callable[[], None] | None
) -> dict[str, Any]:
    """One answer of a counting script, or NotCountable."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), script)
    job["seconds"] = left = max(deadline - time.monotonic(), 0.1)
    try:
        done = subprocess.run(  # noqa: S603
            [python, "-I", path],
            input=json.dumps(job).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=left,
            check=False,
            preexec_fn=child_setup,  # the shim has one thread
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        msg = "counting took too long"
        raise NotCountable(msg) from None
    except (OSError, ValueError):
        msg = "the counting script gave no answer"
        raise NotCountable(msg) from None
    if not isinstance(answer, dict) or "error" in answer:
        raise NotCountable(str(answer.get("error")) if isinstance(answer, dict) else "the answer is not understood")
    return answer


class _TableCounter:
    """What the two database loaders have in common: tables in, comparisons out."""

    script = ""
    folds_case = False

    def __init__(
        self, config: dict[str, Any], config_path: str, executable: str, setup: Callable[[], None] | None
    ) -> None:
        refuse_stream_maps(config)
        self._config, self._config_path = config, config_path
        self._python, self._setup = python_of(executable), setup
        self._before: dict[str, int | None] = {}

    def table_of(self, stream: str) -> Table:
        raise NotImplementedError

    def columns_of(self, keys: list[str]) -> list[str]:
        raise NotImplementedError

    def mode_of(self, seen: dict[str, Any]) -> str:
        raise NotImplementedError

    def schemas(self) -> list[str]:
        raise NotImplementedError

    def before(self, deadline: float) -> dict[str, int | None]:
        """Rows of every table that the loader may write to."""
        self._before = self._ask({"schemas": self.schemas()}, deadline)["tables"]
        return self._before

    def after(
        self, piped: dict[str, dict[str, Any]], keys_path: str | None, deadline: float
    ) -> dict[str, dict[str, object]]:
        """Rows of the tables of these streams and the comparison for each."""
        tables, lookups, found = {}, [], {}
        for stream, seen in piped.items():
            try:
                tables[stream] = self.table_of(stream)
            except NotCountable as reason:
                found[stream] = unseen(str(reason))
                continue
            keyed = seen["key_properties"] and seen["records"] and seen["distinct_keys"] is not None
            if keyed and keys_path is not None and self.mode_of(seen) == "keys":
                columns = self.columns_of(seen["key_properties"])
                lookups.append({"stream": stream, "table": tables[stream], "columns": columns})
        job = {"tables": list(tables.values()), "lookups": lookups, "keys_path": keys_path}
        answer = self._ask(job, deadline)
        filled = Counter(self._place(table) for stream, table in tables.items() if piped[stream]["records"])
        for stream, table in tables.items():
            name = _label(table)
            if filled[self._place(table)] > 1 and piped[stream]["records"]:
                # One may have written over the other's rows, and no key of either would be missed.
                found[stream] = unseen("several streams go to the stream's table")
                continue
            found[stream] = self._compare(
                piped[stream], answer["tables"].get(name), self._rows_before(name), answer["found"].get(stream)
            )
        return found

    def _place(self, table: Table) -> str:
        """The same for names that the database takes for one."""
        return _label(table).lower() if self.folds_case else _label(table)

    def _rows_before(self, name: str) -> int | None:
        # A table that was not there had no rows; one that was there and could not be counted is None.
        return self._before.get(name, 0)

    def _compare(
        self, seen: dict[str, Any], rows: int | None, before: int | None, present: int | None
    ) -> dict[str, object]:
        records, mode = seen["records"], self.mode_of(seen)
        if rows is None and records:
            return unseen("the destination has no table for the stream, or it could not be counted")
        found: int | None = None
        expected: int | None = records
        reason = None
        if not records:
            # Nothing was piped: nothing need be there, and what another writer does is not ours to judge.
            found = 0
        elif mode == "keys" and present is not None:
            found, expected = present, seen["distinct_keys"]
        elif mode == "replaced":
            found = rows
        elif rows is None or before is None:
            reason = "the table was not counted before the run"
        elif mode == "rows" or rows - before == records:
            mode, found = "rows", rows - before
        else:
            # Without the keys only a run that added a row per record proves anything.
            reason = "the keys are too many, or could not be looked up"
        return {
            "rows": rows,
            "before": before,
            "mode": mode,
            "found": found,
            "expected": None if found is None else expected,
            "reason": reason,
        }

    def _ask(self, job: dict[str, object], deadline: float) -> dict[str, Any]:
        job |= {"config_path": self._config_path, "path": self._config.get("path") or self._config.get("filepath")}
        return run_script(self._python, self.script, job, deadline, self._setup)


class DuckdbCounter(_TableCounter):
    """Tables of target-duckdb: appends without a key, upserts with one."""

    script = "count_duckdb.py"
    folds_case = True

    def __init__(
        self, config: dict[str, Any], config_path: str, executable: str, setup: Callable[[], None] | None
    ) -> None:
        super().__init__(config, config_path, executable, setup)
        self._path = duckdb_path(config)
        if config.get("hard_delete"):
            msg = "hard_delete removes rows after loading them"
            raise NotCountable(msg)

    def before(self, deadline: float) -> dict[str, int | None]:
        """Rows of every table in the target schemas; a database that does not exist has none."""
        return super().before(deadline) if os.path.exists(self._path) else {}

    def schemas(self) -> list[str]:
        """All schemas the loader may write to."""
        return duckdb_schemas(self._config)

    def table_of(self, stream: str) -> Table:
        """Schema and table; DuckDB compares names without case."""
        return duckdb_table(self._config, stream)

    def columns_of(self, keys: list[str]) -> list[str]:
        """The loader writes column names in lower case."""
        return [key.lower() for key in keys]

    def mode_of(self, seen: dict[str, Any]) -> str:
        """Upserts by key, else appends."""
        return "keys" if seen["key_properties"] else "rows"


class PostgresCounter(_TableCounter):
    """Tables of meltanolabs-target-postgres: appends without a key, upserts with one, versions may replace."""

    script = "count_postgres.py"

    def __init__(
        self, config: dict[str, Any], config_path: str, executable: str, setup: Callable[[], None] | None
    ) -> None:
        super().__init__(config, config_path, executable, setup)
        if (config.get("ssh_tunnel") or {}).get("enable"):
            msg = "the server is behind an SSH tunnel of the loader"
            raise NotCountable(msg)
        if config.get("load_method") == "overwrite":
            msg = "load_method overwrite is not understood by the counter"
            raise NotCountable(msg)

    def schemas(self) -> list[str]:
        """The configured schema; without one any schema may be meant and all are counted."""
        schema = postgres_schema(self._config)
        return [] if schema is None else [schema]

    def table_of(self, stream: str) -> Table:
        """Schema and table as written."""
        return postgres_table(self._config, stream)

    def columns_of(self, keys: list[str]) -> list[str]:
        """Column names are kept."""
        return keys

    def mode_of(self, seen: dict[str, Any]) -> str:
        """Upserts by key; a version that is activated with hard_delete removes all older rows; else appends."""
        if seen["key_properties"]:
            return "keys"
        replaces = self._config.get("hard_delete") and self._config.get("activate_version", True)
        return "replaced" if replaces and seen["activate_versions"] else "rows"


def _label(table: Table) -> str:
    schema, name = table
    return f"{schema or ''}.{name}"
