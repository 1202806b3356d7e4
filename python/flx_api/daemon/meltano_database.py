"""Meltano's own database: is it ready for many runs at once, and is the row of a dead run put right.

Strategy: Meltano keeps a row per extract-load block in `runs`. A run that was killed leaves its row RUNNING, which
blocks its state id until the heartbeat is five minutes old; set to FAIL, the next run starts at once. For SQLite, the
usual case, that is one statement of a millisecond, made here. For any other database the executor asks a child of the
zygote, which has Meltano's own models and drivers.

Rules:
- Only rows of the given run id that are RUNNING change; what Meltano itself wrote about an end is never touched.
- The schema is Meltano's. What is used of it is the table `runs` and the revision in `alembic_version`; a contract test
  with real Meltano covers both.
- No clock: the caller says when.
"""

from __future__ import annotations

import re
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from flx_api.daemon.run_environment import OURS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

BUSY_TIMEOUT_S = 5.0
_SQLITE = "sqlite:///"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def resolve_uri(uri: str | None, shared_system: Path, project_root: Path, environ: Mapping[str, str]) -> str:
    """The database all runs share, as an absolute URI: Meltano's default when none is configured.

    A run works in a private system folder, so `$MELTANO_SYS_DIR_ROOT` must be filled in before it gets there. Our own
    variables are not filled in: no run sees them.
    """
    passed = {name: value for name, value in environ.items() if not name.startswith(OURS)}
    known = {**passed, "MELTANO_SYS_DIR_ROOT": str(shared_system), "MELTANO_PROJECT_ROOT": str(project_root)}
    filled = _VARIABLE.sub(
        lambda match: known.get(match[1] or match[2], match[0]), uri or f"{_SQLITE}$MELTANO_SYS_DIR_ROOT/meltano.db"
    )
    if filled.startswith(_SQLITE) and (name := filled.removeprefix(_SQLITE)) and not name.startswith((":", "/")):
        return f"{_SQLITE}{project_root / name}"
    return filled


def sqlite_file(uri: str) -> str | None:
    """The file of an SQLite URI, None for any other database and for one in memory."""
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return name if name and not name.startswith((":", "file:")) else None


def latest_revision(meltano: Path) -> str | None:
    """The schema revision the installed Meltano works with, from the lock file in its environment."""
    for lock in meltano.glob("lib/python*/site-packages/meltano/migrations/db.lock"):
        return lock.read_text(encoding="ascii").strip()
    return None


def sqlite_revision(path: str) -> str | None:
    """The schema revision of the database file, None when it has none or cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


def fail_rows(path: str, run_id: str, ended_at: datetime, error: str) -> int:
    """Set the run's RUNNING rows to FAIL with an error, as Meltano would have; how many there were.

    Args:
        path: the SQLite file.
        run_id: the attempt id.
        ended_at: an aware time.
        error: a sentence for `meltano` users who look at the row.
    """
    ended = ended_at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    key = uuid.UUID(run_id).hex
    with (
        closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)) as connection,
        connection,
    ):
        # Take the write lock first: between reading and writing a dying Meltano must not slip in.
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(
            "SELECT id, payload FROM runs WHERE run_id = ? AND state = 'RUNNING'", (key,)
        ).fetchall()
        for row_id, payload in rows:
            connection.execute(
                "UPDATE runs SET state = 'FAIL', ended_at = ?, payload = ? WHERE id = ?",
                (ended, _with_error(payload, error), row_id),
            )
    return len(rows)


def _with_error(payload: str | None, error: str) -> str:
    """The row's payload with the error beside what it already holds (a state, perhaps)."""
    try:
        held = msgspec.json.decode(payload or "{}", type=dict[str, object])
    except msgspec.DecodeError:
        held = {}
    return msgspec.json.encode({**held, "error": error}).decode()
