"""receiver_thread: the first message of each group in a chat or a mailbox"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "receiver_thread",
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("receiver", sa.String(length=128), nullable=False),
        sa.Column("group_hash", sa.String(length=64), nullable=False),
        sa.Column("place", sa.String(length=256), nullable=False),
        sa.Column("anchor", sa.String(length=256), nullable=False),
        sa.Column("made_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "project", "receiver", "group_hash", name=op.f("pk_receiver_thread")
        ),
    )


def downgrade() -> None:
    op.drop_table("receiver_thread")
