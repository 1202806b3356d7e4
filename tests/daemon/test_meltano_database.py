"""Meltano's database: which it is, at which revision, and its rows put right."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flx_api.daemon.meltano_database import (
    fail_rows,
    latest_revision,
    resolve_uri,
    sqlite_file,
    sqlite_revision,
)

RUN = "01a20685-4438-78fc-852c-5d122d8f2e45"
SYSTEM, ROOT = Path("/p/.meltano"), Path("/p")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    ("configured", "resolved"),
    [
        (None, "sqlite:////p/.meltano/meltano.db"),
        ("sqlite:///$MELTANO_SYS_DIR_ROOT/x.db", "sqlite:////p/.meltano/x.db"),
        ("sqlite:///${MELTANO_PROJECT_ROOT}/x.db", "sqlite:////p/x.db"),
        ("sqlite:///here.db", "sqlite:////p/here.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://u:$SECRET@h/d", "postgresql://u:pw@h/d"),
        ("postgresql://u:$UNKNOWN@h/d", "postgresql://u:$UNKNOWN@h/d"),
        ("postgresql://u:$FLX_KEY@h/d", "postgresql://u:$FLX_KEY@h/d"),
    ],
)
def test_resolve_uri(configured: str | None, resolved: str) -> None:
    assert resolve_uri(configured, SYSTEM, ROOT, {"SECRET": "pw", "FLX_KEY": "ours"}) == resolved


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////p/x.db", "/p/x.db"),
        ("sqlite:////p/x.db?timeout=3", "/p/x.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("postgresql://h/d", None),
    ],
)
def test_sqlite_file(uri: str, path: str | None) -> None:
    assert sqlite_file(uri) == path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The tables as Meltano makes them, as far as we use them."""
    # A name that means something in a URI.
    path = tmp_path / "100%23#?.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('abc')")
        connection.execute(
            "CREATE TABLE runs (id INTEGER PRIMARY KEY, run_id CHAR(32), state TEXT, ended_at DATETIME, payload TEXT)"
        )
        connection.executemany(
            "INSERT INTO runs (run_id, state, payload) VALUES (?, ?, ?)",
            [
                (RUN.replace("-", ""), "SUCCESS", "{}"),
                (RUN.replace("-", ""), "RUNNING", '{"singer_state": {"a": 1}}'),
                (RUN.replace("-", ""), "RUNNING", None),
                ("0" * 32, "RUNNING", "{}"),
            ],
        )
    return path


def test_only_running_rows_of_the_run_become_failed(database: Path) -> None:
    assert fail_rows(str(database), RUN, NOW, "gone") == 2
    assert fail_rows(str(database), RUN, NOW, "again") == 0
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT state, ended_at, payload FROM runs ORDER BY id").fetchall()
    assert [state for state, *_ in rows] == ["SUCCESS", "FAIL", "FAIL", "RUNNING"]
    assert [ended for _, ended, _ in rows] == [None, *["2026-01-02 03:04:05.678901"] * 2, None]
    assert json.loads(rows[1][2]) == {"singer_state": {"a": 1}, "error": "gone"}
    assert json.loads(rows[2][2]) == {"error": "gone"}


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        fail_rows(str(tmp_path / "none.db"), RUN, NOW, "gone")
    assert sqlite_revision(str(tmp_path / "none.db")) is None
    assert not (tmp_path / "none.db").exists()


def test_revisions(database: Path, tmp_path: Path) -> None:
    assert sqlite_revision(str(database)) == "abc"
    assert latest_revision(tmp_path) is None
    lock = tmp_path / "lib" / "python3.11" / "site-packages" / "meltano" / "migrations" / "db.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("def\n")
    assert latest_revision(tmp_path) == "def"
