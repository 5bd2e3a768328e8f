"""What trainers measured: the frame log, segments of it, and derived series."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    false,
)

from gradwarden_server.store.tables.base import RowId, metadata, run_reference

frame_batch = Table(
    "frame_batch",
    metadata,
    Column("id", RowId, primary_key=True),
    run_reference(),
    Column("position", BigInteger, nullable=False),
    Column("stream_id", RowId, ForeignKey("stream.id", ondelete="CASCADE"), nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("step0", BigInteger, nullable=False),
    Column("step1", BigInteger, nullable=False),
    Column("t0_ns", BigInteger, nullable=False),
    Column("t1_ns", BigInteger, nullable=False),
    # Added to the frames' own times to give series time (0 where a clock was refused).
    Column("shift_ns", BigInteger, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("layout", String(32), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "position"),
    UniqueConstraint("stream_id", "first_seq"),
    Index(None, "run_id", "step0"),
)

segment = Table(
    "segment",
    metadata,
    Column("id", RowId, primary_key=True),
    run_reference(),
    Column("stream_id", RowId, ForeignKey("stream.id", ondelete="CASCADE"), nullable=False),
    # It stands for all batches of its stream from the first to the last of these log positions.
    Column("position0", BigInteger, nullable=False),
    Column("position1", BigInteger, nullable=False),
    Column("step0", BigInteger, nullable=False),
    Column("step1", BigInteger, nullable=False),
    Column("t0_ns", BigInteger, nullable=False),
    Column("t1_ns", BigInteger, nullable=False),
    Column("frames", Integer, nullable=False),
    # How many of its frames hold a matrix, and how many values were measured in them.
    Column("matrices", Integer, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("layout", String(32), nullable=False),
    # When its making began, by the database's clock: one that is not sealed a minute later
    # was left behind by a process that died.
    Column("claimed_ns", BigInteger, nullable=False),
    # Readers see sealed segments alone, and in their place no log.
    Column("sealed", Boolean, nullable=False),
    # Which of its values are still held: "raw" all, "rollup" only those, "coarse" the widest.
    Column("held", String(8), nullable=False),
    # Where its values lie: empty for the tables below, else the name of a series engine.
    Column("shelf", String(16), nullable=False, default=""),
    # What its chunks, rollups and body weigh together in this database.
    Column("bytes", BigInteger, nullable=False),
    Column("crc32", BigInteger, nullable=False),
    # Steps, times, scalars, events and the batches it came in.
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("stream_id", "position0"),
    Index(None, "run_id", "step0"),
    Index(None, "sealed", "claimed_ns"),
    Index(None, "held", "t1_ns"),
)

chunk = Table(
    "chunk",
    metadata,
    Column("segment_id", RowId, ForeignKey("segment.id", ondelete="CASCADE"), primary_key=True),
    Column("quantity", String(32), primary_key=True),
    # Rows block * BLOCK_ROWS and on of the matrices.
    Column("block", Integer, primary_key=True),
    Column("crc32", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

rollup = Table(
    "rollup",
    metadata,
    Column("segment_id", RowId, ForeignKey("segment.id", ondelete="CASCADE"), primary_key=True),
    Column("width", Integer, primary_key=True),
    Column("quantity", String(32), primary_key=True),
    # min | max | mean | last | count | nonfinite
    Column("aggregate", String(16), primary_key=True),
    Column("crc32", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

retention = Table(
    "retention",
    metadata,
    Column("project", String(128), ForeignKey("project.name"), primary_key=True),
    # Days for which each is kept; null is for ever.
    Column("raw_days", Float),
    Column("rollup_days", Float),
    Column("run_days", Float),
)

series = Table(
    "series",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    # The run that it was derived from or speaks of; it goes with its run.
    Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE")),
    # Whether a rule recorded it: its labels are whole then, and else the run's are added.
    Column("ruled", Boolean, nullable=False, server_default=false()),
    Column("name", String(256), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("fingerprint", String(32), nullable=False),
    UniqueConstraint("project", "fingerprint"),
    Index(None, "project", "name"),
    Index(None, "run_id", "name"),
)

sample_chunk = Table(
    "sample_chunk",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("series_id", RowId, ForeignKey("series.id", ondelete="CASCADE"), nullable=False),
    Column("t0_ns", BigInteger, nullable=False),
    Column("t1_ns", BigInteger, nullable=False),
    Column("codec", String(16), nullable=False),
    Column("body", LargeBinary, nullable=False),
    # By their end: what is asked for is nearly always the newest, of a series of a year.
    Index(None, "series_id", "t1_ns"),
)
