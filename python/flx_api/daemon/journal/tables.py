"""The daemon's tables (SQLAlchemy Core). Migrations bring a database to this shape; a test holds that both agree.

Rules:
- Every row carries `tenant` and `project_id`: one process serves one project now, the database may hold more.
- Times are microseconds since the epoch (`*_us`); ids are strings; JSON is bytes that msgspec wrote.
- Log lines are not rows: they stay in the runs' log files.
- Lengths are for readers: SQLite holds nobody to them, and PostgreSQL is not told, lest a long subject be refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(length: int) -> String:
    """A text of about this length."""
    return String(length).with_variant(Text(), "postgresql")


class Said(TypeDecorator[str]):
    """Words of a run, whatever they hold: PostgreSQL keeps no NUL, and the end of a run must never be refused."""

    impl = Text
    impl_instance: Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """A text, or in SQLite's shape one of about a length."""
        length = self.impl_instance.length
        return Text() if length is None or dialect.name == "postgresql" else String(length)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What PostgreSQL can keep of it."""
        return value.replace("\0", "\ufffd") if value is not None and dialect.name == "postgresql" else value


# SQLite gives a rowid alias (and so a monotonic AUTOINCREMENT) only to INTEGER, not to BIGINT.
Sequence = BigInteger().with_variant(Integer, "sqlite")

identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", _text(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)
"""One row: the epoch of this journal. A restored or recreated database gets a new one."""

events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("prev", BigInteger, nullable=False),
    Column("tenant", _text(64), nullable=False),
    Column("project_id", _text(255), nullable=False),
    Column("topic", _text(255), nullable=False),
    Column("ts_us", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index(None, "topic", "seq"),
    sqlite_autoincrement=True,
)
"""The journal proper. `prev` is the sequence number of the event before in the same tenant and topic, 0 for none.

`data` is empty when the event was forgotten: its row stays, since numbers have no holes.
"""

topic_heads = Table(
    "topic_heads",
    metadata,
    Column("tenant", _text(64), primary_key=True),
    Column("project_id", _text(255), primary_key=True),
    Column("topic", _text(255), primary_key=True),
    Column("seq", BigInteger, nullable=False),
)
"""The last sequence number of each topic within a tenant. It stays when retention removes the events themselves, as
long as the topic can go on."""

users = Table(
    "users",
    metadata,
    Column("project_id", _text(255), primary_key=True),
    Column("username", _text(128), primary_key=True),
    Column("tenant", _text(64), nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("roles", LargeBinary, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)
"""Who can log in. A login names no tenant, so a name is one user in all tenants of a project."""

revocations = Table(
    "revocations",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("tenant", _text(64), nullable=False),
    Column("project_id", _text(255), nullable=False),
    Column("kind", _text(8), nullable=False),
    Column("value", _text(1024), nullable=False),
    Column("issued_before", BigInteger),
    Column("expires_at", BigInteger),
    Column("reason", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("created_by", _text(128), nullable=False),
    UniqueConstraint("project_id", "tenant", "kind", "value"),
    Index(None, "tenant", "project_id", "id"),
    Index(None, "expires_at"),
)
"""Tokens that are no longer good. `issued_before` and `expires_at` are seconds, as in tokens; null: no bound."""

pipelines = Table(
    "pipelines",
    metadata,
    Column("tenant", _text(64), primary_key=True),
    Column("project_id", _text(255), primary_key=True),
    Column("name", _text(63), primary_key=True),
    Column("description", Text, nullable=False),
    Column("tasks", LargeBinary, nullable=False),
    Column("environment", _text(63)),
    Column("tags", LargeBinary, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("created_by", _text(128), nullable=False),
    Column("retries", Integer, nullable=False, server_default="0"),
    Column("retry_backoff_s", Integer, nullable=False, server_default="10"),
    Column("retry_on", LargeBinary),
)

executions = Table(
    "executions",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("tenant", _text(64), nullable=False),
    Column("project_id", _text(255), nullable=False),
    Column("pipeline", _text(255), nullable=False),
    Column("status", _text(32), nullable=False),
    Column("trigger", _text(32), nullable=False),
    Column("triggered_by", _text(128), nullable=False),
    Column("environment", _text(63)),
    Column("refresh", _text(16), nullable=False),
    Column("timeout_s", Integer),
    Column("tasks", LargeBinary, nullable=False),
    Column("state_ids", LargeBinary, nullable=False),
    Column("idempotency_key", _text(255)),
    Column("queued_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("finished_us", BigInteger),
    Column("exit_code", Integer),
    Column("error", Said),
    Column("verdict", _text(16)),
    Column("warnings", LargeBinary, nullable=False),
    Column("records", BigInteger),
    Column("cpu_s", Float),
    Column("max_rss_kib", BigInteger),
    Column("ledger", LargeBinary),
    Column("retry_at_us", BigInteger),
    Index(None, "tenant", "project_id", "pipeline", "queued_us"),
    Index(None, "tenant", "project_id", "status", "queued_us"),
    Index(None, "tenant", "project_id", "queued_us"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("execution_id", _text(36), ForeignKey("executions.id"), nullable=False),
    Column("tenant", _text(64), nullable=False),
    Column("project_id", _text(255), nullable=False),
    Column("number", Integer, nullable=False),
    Column("pid", Integer),
    Column("process_start", BigInteger),
    Column("started_us", BigInteger),
    Column("finished_us", BigInteger),
    Column("exit_code", Integer),
    Column("tries", Integer, nullable=False, server_default="1"),
    Column("status", _text(32)),
    Column("error", Said),
    Column("queued_us", BigInteger),
    UniqueConstraint("execution_id", "number"),
)
"""`pid` and `process_start` are committed before the run's gate opens; both null: no process was ever released.

`tries` counts the attempts since somebody asked for the run, `status` is how the attempt ended, null while it has not.
"""

stream_history = Table(
    "stream_history",
    metadata,
    Column("tenant", _text(64), primary_key=True),
    Column("project_id", _text(255), primary_key=True),
    Column("state_id", Said(512), primary_key=True),
    Column("stream", Said(512), primary_key=True),
    Column("records", BigInteger, nullable=False),
    Column("full_refresh", Boolean, nullable=False),
    Column("execution_id", _text(36), nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
"""What each stream moved in its last successful run: the ledger's memory."""

schedules = Table(
    "schedules",
    metadata,
    Column("tenant", _text(64), primary_key=True),
    Column("project_id", _text(255), primary_key=True),
    Column("name", _text(255), primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("mark", Text),
    Column("until_us", BigInteger),
    Column("fired_us", BigInteger),
    Column("execution_id", _text(36)),
    Column("skipped_us", BigInteger),
    Column("skip_reason", _text(64)),
    Column("missed_us", BigInteger),
    Column("updated_us", BigInteger, nullable=False),
)
"""What is remembered of schedules of meltano.yml: up to `until_us` all was decided under the rule of `mark`; both null:
nothing is remembered. The other times are fire times."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", _text(64), primary_key=True),
    Column("subject", _text(128), primary_key=True),
    Column("key", _text(255), primary_key=True),
    Column("project_id", _text(255), nullable=False),
    Column("command", _text(128), nullable=False),
    Column("body_hash", _text(64), nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("execution_id", _text(36)),
    Column("created_us", BigInteger, nullable=False),
    Index(None, "created_us"),
)
"""What a key's first command answered, written in one transaction with its effect."""
