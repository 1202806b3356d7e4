"""PostgreSQL: one daemon by an advisory lock, nothing waits without an end, and what its faults mean.

Strategy: psycopg's blocking connections, whose every wait ends after a time of ours even when the server is gone
without a word: the loop reads from one of them (docs/decisions/0012). The server ends statements sooner by itself. The
writer's connection holds an advisory lock of its schema, so that of two daemons one waits, and is refused.

Rules:
- Everything about PostgreSQL is in this module.
- A commit whose answer was lost is asked for by its transaction's name, on the next connection: it is known, not
  guessed, whether it happened.
- An answered commit is on the server's disk, whatever the server's default says (`synchronous_commit`).
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg import errors
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from flx_api.errors import FlxError, InvalidRequest, StartupError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.abc import RV, PQGen
    from sqlalchemy import Connection, Engine, Transaction

    from flx_api.daemon.journal.mark import Mark

_READ_MS: Final = 500
"""How long a statement of a reader may last on the server: the loop waits for it."""
_WRITE_MS: Final = 5_000
_SILENCE_MS: Final = 500
"""How much longer a wait may last than the server lets a statement last; then the server is gone."""
_CONNECT_S: Final = 3
_TAKE_OVER_MS: Final = 5_000
"""How long a daemon waits for the one before it to let the database go."""

_LOCK: Final = "pg_advisory_lock(1179416625, hashtext(current_schema()))"
_NAME = "flx-daemon"


class Postgresql:
    """A database on a server (`flx_api.daemon.journal.database.Database`)."""

    insert = staticmethod(insert)
    is_near = False
    mark: Mark | None = None

    def __init__(self, url: str, *, busy_timeout_ms: int) -> None:
        try:
            self._url = make_url(url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            msg = "FLX_DATABASE_URL: is no URL of a database"
            raise StartupError(msg) from None
        self._busy_timeout_ms = busy_timeout_ms

    def connect_writer(self, before: int | None = None) -> Connection:
        """Connect and take the lock, ending the session that was ours if it still has it."""
        connection = self._engine(_WRITE_MS, self._busy_timeout_ms).connect()
        try:
            if before is not None:
                ended = (
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                    " AND classid = 1179416625 AND pid = :pid"
                )
                connection.execute(text(ended), {"pid": before})
            connection.execute(text(f"SET LOCAL lock_timeout = {_TAKE_OVER_MS}"))
            connection.execute(text(f"SET LOCAL statement_timeout = {2 * _TAKE_OVER_MS}"))
            with _limited(connection, 2 * _TAKE_OVER_MS):
                connection.execute(text(f"SELECT {_LOCK}"))
            connection.commit()
        except BaseException as error:
            connection.close()
            if isinstance(error, DBAPIError) and isinstance(error.orig, errors.LockNotAvailable):
                msg = "FLX_DATABASE_URL: another daemon uses this database"
                raise StartupError(msg) from None
            raise
        return connection

    def connect_reader(self) -> Connection:
        """Connect to read."""
        return self._engine(_READ_MS, _READ_MS, read_only=True).connect()

    def begin_at_once(self, connection: Connection) -> Transaction:
        """Begin a transaction; it is not near, so nobody asks for this."""
        return connection.begin()

    @property
    def is_behind(self) -> bool:
        """The server does by itself what there is to do."""
        return False

    def committed(self, changes: int) -> bool:  # noqa: ARG002
        """As `is_behind`."""
        return False

    def catch_up(self, connection: Connection) -> None:
        """As `is_behind`."""

    def close(self) -> None:
        """There is nothing to end."""

    @contextlib.contextmanager
    def patient(self, connection: Connection) -> Iterator[None]:
        """No limits for a while, but for locks."""
        connection.execute(text("SET statement_timeout = 0"))
        connection.commit()
        with _limited(connection, None):
            yield
        connection.execute(text(f"SET statement_timeout = {_WRITE_MS}"))
        connection.commit()

    def session(self, connection: Connection) -> int | None:
        """The process on the server."""
        return _driver(connection).info.backend_pid

    def is_lost(self, connection: Connection) -> bool:
        """Whether the line is down."""
        return connection.invalidated or connection.closed or _driver(connection).closed

    def history(self, connection: Connection) -> str:
        """Another after a restore or a failover: of the cluster, its time line, the database, the table of events."""
        query = (
            "SELECT (SELECT system_identifier FROM pg_control_system()),"
            " (SELECT timeline_id FROM pg_control_checkpoint()),"
            " (SELECT oid FROM pg_database WHERE datname = current_database()), 'events'::regclass::oid"
        )
        told = " ".join(map(str, connection.execute(text(query)).one()))
        return hashlib.sha256(told.encode()).hexdigest()[:8]

    def transaction(self, connection: Connection) -> str | None:
        """The transaction's id, good over restarts of the server."""
        return str(connection.execute(text("SELECT pg_current_xact_id()::text")).scalar_one())

    def has_committed(self, connection: Connection, transaction: str) -> bool | None:
        """Ask the server what became of it."""
        query = text("SELECT pg_xact_status(CAST(:name AS xid8))")
        try:
            status = connection.execute(query, {"name": transaction}).scalar()
        except DBAPIError as error:
            if not isinstance(_origin(error), errors.InvalidParameterValue):
                raise
            # Its number is "in the future": the server crashed before it was on its disk, and so was the commit.
            status = "aborted"
        connection.rollback()
        return None if status == "in progress" else status == "committed"

    def may_repeat(self, error: BaseException) -> bool:
        """Serialisation failures and deadlocks."""
        return isinstance(_origin(error), errors.SerializationFailure | errors.DeadlockDetected)

    def fault_of(self, error: BaseException) -> FlxError | None:
        """Faults of the server, the line to it, its locks and its disk; and values that it cannot keep."""
        origin = _origin(error)
        if isinstance(origin, psycopg.DataError | errors.ProgramLimitExceeded):
            # SQLite keeps what PostgreSQL does not, such as a NUL in a text.
            return InvalidRequest("A value holds a character, or is of a size, that the database cannot keep")
        if isinstance(origin, errors.DiskFull):
            return Unavailable(code="insufficient_storage")
        about_us = psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError
        if isinstance(origin, about_us | errors.InsufficientPrivilege):
            return Unavailable(code="storage_unavailable")
        return None

    def _engine(self, statement_ms: int, lock_ms: int, *, read_only: bool = False) -> Engine:
        limits = {"connect_timeout": _CONNECT_S}
        engine = create_engine(self._url, poolclass=NullPool, hide_parameters=True, connect_args=limits)

        @event.listens_for(engine, "do_connect")
        def _connect(_dialect: object, _record: object, words: list[str], more: dict[str, Any]) -> _Bounded:
            more = {"application_name": _NAME, "keepalives_idle": 5, "keepalives_interval": 2, **more}
            made = _Bounded.connect(*words, **more)
            made.wait_s = (statement_ms + _SILENCE_MS) / 1000
            set_up = "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)"
            made.execute(set_up, (str(statement_ms), str(lock_ms)))
            durable = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting(%s) = 'off'"
            made.execute(durable, ("synchronous_commit",))
            made.commit()
            if read_only:
                made.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                made.read_only = True
            return made

        return engine


class _Bounded(psycopg.Connection[Any]):
    """A connection on which every wait comes to an end: after `wait_s` seconds it is closed."""

    wait_s: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, self.wait_s if timeout is None else timeout)
        except errors._WaitTimeout:  # noqa: SLF001 - psycopg leaves it to those who wait to give it a name
            self.close()
            msg = "the server does not answer"
            raise psycopg.OperationalError(msg) from None


@contextlib.contextmanager
def _limited(connection: Connection, limit_ms: int | None) -> Iterator[None]:
    driver = _driver(connection)
    before = driver.wait_s
    driver.wait_s = None if limit_ms is None else (limit_ms + _SILENCE_MS) / 1000
    try:
        yield
    finally:
        driver.wait_s = before


def _driver(connection: Connection) -> _Bounded:
    return cast("_Bounded", connection.connection.driver_connection)


def _origin(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error
