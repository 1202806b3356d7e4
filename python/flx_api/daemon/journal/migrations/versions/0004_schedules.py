"""What is remembered of schedules.

Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "schedules",
        sa.Column("tenant", _text(64), nullable=False),
        sa.Column("project_id", _text(255), nullable=False),
        sa.Column("name", _text(255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("until_us", sa.BigInteger(), nullable=True),
        sa.Column("fired_us", sa.BigInteger(), nullable=True),
        sa.Column("execution_id", _text(36), nullable=True),
        sa.Column("skipped_us", sa.BigInteger(), nullable=True),
        sa.Column("skip_reason", _text(64), nullable=True),
        sa.Column("missed_us", sa.BigInteger(), nullable=True),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "project_id", "name", name=op.f("pk_schedules")),
    )
