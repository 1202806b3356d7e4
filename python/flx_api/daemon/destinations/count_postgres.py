"""Count tables and look up keys in PostgreSQL, with the loader's own Python and psycopg.

Strategy: started as `python -I count_postgres.py`; one job on stdin, one answer on stdout (databases.py says what). One
read-only transaction; small tables first, so that a huge one costs only its own count. Keys go to the server in chunks
and are compared in the column's own type.

Rules:
- Standalone: no import of ours. The password is read from the loader's config file and appears nowhere else.
- Faults are answered by class name; a message could repeat data.
"""

# Pathlib, with what it imports, would be part of every start; SQL has quoted identifiers and bound values.
# ruff: noqa: PTH111, PTH113, PTH123, S608

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

# The driver has no types here: this runs in another environment.
Driver = Any
Job = dict[str, Any]

CHUNK = 20_000
# The loader makes `timestamp` columns of date-times; a value with an offset must go through the time zone.
THROUGH = {"timestamp without time zone": "timestamptz"}


def connection_arguments(config: Job) -> Job:
    """Arguments of psycopg.connect for the loader's config."""
    if config.get("sqlalchemy_url"):
        from sqlalchemy.engine import make_url  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

        url = make_url(config["sqlalchemy_url"])
        arguments = {
            "host": url.host,
            "port": url.port,
            "user": url.username,
            "password": url.password,
            "dbname": url.database,
        }
        arguments.update({key: value for key, value in url.query.items() if isinstance(value, str)})
    else:
        arguments = {
            "host": config.get("host"),
            "port": config.get("port", 5432),
            "user": config.get("user"),
            "password": config.get("password"),
            "dbname": config.get("database"),
        }
        folder = config.get("ssl_storage_directory", ".secrets")
        if config.get("ssl_enable"):
            arguments["sslmode"] = config.get("ssl_mode", "verify-full")
            root = config.get("ssl_certificate_authority", "~/.postgresql/root.crl")
            arguments["sslrootcert"] = file_of(root, folder + "/root.crt")
        if config.get("ssl_client_certificate_enable"):
            certificate = config.get("ssl_client_certificate", "~/.postgresql/postgresql.crt")
            key = config.get("ssl_client_private_key", "~/.postgresql/postgresql.key")
            arguments["sslcert"] = file_of(certificate, folder + "/cert.crt")
            arguments["sslkey"] = file_of(key, folder + "/pkey.key")
    return {key: value for key, value in arguments.items() if value is not None}


def file_of(value: str, stored: str) -> str:
    """The loader accepts a path or the certificate itself, which it stores under a fixed name."""
    path = os.path.expanduser(value)
    return path if os.path.isfile(path) else stored


def count(job: Job) -> Job:
    """The answer to a job."""
    import psycopg  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    from psycopg import sql  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    deadline = time.monotonic() + job["seconds"] * 0.8
    with open(job["config_path"], encoding="utf-8") as file:
        arguments = connection_arguments(json.load(file))
    arguments["connect_timeout"] = max(int(job["seconds"] / 2), 2)
    tables, found = {}, {}
    with psycopg.connect(**arguments) as connection:
        connection.read_only = True
        with connection.cursor() as cursor:
            wanted = wanted_tables(cursor, job)
            for schema, table in wanted:
                tables[label(schema, table)] = rows_of(cursor, schema, table, deadline)
            for lookup in job.get("lookups", ()):
                schema, table = lookup["table"]
                if label(schema, table) in tables:
                    # One stream whose keys cannot be compared must not cost the others their counts.
                    with contextlib.suppress(psycopg.Error, KeyError), connection.transaction():
                        found[lookup["stream"]] = look_up(cursor, sql, job["keys_path"], lookup)
    return {"tables": tables, "found": found}


def label(schema: str | None, table: str) -> str:
    """The name of a table in the answer."""
    return (schema or "") + "." + table


