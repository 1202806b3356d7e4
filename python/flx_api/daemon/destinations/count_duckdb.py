"""Count tables and look up keys in a DuckDB file, with the loader's own Python and duckdb.

Strategy: started as `python -I count_duckdb.py`; one job on stdin, one answer on stdout (databases.py says what). The
file is opened read-only while the loader is not running, so its single-writer lock is free. Keys are read by DuckDB
itself from the keys file and compared in the column's own type, the way the loader's COPY read them.

Rules:
- Standalone: no import of ours. Faults are answered by class name; a message could repeat data.
"""

# SQL has quoted identifiers and bound values.
# ruff: noqa: S608

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

# The driver has no types here: this runs in another environment.
Connection = Any
Job = dict[str, Any]


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def count(job: Job) -> Job:
    """The answer to a job."""
    import duckdb  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    deadline = time.monotonic() + job["seconds"] * 0.9
    connection = duckdb.connect(job["path"], read_only=True)
    present = {
        (schema.lower(), table.lower())
        for schema, table in connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
        ).fetchall()
    }
    if "schemas" in job:
        schemas = {schema.lower(): schema for schema in job["schemas"]}
        wanted = [(schemas[schema], table) for schema, table in sorted(present) if schema in schemas]
    else:
        wanted = [(schema, table) for schema, table in job["tables"] if (schema.lower(), table.lower()) in present]
    tables = {}
    for schema, table in wanted:
        rows = None
        if time.monotonic() < deadline:
            query = "SELECT count(*) FROM " + quoted(schema) + "." + quoted(table)
            rows = connection.execute(query).fetchone()[0]
        tables[schema + "." + table] = rows
    found = {}
    for lookup in job.get("lookups", ()):
        schema, table = lookup["table"]
        if (schema.lower(), table.lower()) in present:
            # One stream whose keys cannot be compared must not cost the others their counts.
            with contextlib.suppress(duckdb.Error, KeyError):
                found[lookup["stream"]] = look_up(connection, job["keys_path"], lookup)
    return {"tables": tables, "found": found}


def look_up(connection: Connection, keys_path: str, lookup: Job) -> int:
    """How many of a stream's keys in the keys file are present in its table."""
    schema, table = lookup["table"]
    types = dict(
        connection.execute(
            "SELECT lower(column_name), data_type FROM information_schema.columns "
            "WHERE lower(table_schema) = lower(?) AND lower(table_name) = lower(?)",
            [schema, table],
        ).fetchall()
    )
    keys, conditions = [], []
    for index, column in enumerate(lookup["columns"]):
        keys.append(f"TRY_CAST(json_extract_string(line, '$[1][{index}]') AS {types[column]}) AS k{index}")
        conditions.append(f"t.{quoted(column)} = k.k{index}")
    # One column per line: the delimiter is a control character, which JSON never holds unescaped.
    source = (
        "read_csv(?, columns = {'line': 'VARCHAR'}, delim = '\x01', quote = '', escape = '', header = false,"
        " auto_detect = false, max_line_size = 16777216)"
    )
    query = (
        "SELECT count(*) FROM (SELECT "
        + ", ".join(keys)
        + " FROM "
        + source
        + " WHERE json_extract_string(line, '$[0]') = ?) k"
        " WHERE EXISTS (SELECT 1 FROM "
        + quoted(schema)
        + "."
        + quoted(table)
        + " t WHERE "
        + " AND ".join(conditions)
        + ")"
    )
    return int(connection.execute(query, [keys_path, lookup["stream"]]).fetchone()[0])


if __name__ == "__main__":
    try:
        answer = count(json.load(sys.stdin))
    except Exception as fault:  # noqa: BLE001 (the shim must get an answer)
        answer = {"error": "the database could not be counted (" + type(fault).__name__ + ")"}
    json.dump(answer, sys.stdout)
