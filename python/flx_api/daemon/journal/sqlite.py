"""SQLite: one file, opened so that what is committed is on the disk, and what its faults mean.

Rules:
- Everything about SQLite is in this module.
- What was committed is moved from the log into the file between commits (`catch_up`), at a pace of our own; SQLite
  does it within a commit only where that was not enough.
- That nobody else changes the file is held by the lock of the data folder (`flx_api.daemon.lock`).
- One connection asks the disk to keep what was written: the one that commits. What a failed fsync of another one leaves
  undone would be told to that one, and a commit be acknowledged that is not on the disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from flx_api.daemon.journal.mark import Mark
from flx_api.daemon.journal.pace import MOST_PAGES, Pace
from flx_api.errors import FlxError, Unavailable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine, Transaction
    from sqlalchemy.pool import PoolProxiedConnection

_FULL = frozenset({sqlite3.SQLITE_FULL})
# Well above what our own pace lets gather. The log's file stays as large as it was once, up to this.
_LOG_PAGES: Final = MOST_PAGES * 5 // 4
_FRAME_BYTES: Final = 4096 + 24


class Sqlite:
    """A database in a file (`flx_api.daemon.journal.database.Database`)."""

    insert = staticmethod(insert)
    is_near = True

    def __init__(self, url: str, *, busy_timeout_ms: int) -> None:
        self._url = url
        self._busy_timeout_ms = busy_timeout_ms
        file = file_of(url)
        self.mark = Mark(file.with_name(file.name + "-mark"))
        self._pace = Pace()

    def connect_writer(self, before: int | None = None) -> Connection:  # noqa: ARG002 - files know no sessions
        """Open the file to change it."""
        return engine_of(self._url, read_only=False, busy_timeout_ms=self._busy_timeout_ms).connect()

    def connect_reader(self) -> Connection:
        """Open the file to read it."""
        return engine_of(self._url, read_only=True, busy_timeout_ms=self._busy_timeout_ms).connect()

    def close(self) -> None:
        """Close what is beside the connections."""
        self.mark.close()

    def begin_at_once(self, connection: Connection) -> Transaction:
        """Begin a transaction, unless somebody else has the file's lock."""
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA busy_timeout=0")
        try:
            return connection.begin()
        finally:
            driver.execute(f"PRAGMA busy_timeout={self._busy_timeout_ms}")

    @property
    def is_behind(self) -> bool:
        """Whether there is something in the log."""
        return self._pace.is_worth_it

    def committed(self, changes: int) -> bool:
        """Whether the log must be moved now."""
        self._pace.committed(changes)
        return self._pace.is_due

    def catch_up(self, connection: Connection) -> None:
        """Move the log into the file, as far as readers let it."""
        driver: Any = connection.connection.driver_connection
        began = monotonic()
        try:
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            # What is committed is on the disk. A fault that is more than one of this moment meets the next commit.
            self._pace.failed()
        else:
            self._pace.moved(monotonic() - began)

    def patient(self, connection: Connection) -> AbstractContextManager[None]:  # noqa: ARG002
        """Statements have no end but their own."""
        return contextlib.nullcontext()

    def session(self, connection: Connection) -> int | None:  # noqa: ARG002
        """Files know no sessions."""
        return None

    def is_lost(self, connection: Connection) -> bool:  # noqa: ARG002
        """What went wrong once may go well the next time."""
        return False

    def history(self, connection: Connection) -> str:  # noqa: ARG002
        """The mark tells."""
        return ""

    def transaction(self, connection: Connection) -> str | None:  # noqa: ARG002
        """A commit that fails is undone, and that it failed is known."""
        return None

    def has_committed(self, connection: Connection, transaction: str) -> bool | None:  # noqa: ARG002
        """Nobody asks."""
        return False

    def may_repeat(self, error: BaseException) -> bool:  # noqa: ARG002
        """There is one writer, and it has the lock from the beginning."""
        return False

    def fault_of(self, error: BaseException) -> FlxError | None:
        """Faults of the disk, the file or its locks."""
        origin = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(origin, sqlite3.Error) or isinstance(
            origin, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError | sqlite3.DataError
        ):
            return None
        full = getattr(origin, "sqlite_errorcode", None) in _FULL
        return Unavailable(code="insufficient_storage" if full else "storage_unavailable")


def engine_of(url: str, *, read_only: bool, busy_timeout_ms: int = 2000) -> Engine:
    """An engine whose connections are set up for the journal: WAL, an fsync at each commit, foreign keys."""
    # The loop and the writer's thread have the writer's connection in turn.
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args={"check_same_thread": False})

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
            connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit={_LOG_PAGES * _FRAME_BYTES}")

    def begin(dbapi_connection: PoolProxiedConnection) -> None:
        # A writer that begins DEFERRED can be refused in its middle, where the busy timeout does not apply.
        dbapi_connection.cursor().execute("BEGIN" if read_only else "BEGIN IMMEDIATE")

    # In the dialect's own place: a listener for it would make every statement look for listeners.
    engine.dialect.do_begin = begin  # type: ignore[method-assign]
    return engine


def file_of(url: str) -> Path:
    """The file that a URL names."""
    return Path(make_url(url).database or "")
