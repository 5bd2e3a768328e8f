"""silence: what somebody does not want to hear; who acknowledged an alert, and what mutes it

Alerts that fire already count as told.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "silence",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("matchers", sa.JSON(), nullable=False),
        sa.Column("starts_ns", sa.BigInteger(), nullable=False),
        sa.Column("ends_ns", sa.BigInteger(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_silence_project_project")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_silence")),
    )
    op.create_index(op.f("ix_silence_project_ends_ns"), "silence", ["project", "ends_ns"])
    with op.batch_alter_table("alert") as batch:
        batch.add_column(sa.Column("muted", sa.String(160), nullable=False, server_default=""))
        batch.add_column(sa.Column("muted_until_ns", sa.BigInteger()))
        batch.add_column(sa.Column("told", sa.Boolean(), nullable=False, server_default=sa.true()))
        batch.add_column(sa.Column("acked_ns", sa.BigInteger()))
        batch.add_column(sa.Column("acked_by", sa.String(128)))


def downgrade() -> None:
    with op.batch_alter_table("alert") as batch:
        for name in ("acked_by", "acked_ns", "told", "muted_until_ns", "muted"):
            batch.drop_column(name)
    op.drop_index(op.f("ix_silence_project_ends_ns"), table_name="silence")
    op.drop_table("silence")
