"""alert: an index on when it fired, for pages and reports of a period"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_alert_project_fired_ns"), "alert", ["project", "fired_ns"])


def downgrade() -> None:
    op.drop_index(op.f("ix_alert_project_fired_ns"), table_name="alert")
