"""The tables in ClickHouse. A row is one row of a column over the steps of one segment.

Numbers are plain Float32, NaN with its payload included, so that people can query them:

    SELECT step, value FROM gradwarden_values ARRAY JOIN steps AS step, values AS value
    WHERE project = 'default' AND run = 'gpt' AND quantity = 'l2' AND row = 3

They are ordered as they are read: one layer over all of a run, or all layers at one width. A
granule is small, since each row holds a thousand steps and a reader wants few rows. Differences
of bit patterns compress better than the patterns do. An insert that was accepted is on the
disk; a row that was inserted twice is one row after a merge, and readers do not mind before.
"""

from __future__ import annotations

_SEGMENT = """
    project LowCardinality(String),
    run String,
    attempt String,
    rank UInt32,
    segment UInt64,
    made Int64 COMMENT 'when the making of the segment began, in UTC nanoseconds'"""
_ARRAY = "Array(Float32) CODEC(Delta(4), ZSTD(1))"
_STEPS = "Array(Int64) CODEC(DoubleDelta, ZSTD(1))"
_ENGINE = """ENGINE = ReplacingMergeTree
    PARTITION BY toYYYYMM(toDateTime(intDiv(made, 1000000000), 'UTC'))
    ORDER BY ({key}, segment, made)
    SETTINGS index_granularity_bytes = 65536, fsync_after_insert = 1, fsync_part_directory = 1,
        min_compressed_bytes_to_fsync_after_merge = 1"""

VALUES, ROLLUPS, WORDS = "gradwarden_values", "gradwarden_rollups", "gradwarden_words"
TABLES = (VALUES, ROLLUPS, WORDS)

CREATE = (
    f"""CREATE TABLE IF NOT EXISTS {VALUES} ({_SEGMENT},
    quantity LowCardinality(String),
    row UInt32 COMMENT 'of the layout: which layer',
    rows UInt32 COMMENT 'of the layout: how many layers',
    steps {_STEPS},
    values {_ARRAY})
{_ENGINE.format(key="run, quantity, row")}""",
    f"""CREATE TABLE IF NOT EXISTS {ROLLUPS} ({_SEGMENT},
    width UInt32 COMMENT 'steps of a bucket',
    quantity LowCardinality(String),
    row UInt32,
    rows UInt32,
    steps {_STEPS} COMMENT 'where each bucket begins',
    min {_ARRAY},
    max {_ARRAY},
    mean {_ARRAY},
    last {_ARRAY},
    count {_ARRAY},
    nonfinite {_ARRAY})
{_ENGINE.format(key="run, quantity, width, row")}""",
    f"""CREATE TABLE IF NOT EXISTS {WORDS} ({_SEGMENT},
    name LowCardinality(String),
    width UInt32 COMMENT 'words of a step',
    words Array(UInt64) CODEC(ZSTD(1)))
{_ENGINE.format(key="run, name")}""",
)