def wanted_tables(cursor: Driver, job: Job) -> list[tuple[str | None, str]]:
    """The tables that exist, small ones first."""
    if "schemas" in job:
        condition = (
            "n.nspname = ANY(%s)"
            if job["schemas"]
            else "n.nspname !~ '^(pg_|information_schema)' OR n.nspname = ANY(%s)"
        )
        cursor.execute(
            "SELECT n.nspname, c.relname, n.nspname = current_schema() FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p') AND (" + condition + ") ORDER BY c.reltuples, c.relname",
            [job["schemas"]],
        )
        wanted = []
        for schema, table, current in cursor.fetchall():
            wanted.append((schema, table))
            if current and not job["schemas"]:
                wanted.append((None, table))
        return wanted
    sized = []
    for schema, table in job["tables"]:
        cursor.execute(
            "SELECT c.reltuples FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p') AND n.nspname = coalesce(%s, current_schema()) AND c.relname = %s",
            [schema, table],
        )
        row = cursor.fetchone()
        if row is not None:
            sized.append((row[0], schema, table))
    sized.sort(key=lambda entry: entry[0])
    return [(schema, table) for _, schema, table in sized]


def rows_of(cursor: Driver, schema: str | None, table: str, deadline: float) -> int | None:
    """Rows of a table, or None when time is up or the table may not be read."""
    import psycopg  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    from psycopg import sql  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    left = int((deadline - time.monotonic()) * 1000)
    if left <= 0:
        return None
    try:
        with cursor.connection.transaction():
            cursor.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(left))
            name = sql.Identifier(table) if schema is None else sql.Identifier(schema, table)
            cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(name))
            return int(cursor.fetchone()[0])
    except psycopg.Error:
        return None


def look_up(cursor: Driver, sql: Driver, keys_path: str, lookup: Job) -> int:
    """How many of a stream's keys in the keys file are present in its table."""
    schema, table = lookup["table"]
    cursor.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, NULL) FROM pg_attribute a"
        " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = coalesce(%s, current_schema()) AND c.relname = %s AND a.attnum > 0",
        [schema, table],
    )
    types = {name: (full, plain) for name, full, plain in cursor.fetchall()}
    conditions = []
    for index, column in enumerate(lookup["columns"]):
        full, plain = types[column]
        cast = ("::" + THROUGH[plain] if plain in THROUGH else "") + "::" + full
        conditions.append(
            sql.SQL("t.{} = k.{}{}").format(sql.Identifier(column), sql.Identifier(f"k{index}"), sql.SQL(cast))
        )
    names = [sql.Identifier(f"k{index}") for index in range(len(conditions))]
    query = sql.SQL(
        "SELECT count(*) FROM unnest({arrays}) AS k({names}) WHERE EXISTS (SELECT 1 FROM {table} t WHERE {conditions})"
    ).format(
        arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(conditions)),
        names=sql.SQL(", ").join(names),
        table=sql.Identifier(table) if schema is None else sql.Identifier(schema, table),
        conditions=sql.SQL(" AND ").join(conditions),
    )
    found, chunk = 0, []
    with open(keys_path, encoding="utf-8") as file:
        for line in file:
            stream, values = json.loads(line)
            if stream == lookup["stream"]:
                chunk.append([as_text(value) for value in values])
            if len(chunk) >= CHUNK:
                found += present(cursor, query, chunk)
                chunk = []
    return found + present(cursor, query, chunk)


def present(cursor: Driver, query: Driver, chunk: list[list[str | None]]) -> int:
    """How many keys of one chunk are present."""
    if not chunk:
        return 0
    cursor.execute(query, [[key[index] for key in chunk] for index in range(len(chunk[0]))])
    return int(cursor.fetchone()[0])


def as_text(value: object) -> str | None:
    """A JSON value as PostgreSQL reads it from text."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


if __name__ == "__main__":
    try:
        answer = count(json.load(sys.stdin))
    except Exception as fault:  # noqa: BLE001 (the shim must get an answer)
        answer = {"error": "the database could not be counted (" + type(fault).__name__ + ")"}
    json.dump(answer, sys.stdout)
