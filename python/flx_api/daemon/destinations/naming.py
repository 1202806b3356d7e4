"""Where a loader puts a stream: its own rules, repeated here as pure functions.

Strategy: one function per loader, written after its source (target-jsonl 0.1.4, meltanolabs-target-csv 0.5.0,
target-duckdb 0.8.0, meltanolabs-target-postgres 0.8.1) and checked against real runs of it. A config that changes the
rules in a way not repeated here is `NotCountable`, with a reason.

Rules:
- Pure but for `distribution_of`, which lists one folder.
"""

# Pathlib, with what it imports, would be part of every start.
# ruff: noqa: PTH100, PTH111, PTH118, PTH119, PTH120, PTH122, PTH208

from __future__ import annotations

import os
import re
from typing import Any

# PostgreSQL cuts longer identifiers silently; the catalogue then holds the short form.
_PG_IDENTIFIER_BYTES = 63


class NotCountable(Exception):
    """The destination cannot be counted; `str()` is the reason, without paths and secrets."""


def distribution_of(executable: str, known: tuple[str, ...]) -> str | None:
    """Which of the known distributions is installed in the venv that an executable belongs to."""
    venv = os.path.dirname(os.path.dirname(os.path.abspath(executable)))
    wanted = {name.replace("-", "_"): name for name in known}
    try:
        versions = [name for name in os.listdir(os.path.join(venv, "lib")) if name.startswith("python")]
    except OSError:
        return None
    command = os.path.basename(executable)
    for version in versions:
        site = os.path.join(venv, "lib", version, "site-packages")
        try:
            names = os.listdir(site)
        except OSError:
            continue
        for name in names:
            stem, dash, rest = name.partition("-")
            found = wanted.get(stem.lower())
            # The command must be the loader's own: a venv may hold several programs.
            if found and dash and rest.endswith(".dist-info") and found.endswith(command):
                return found
    return None


def python_of(executable: str) -> str:
    """The interpreter of the venv that an executable belongs to."""
    python = os.path.join(os.path.dirname(os.path.abspath(executable)), "python")
    if not os.access(python, os.X_OK):
        msg = "the loader's own Python was not found"
        raise NotCountable(msg)
    return python


def refuse_stream_maps(config: dict[str, Any]) -> None:
    """Stream maps in a loader rename, drop and duplicate streams on the way."""
    if config.get("stream_maps"):
        msg = "the loader's stream_maps may rename or filter streams"
        raise NotCountable(msg)


def jsonl_pattern(config: dict[str, Any], stream: str) -> tuple[str, re.Pattern[str]]:
    """Folder and file name pattern of a stream; with `do_timestamp_file` every run makes a file of its own."""
    folder = os.path.expanduser(config.get("destination_path") or "") or "."
    name = re.escape(config.get("custom_name") or stream)
    stamp = r"-\d{8}T\d{6}" if config.get("do_timestamp_file", True) else ""
    return _split(folder, name, stamp + r"\.jsonl")


def csv_pattern(config: dict[str, Any], stream: str) -> tuple[str, re.Pattern[str]]:
    """Folder and file name pattern of a stream, after the loader's naming scheme."""
    scheme = config.get("file_naming_scheme") or "{stream_name}.csv"
    if "{stream_name}" not in scheme:
        msg = "file_naming_scheme puts all streams into one file"
        raise NotCountable(msg)
    folder = config.get("output_path", config.get("destination_path", config.get("output_path_prefix"))) or "."
    folder, _, scheme = f"{folder}/{scheme}".rpartition("/")
    if "{" in folder:
        msg = "file_naming_scheme names folders by stream or time"
        raise NotCountable(msg)
    name = re.escape(scheme).replace(r"\{stream_name\}", re.escape(stream))
    name = name.replace(r"\{datestamp\}", ".+").replace(r"\{timestamp\}", ".+")
    return folder, re.compile(name + r"\Z")


def _split(folder: str, escaped_name: str, tail: str) -> tuple[str, re.Pattern[str]]:
    if "/" in escaped_name:
        inner, _, escaped_name = escaped_name.rpartition("/")
        folder = os.path.join(folder, re.sub(r"\\(.)", r"\1", inner))
    return folder, re.compile(escaped_name + tail + r"\Z")


def duckdb_path(config: dict[str, Any]) -> str:
    """The database file; anything that is not the file's own catalogue is refused."""
    path = config.get("path") or config.get("filepath") or ""
    if not path or path == ":memory:" or path.startswith(("md:", "motherduck:")) or config.get("token"):
        msg = "the database is not a local file"
        raise NotCountable(msg)
    stem = os.path.splitext(os.path.basename(path))[0]
    if (config.get("database") or config.get("dbname") or stem) != stem:
        msg = "the loader writes to an attached database"
        raise NotCountable(msg)
    return str(path)


def duckdb_table(config: dict[str, Any], stream: str) -> tuple[str, str]:
    """Schema and table of a stream: `schema-table`, `catalogue-schema-table` or `table`, lower case, no dots."""
    parts = stream.split("-")
    own_schema, table = None, stream
    if len(parts) == 2:  # noqa: PLR2004
        own_schema, table = parts
    elif len(parts) > 2:  # noqa: PLR2004
        own_schema, table = parts[1], "_".join(parts[2:])
    mapping = config.get("schema_mapping") or {}
    if own_schema is not None and own_schema in mapping:
        schema = mapping[own_schema].get("target_schema")
    else:
        schema = (config.get("default_target_schema") or "").strip()
    if not schema:
        msg = "the loader has no target schema for the stream"
        raise NotCountable(msg)
    return schema, table.replace(".", "_").replace("-", "_").lower()


def duckdb_schemas(config: dict[str, Any]) -> list[str]:
    """All schemas the loader may write to."""
    schemas = [str(entry.get("target_schema")) for entry in (config.get("schema_mapping") or {}).values()]
    return sorted({(config.get("default_target_schema") or "").strip(), *schemas} - {""})


def postgres_table(config: dict[str, Any], stream: str) -> tuple[str | None, str]:
    """Schema (None: the search path) and table of a stream, in the case they are written in."""
    parts = stream.split("-")
    table = stream if len(parts) == 1 else parts[-1]
    schema = postgres_schema(config) or (parts[-2] if len(parts) in (2, 3) else None)
    return (None if schema is None else _pg_identifier(schema)), _pg_identifier(table)


def postgres_schema(config: dict[str, Any]) -> str | None:
    """The configured schema; the loader's own default is `melty`."""
    return config.get("default_target_schema", "melty") or None


def _pg_identifier(name: str) -> str:
    return name.encode()[:_PG_IDENTIFIER_BYTES].decode("utf-8", "ignore")
