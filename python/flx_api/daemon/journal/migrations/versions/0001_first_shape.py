"""The first shape of the journal.

Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("prev", sa.BigInteger(), nullable=False),
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("topic", _text(255), nullable=False),
        sa.Column("ts_us", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_topic_seq"), "events", ["topic", "seq"], unique=False)
    op.create_table(
        "executions",
        sa.Column("id", _text(36), nullable=False),
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("pipeline", _text(255), nullable=False),
        sa.Column("status", _text(32), nullable=False),
        sa.Column("trigger", _text(32), nullable=False),
        sa.Column("triggered_by", _text(128), nullable=False),
        sa.Column("environment", _text(63), nullable=True),
        sa.Column("refresh", _text(16), nullable=False),
        sa.Column("timeout_s", sa.Integer(), nullable=True),
        sa.Column("tasks", sa.LargeBinary(), nullable=False),
        sa.Column("state_ids", sa.LargeBinary(), nullable=False),
        sa.Column("idempotency_key", _text(255), nullable=True),
        sa.Column("queued_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("verdict", _text(16), nullable=True),
        sa.Column("warnings", sa.LargeBinary(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=True),
        sa.Column("cpu_s", sa.Float(), nullable=True),
        sa.Column("max_rss_kib", sa.BigInteger(), nullable=True),
        sa.Column("ledger", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_executions")),
    )
    op.create_index(
        op.f("ix_executions_tenant_project_id_pipeline_queued_us"),
        "executions",
        ["tenant", "project_id", "pipeline", "queued_us"],
        unique=False,
    )
    op.create_index(
        op.f("ix_executions_tenant_project_id_queued_us"),
        "executions",
        ["tenant", "project_id", "queued_us"],
        unique=False,
    )
    op.create_index(
        op.f("ix_executions_tenant_project_id_status_queued_us"),
        "executions",
        ["tenant", "project_id", "status", "queued_us"],
        unique=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("subject", _text(128), nullable=False),
        sa.Column("key", _text(255), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("command", _text(128), nullable=False),
        sa.Column("body_hash", _text(64), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.Column("execution_id", _text(36), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "subject", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_us"), "idempotency", ["created_us"], unique=False)
    op.create_table(
        "identity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("epoch", _text(64), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity")),
    )
    op.create_table(
        "pipelines",
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("name", _text(63), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tasks", sa.LargeBinary(), nullable=False),
        sa.Column("environment", _text(63), nullable=True),
        sa.Column("tags", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", _text(128), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "project_id", "name", name=op.f("pk_pipelines")),
    )
    op.create_table(
        "stream_history",
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("state_id", _text(512), nullable=False),
        sa.Column("stream", _text(512), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("full_refresh", sa.Boolean(), nullable=False),
        sa.Column("execution_id", _text(36), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "project_id", "state_id", "stream", name=op.f("pk_stream_history")),
    )
    op.create_table(
        "topic_heads",
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("topic", _text(255), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "project_id", "topic", name=op.f("pk_topic_heads")),
    )
    op.create_table(
        "users",
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("username", _text(128), nullable=False),
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("roles", sa.LargeBinary(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "username", name=op.f("pk_users")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", _text(36), nullable=False),
        sa.Column("execution_id", _text(36), nullable=False),
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("process_start", sa.BigInteger(), nullable=True),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["execution_id"], ["executions.id"], name=op.f("fk_attempts_execution_id_executions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("execution_id", "number", name=op.f("uq_attempts_execution_id_number")),
    )
