"""rule_group: what groups of Prometheus's rules remember; which alerts and series are theirs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rule_group",
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("evaluated_ns", sa.BigInteger(), nullable=False),
        sa.Column("alerts", sa.JSON(), nullable=False),
        sa.Column("recorded", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_rule_group_project_project")
        ),
        sa.PrimaryKeyConstraint("project", "name", name=op.f("pk_rule_group")),
    )
    op.add_column("alert", sa.Column("rule_group", sa.String(256)))
    op.add_column(
        "series", sa.Column("ruled", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.execute("DELETE FROM sample_chunk WHERE series_id IN (SELECT id FROM series WHERE ruled)")
    op.execute("DELETE FROM series WHERE ruled")
    with op.batch_alter_table("series") as batch:
        batch.drop_column("ruled")
    with op.batch_alter_table("alert") as batch:
        batch.drop_column("rule_group")
    op.drop_table("rule_group")
