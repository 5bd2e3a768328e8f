"""segments: compacted frames, their chunks and rollups; retention; the newest values of a run"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gradwarden_server.store.compacting.uncompact import give_back

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OF_A_RUN = (
    "segment",
    "frame_batch",
    "event",
    "command",
    "cursor",
    "detector_state",
    "alert",
    "series",
    "stream",
    "attempt",
)
_INFLATED = 4096  # of a frame that was logged before its bytes were counted


def upgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("latest", sa.JSON()))
        batch_op.add_column(sa.Column("deleted_ns", sa.BigInteger()))
    with op.batch_alter_table("stream", schema=None) as batch_op:
        for name in ("logged_frames", "logged_bytes"):
            batch_op.add_column(
                sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
            )
        batch_op.create_index(batch_op.f("ix_stream_logged_frames"), ["logged_frames"])
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_event_attempt_id"), ["attempt_id"])
    op.execute(
        "UPDATE stream SET logged_frames = coalesce((SELECT sum(last_seq - first_seq + 1) "
        "FROM frame_batch WHERE frame_batch.stream_id = stream.id), 0)"
    )
    op.execute(f"UPDATE stream SET logged_bytes = logged_frames * {_INFLATED}")
    op.create_table(
        "segment",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("run_id", _ROW_ID, nullable=False),
        sa.Column("stream_id", _ROW_ID, nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("position0", "position1", "step0", "step1", "t0_ns", "t1_ns")
        ),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("matrices", sa.Integer(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("layout", sa.String(length=32), nullable=False),
        sa.Column("claimed_ns", sa.BigInteger(), nullable=False),
        sa.Column("sealed", sa.Boolean(), nullable=False),
        sa.Column("held", sa.String(length=8), nullable=False),
        sa.Column("shelf", sa.String(length=16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("crc32", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_segment_run_id_run"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["stream_id"],
            ["stream.id"],
            name=op.f("fk_segment_stream_id_stream"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segment")),
        sa.UniqueConstraint("stream_id", "position0", name=op.f("uq_segment_stream_id_position0")),
    )
    with op.batch_alter_table("segment", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_segment_run_id_step0"), ["run_id", "step0"])
        batch_op.create_index(batch_op.f("ix_segment_sealed_claimed_ns"), ["sealed", "claimed_ns"])
        batch_op.create_index(batch_op.f("ix_segment_held_t1_ns"), ["held", "t1_ns"])
    op.create_table(
        "chunk",
        sa.Column("segment_id", _ROW_ID, nullable=False),
        sa.Column("quantity", sa.String(length=32), nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("crc32", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["segment_id"],
            ["segment.id"],
            name=op.f("fk_chunk_segment_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("segment_id", "quantity", "block", name=op.f("pk_chunk")),
    )
    op.create_table(
        "rollup",
        sa.Column("segment_id", _ROW_ID, nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("quantity", sa.String(length=32), nullable=False),
        sa.Column("aggregate", sa.String(length=16), nullable=False),
        sa.Column("crc32", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["segment_id"],
            ["segment.id"],
            name=op.f("fk_rollup_segment_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "segment_id", "width", "quantity", "aggregate", name=op.f("pk_rollup")
        ),
    )
    op.create_table(
        "retention",
        sa.Column("project", sa.String(length=128), nullable=False),
        *(sa.Column(name, sa.Float()) for name in ("raw_days", "rollup_days", "run_days")),
        sa.ForeignKeyConstraint(
            ["project"], ["project.name"], name=op.f("fk_retention_project_project")
        ),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_retention")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Bodies are compressed already; EXTERNAL stores them as they are.
        for table in ("frame_batch", "segment", "chunk", "rollup"):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN body SET STORAGE EXTERNAL")


def _erase_deleted() -> None:
    """The older schema would show them again, and their trainers would go on."""
    deleted = "(SELECT id FROM run WHERE deleted_ns IS NOT NULL)"
    for table, reference, parent in (
        ("alert_transition", "alert_id", "alert"),
        ("sample_chunk", "series_id", "series"),
        ("chunk", "segment_id", "segment"),
        ("rollup", "segment_id", "segment"),
    ):
        op.execute(
            f"DELETE FROM {table} WHERE {reference} IN "
            f"(SELECT id FROM {parent} WHERE run_id IN {deleted})"
        )
    for table in _OF_A_RUN:
        op.execute(f"DELETE FROM {table} WHERE run_id IN {deleted}")
    op.execute("DELETE FROM run WHERE deleted_ns IS NOT NULL")


def downgrade() -> None:
    _erase_deleted()
    give_back(op.get_bind())
    for name in ("retention", "rollup", "chunk", "segment"):
        op.drop_table(name)
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_event_attempt_id"))
    with op.batch_alter_table("stream", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_stream_logged_frames"))
        batch_op.drop_column("logged_bytes")
        batch_op.drop_column("logged_frames")
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("deleted_ns")
        batch_op.drop_column("latest")
