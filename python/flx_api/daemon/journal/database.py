"""The database file: how it is opened, how it gets its shape, and what its faults mean.

Strategy: an empty database gets all tables from `tables.metadata` at once and is stamped with the newest revision; one
at that revision is taken as it is; only an older one runs Alembic's migrations. So the usual start does not import
Alembic at all. A test holds that migrations and metadata lead to the same shape and that `HEAD` is Alembic's head.

Rules:
- Everything about SQLite is in this module.
- Making or migrating is one transaction: a kill half-way leaves the database as it was.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, String, Table, create_engine, event, insert, inspect, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from flx_api.daemon.journal.tables import metadata
from flx_api.errors import FlxError, StartupError, Unavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

HEAD = "0004"
"""The newest revision in `migrations/versions`."""

_versions = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True, nullable=False))
_FULL = frozenset({sqlite3.SQLITE_FULL})


def engine_of(url: str, *, read_only: bool, busy_timeout_ms: int = 2000) -> Engine:
    """An engine whose connections are set up for the journal: WAL, an fsync at each commit, foreign keys."""
    engine = create_engine(url, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own BEGIN is too late for a consistent read and never IMMEDIATE: we say BEGIN ourselves.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={busy_timeout_ms}")
        connection.execute("PRAGMA foreign_keys=ON")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            # NORMAL may lose acknowledged commits when the power fails.
            connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer that begins DEFERRED can be refused in its middle, where the busy timeout does not apply.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def file_of(url: str) -> Path:
    """The file that a URL names."""
    return Path(make_url(url).database or "")


def bring_to_head(connection: Connection) -> None:
    """Make or migrate the tables; leaves the connection outside a transaction.

    Raises:
        StartupError: a newer version made this database, or it is not ours.
    """
    with connection.begin():
        tables = inspect(connection).get_table_names()
        if _versions.name not in tables:
            if tables:
                msg = "FLX_DATABASE_URL: the database holds tables of something else"
                raise StartupError(msg)
            metadata.create_all(connection)
            _versions.create(connection)
            connection.execute(insert(_versions), {"version_num": HEAD})
            return
        revision = connection.execute(select(_versions.c.version_num)).scalar_one_or_none()
        if revision != HEAD:
            _upgrade(connection, revision)


def _upgrade(connection: Connection, revision: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - a third of a second that only a database of old costs
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        msg = "FLX_DATABASE_URL: a newer version made this database"
        raise StartupError(msg)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def alembic_config() -> Any:  # noqa: ANN401 - alembic.config.Config, which this module must not import
    """Alembic's configuration, made here so that no ini file has to be shipped or found."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def is_storage_fault(error: BaseException) -> bool:
    """Whether an error is about the disk, the file or its locks, not about what was asked of it."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(origin, sqlite3.Error) and not isinstance(
        origin, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError | sqlite3.DataError
    )


def storage_error(error: BaseException) -> FlxError:
    """What a storage fault is to a caller: 507 when the disk is full, else 503; both may be tried again."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    full = getattr(origin, "sqlite_errorcode", None) in _FULL
    return Unavailable(code="insufficient_storage" if full else "storage_unavailable")
