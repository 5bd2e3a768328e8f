"""link_secret: what signs the links in a project's messages"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "link_secret",
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("made_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_link_secret_project_project")
        ),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_link_secret")),
    )


def downgrade() -> None:
    op.drop_table("link_secret")
