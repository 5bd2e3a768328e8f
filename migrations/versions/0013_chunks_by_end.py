"""sample_chunk: found by its end, since what is read is the newest"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_sample_chunk_series_id_t1_ns"), "sample_chunk", ["series_id", "t1_ns"])
    op.drop_index(op.f("ix_sample_chunk_series_id_t0_ns"), table_name="sample_chunk")


def downgrade() -> None:
    op.create_index(op.f("ix_sample_chunk_series_id_t0_ns"), "sample_chunk", ["series_id", "t0_ns"])
    op.drop_index(op.f("ix_sample_chunk_series_id_t1_ns"), table_name="sample_chunk")
