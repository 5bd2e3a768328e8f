"""outcome: how runs ended; price: what hardware costs; report_sent: which reports went out"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "outcome",
        sa.Column("run_id", row_id, nullable=False),
        sa.Column("ended_ns", sa.BigInteger(), nullable=False),
        sa.Column("good", sa.Boolean()),
        sa.Column("reason", sa.String(length=256), nullable=False),
        sa.Column("marked", sa.Boolean(), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_outcome_run_id_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_outcome")),
    )
    op.create_table(
        "price",
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("gpu", sa.String(length=128), nullable=False),
        sa.Column("per_hour", sa.Float(), nullable=False),
        sa.Column("currency", sa.String(length=8), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_price_project_project")
        ),
        sa.PrimaryKeyConstraint("project", "gpu", name=op.f("pk_price")),
    )
    op.create_table(
        "report_sent",
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("receiver", sa.String(length=128), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_report_sent_project_project")
        ),
        sa.PrimaryKeyConstraint("project", "receiver", "period", name=op.f("pk_report_sent")),
    )


def downgrade() -> None:
    for name in ("report_sent", "price", "outcome"):
        op.drop_table(name)
