"""The daemon's tables (SQLAlchemy Core). Migrations bring a database to this shape; a test holds that both agree.

Rules:
- Every row carries `tenant` and `project_id`: one process serves one project now, the database may hold more.
- Times are microseconds since the epoch (`*_us`); ids are strings; JSON is bytes that msgspec wrote.
- Log lines are not rows: they stay in the runs' log files.
"""

from __future__ import annotations

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
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives a rowid alias (and so a monotonic AUTOINCREMENT) only to INTEGER, not to BIGINT.
Sequence = BigInteger().with_variant(Integer, "sqlite")

identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)
"""One row: the epoch of this journal. A restored or recreated database gets a new one."""

events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("prev", BigInteger, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("project_id", String(255), nullable=False),
    Column("topic", String(255), nullable=False),
    Column("ts_us", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index(None, "topic", "seq"),
    sqlite_autoincrement=True,
)
"""The journal proper. `prev` is the sequence number of the event before in the same tenant and topic, 0 for none."""

topic_heads = Table(
    "topic_heads",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("project_id", String(255), primary_key=True),
    Column("topic", String(255), primary_key=True),
    Column("seq", BigInteger, nullable=False),
)
"""The last sequence number of each topic within a tenant. It stays when retention removes the events themselves, as
long as the topic can go on."""

users = Table(
    "users",
    metadata,
    Column("project_id", String(255), primary_key=True),
    Column("username", String(128), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("roles", LargeBinary, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)
"""Who can log in. A login names no tenant, so a name is one user in all tenants of a project."""

revocations = Table(
    "revocations",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("project_id", String(255), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("value", String(1024), nullable=False),
    Column("issued_before", BigInteger),
    Column("expires_at", BigInteger),
    Column("reason", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("created_by", String(128), nullable=False),
    UniqueConstraint("project_id", "tenant", "kind", "value"),
    Index(None, "tenant", "project_id", "id"),
    Index(None, "expires_at"),
)
"""Tokens that are no longer good. `issued_before` and `expires_at` are seconds, as in tokens; null: no bound."""

pipelines = Table(
    "pipelines",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("project_id", String(255), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("description", Text, nullable=False),
    Column("tasks", LargeBinary, nullable=False),
    Column("environment", String(63)),
    Column("tags", LargeBinary, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("retries", Integer, nullable=False, server_default="0"),
    Column("retry_backoff_s", Integer, nullable=False, server_default="10"),
    Column("retry_on", LargeBinary),
)

executions = Table(
    "executions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("project_id", String(255), nullable=False),
    Column("pipeline", String(255), nullable=False),
    Column("status", String(32), nullable=False),
    Column("trigger", String(32), nullable=False),
    Column("triggered_by", String(128), nullable=False),
    Column("environment", String(63)),
    Column("refresh", String(16), nullable=False),
    Column("timeout_s", Integer),
    Column("tasks", LargeBinary, nullable=False),
    Column("state_ids", LargeBinary, nullable=False),
    Column("idempotency_key", String(255)),
    Column("queued_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("finished_us", BigInteger),
    Column("exit_code", Integer),
    Column("error", Text),
    Column("verdict", String(16)),
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
    Column("id", String(36), primary_key=True),
    Column("execution_id", String(36), ForeignKey("executions.id"), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("project_id", String(255), nullable=False),
    Column("number", Integer, nullable=False),
    Column("pid", Integer),
    Column("process_start", BigInteger),
    Column("started_us", BigInteger),
    Column("finished_us", BigInteger),
    Column("exit_code", Integer),
    Column("tries", Integer, nullable=False, server_default="1"),
    Column("status", String(32)),
    Column("error", Text),
    Column("queued_us", BigInteger),
    UniqueConstraint("execution_id", "number"),
)
"""`pid` and `process_start` are committed before the run's gate opens; both null: no process was ever released.

`tries` counts the attempts since somebody asked for the run, `status` is how the attempt ended, null while it has not.
"""

stream_history = Table(
    "stream_history",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("project_id", String(255), primary_key=True),
    Column("state_id", String(512), primary_key=True),
    Column("stream", String(512), primary_key=True),
    Column("records", BigInteger, nullable=False),
    Column("full_refresh", Boolean, nullable=False),
    Column("execution_id", String(36), nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
"""What each stream moved in its last successful run: the ledger's memory."""

schedules = Table(
    "schedules",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("project_id", String(255), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("mark", Text),
    Column("until_us", BigInteger),
    Column("fired_us", BigInteger),
    Column("execution_id", String(36)),
    Column("skipped_us", BigInteger),
    Column("skip_reason", String(64)),
    Column("missed_us", BigInteger),
    Column("updated_us", BigInteger, nullable=False),
)
"""What is remembered of schedules of meltano.yml: up to `until_us` all was decided under the rule of `mark`; both null:
nothing is remembered. The other times are fire times."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("subject", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("project_id", String(255), nullable=False),
    Column("command", String(128), nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("execution_id", String(36)),
    Column("created_us", BigInteger, nullable=False),
    Index(None, "created_us"),
)
"""What a key's first command answered, written in one transaction with its effect."""
