"""maintenance: planned work, once or every week, during which messages wait"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "maintenance",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("matchers", sa.JSON(), nullable=False),
        sa.Column("starts_ns", sa.BigInteger(), nullable=False),
        sa.Column("ends_ns", sa.BigInteger()),
        sa.Column("weekly", sa.JSON()),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_maintenance_project_project")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_maintenance")),
    )
    op.create_index(op.f("ix_maintenance_project_ends_ns"), "maintenance", ["project", "ends_ns"])


def downgrade() -> None:
    op.drop_index(op.f("ix_maintenance_project_ends_ns"), table_name="maintenance")
    op.drop_table("maintenance")
