"""Revocations of tokens.

Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "revocations",
        sa.Column("id", _text(36), nullable=False),
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("kind", _text(8), nullable=False),
        sa.Column("value", _text(1024), nullable=False),
        sa.Column("issued_before", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", _text(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revocations")),
        sa.UniqueConstraint(
            "project_id", "tenant", "kind", "value", name=op.f("uq_revocations_project_id_tenant_kind_value")
        ),
    )
    op.create_index(op.f("ix_revocations_expires_at"), "revocations", ["expires_at"], unique=False)
    op.create_index(
        op.f("ix_revocations_tenant_project_id_id"), "revocations", ["tenant", "project_id", "id"], unique=False
    )
