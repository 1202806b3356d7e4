"""The database: which kind it is, what the journal wants of one, and how it gets its shape.

Strategy: an empty database gets all tables from `tables.metadata` at once and is stamped with the newest revision; one
at that revision is taken as it is; only an older one runs Alembic's migrations. So the usual start does not import
Alembic at all. A test holds that migrations and metadata lead to the same shape and that `HEAD` is Alembic's head.

Rules:
- What is peculiar to one kind of database is in its module (`sqlite`, `postgresql`), behind `Database`.
- Making or migrating is one transaction: a kill half-way leaves the database as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Column, MetaData, String, Table, insert, inspect, select

from flx_api.daemon.journal.tables import metadata
from flx_api.errors import FlxError, StartupError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Transaction

    from flx_api.daemon.journal.mark import Mark

HEAD = "0004"
"""The newest revision in `migrations/versions`."""

_versions = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True, nullable=False))


class Database(Protocol):
    """A kind of database, by one URL.

    `insert` is its INSERT, which knows ON CONFLICT; `is_near`: a statement about few rows is no wait.
    """

    insert: Any
    is_near: bool

    @property
    def mark(self) -> Mark | None:
        """Where it is told beside the database how far that has come; None where itself tells (`history`)."""

    def connect_writer(self, before: int | None = None) -> Connection:
        """A connection to change it, as the only one; `before` is the `session` of one of ours that was lost.

        Raises:
            StartupError: another daemon has it.
            DBAPIError: it cannot be reached or opened.
        """

    def connect_reader(self) -> Connection:
        """A connection on which each transaction sees one snapshot.

        Raises:
            DBAPIError: it cannot be reached or opened.
        """

    def begin_at_once(self, connection: Connection) -> Transaction:
        """Begin a transaction of a near database. Raises DBAPIError when that needs waiting."""

    @property
    def is_behind(self) -> bool:
        """Whether a calm moment should be used to catch up."""

    def committed(self, changes: int) -> bool:
        """Note a commit of so many changes; whether it is now time to catch up, calm or not."""

    def catch_up(self, connection: Connection) -> None:
        """Do what commits put off. Whatever comes of it, what is committed stays so."""

    def close(self) -> None:
        """Everything is closed."""

    def patient(self, connection: Connection) -> AbstractContextManager[None]:
        """Let statements last as long as they will: tables are made."""

    def session(self, connection: Connection) -> int | None:
        """What its connection is known by to the database."""

    def is_lost(self, connection: Connection) -> bool:
        """Whether a connection is of no use any more."""

    def history(self, connection: Connection) -> str:
        """What is another when the database was put back from somewhere: how its epochs begin."""

    def transaction(self, connection: Connection) -> str | None:
        """The name by which it can be asked later whether this transaction was committed; None when nobody need ask."""

    def has_committed(self, connection: Connection, transaction: str) -> bool | None:
        """Whether a transaction of another connection was committed; None while it is not decided."""

    def may_repeat(self, error: BaseException) -> bool:
        """Whether a transaction failed only because of others beside it."""

    def fault_of(self, error: BaseException) -> FlxError | None:
        """What an error is to a caller; None when it is not about storage but about what was asked.

        507 when the disk is full, else 503: both may be tried again.
        """


def database_of(url: str, *, busy_timeout_ms: int) -> Database:
    """The database of a URL.

    Args:
        url: as SQLAlchemy writes it.
        busy_timeout_ms: how long a change waits for a lock of somebody else.

    Raises:
        StartupError: what its kind needs is not installed.
    """
    if url.startswith("sqlite:"):
        from flx_api.daemon.journal.sqlite import Sqlite  # noqa: PLC0415 - each kind brings its driver

        return Sqlite(url, busy_timeout_ms=busy_timeout_ms)
    try:
        from flx_api.daemon.journal.postgresql import Postgresql  # noqa: PLC0415 - as above
    except ImportError as error:
        msg = "FLX_DATABASE_URL: PostgreSQL needs its driver: pip install 'flx-api[postgresql]'"
        raise StartupError(msg) from error
    return Postgresql(url, busy_timeout_ms=busy_timeout_ms)


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
