"""Segments taken apart again: their batches back in the log, for an older schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
from sqlalchemy import Connection, delete, select

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.database import Database
from gradwarden_server.store.log import recall
from gradwarden_server.store.log.segments import RAW, Segment, SegmentReader
from gradwarden_server.store.shelves.spine import Spine
from gradwarden_server.store.streams import insert_or_ignore

_MEMORY_BYTES = 256 << 20  # about one segment, decoded


class _One:
    """A database as far as segments are read, within one connection's transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        yield self._connection


def give_back(connection: Connection) -> int:
    """Put the batches of every sealed segment back into the log, and remove all segments.

    Values that retention dropped stay dropped: their frames come back without a matrix, with
    their scalars and events. One segment is in memory at a time.

    Returns:
        How many segments were given back.

    Raises:
        gradwarden_server.store.errors.Damaged: one is, and cannot be.
    """
    reader = SegmentReader(cast(Database, _One(connection)), Cache(0))
    given = 0
    for run in connection.execute(select(t.run.c.id, t.run.c.project, t.run.c.run)).all():
        for segment in reader.index(run.project, run.run, 0, 2**62):
            ((_, told),) = reader.spines([segment])
            if segment.held != RAW:
                told = _without_values(told)
            for row in _rows(reader, segment, told, run.id):
                connection.execute(insert_or_ignore(connection, t.frame_batch).values(row))
            given += 1
    for table in (t.chunk, t.rollup, t.segment):
        connection.execute(delete(table))
    return given


def _rows(
    reader: SegmentReader, segment: Segment, told: Spine, run_id: int
) -> Iterator[dict[str, Any]]:
    """The rows of the log that a segment stood for."""
    sent = told.sent
    ends = np.cumsum(sent.frames)
    positions = sent.position.tolist()
    for i, batch in recall.batches(reader, Cache(_MEMORY_BYTES), segment, told, set(positions)):
        own = slice(int(ends[i] - sent.frames[i]), int(ends[i]))
        steps, times = told.steps[own], told.times_ns[own] + sent.shift_ns[i]
        yield {
            "run_id": run_id,
            "position": positions[i],
            "stream_id": segment.stream_id,
            "first_seq": int(sent.first_seq[i]),
            "last_seq": int(sent.first_seq[i] + sent.frames[i] - 1),
            "step0": int(steps.min()),
            "step1": int(steps.max()),
            "t0_ns": int(times.min()),
            "t1_ns": int(times.max()),
            "shift_ns": int(sent.shift_ns[i]),
            "received_ns": int(sent.received_ns[i]),
            "layout": batch.layout,
            "body": wire.encode(batch),
        }


def _without_values(told: Spine) -> Spine:
    none = np.zeros_like(told.matrix)
    return replace(told, matrix=none, rooted=none, worded=none)
