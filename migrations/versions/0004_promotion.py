"""promotion: when pages of a project, or of one rule, began to wake people

Projects that are there already were watched for long enough: their shadow period is over.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "promotion",
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("alertname", sa.String(length=128), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_promotion_project_project")
        ),
        sa.PrimaryKeyConstraint("project", "alertname", name=op.f("pk_promotion")),
    )
    op.execute(
        "INSERT INTO promotion (project, alertname, at_ns, actor) "
        "SELECT name, '', created_ns, 'migration 0004' FROM project"
    )


def downgrade() -> None:
    op.drop_table("promotion")
