"""Attempts that follow one another, and what a pipeline says about them.

Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Add their columns."""
    op.add_column("pipelines", sa.Column("retries", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("pipelines", sa.Column("retry_backoff_s", sa.Integer(), nullable=False, server_default="10"))
    op.add_column("pipelines", sa.Column("retry_on", sa.LargeBinary(), nullable=True))
    op.add_column("executions", sa.Column("retry_at_us", sa.BigInteger(), nullable=True))
    op.add_column("attempts", sa.Column("tries", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("attempts", sa.Column("status", _text(32), nullable=True))
    op.add_column("attempts", sa.Column("error", sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("queued_us", sa.BigInteger(), nullable=True))
