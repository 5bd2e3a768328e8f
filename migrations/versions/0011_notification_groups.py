"""notification_group, group_member, telling: who was told what of which alerts, and when next

Alerts that fire find their groups at the next start, and are told once more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_ROW = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "notification_group",
        sa.Column("id", _ROW, nullable=False),
        sa.Column("project", sa.String(length=128), nullable=False),
        sa.Column("receiver", sa.String(length=128), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("due_ns", sa.BigInteger()),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("storm", sa.Boolean(), nullable=False),
        sa.Column("counted", sa.Integer(), nullable=False),
        sa.Column("folded_into", sa.BigInteger()),
        sa.Column("source", sa.BigInteger()),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("began_ns", sa.BigInteger()),
        sa.Column("opened_ns", sa.BigInteger()),
        sa.Column("told_ns", sa.BigInteger()),
        sa.Column("escalated_ns", sa.BigInteger()),
        sa.Column("failing", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification_group")),
        sa.UniqueConstraint(
            "project",
            "receiver",
            "group_key",
            name=op.f("uq_notification_group_project_receiver_group_key"),
        ),
    )
    for column in ("due_ns", "folded_into", "source"):
        op.create_index(op.f(f"ix_notification_group_{column}"), "notification_group", [column])
    op.create_table(
        "group_member",
        sa.Column("group_id", _ROW, nullable=False),
        sa.Column("alert_id", _ROW, nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"],
            ["notification_group.id"],
            name=op.f("fk_group_member_group_id_notification_group"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["alert_id"],
            ["alert.id"],
            name=op.f("fk_group_member_alert_id_alert"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("group_id", "alert_id", name=op.f("pk_group_member")),
    )
    op.create_index(op.f("ix_group_member_alert_id"), "group_member", ["alert_id"])
    op.create_table(
        "telling",
        sa.Column("outbox_id", _ROW, nullable=False),
        sa.Column("alert_id", _ROW, nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["outbox_id"],
            ["outbox.id"],
            name=op.f("fk_telling_outbox_id_outbox"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["alert_id"], ["alert.id"], name=op.f("fk_telling_alert_id_alert"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("outbox_id", "alert_id", name=op.f("pk_telling")),
    )
    op.create_index(op.f("ix_telling_alert_id"), "telling", ["alert_id"])
    with op.batch_alter_table("outbox") as batch:
        batch.add_column(
            sa.Column("replaces", sa.Boolean(), nullable=False, server_default=sa.false())
        )


def downgrade() -> None:
    with op.batch_alter_table("outbox") as batch:
        batch.drop_column("replaces")
    op.execute("UPDATE outbox SET state = 'dead' WHERE state = 'superseded'")
    op.drop_table("telling")
    op.drop_table("group_member")
    op.drop_table("notification_group")
