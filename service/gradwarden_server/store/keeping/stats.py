"""What is stored and what it weighs: by project, run, quantity and width. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, func, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database


@dataclass(slots=True)
class RunSize:
    """One run. Bytes are those of bodies, without what the database adds around them.

    ``samples`` counts measured values in segments; what the log holds is not unpacked to
    count it, so ``log_inflated_bytes`` tells what its matrices would take.
    """

    project: str
    run: str
    log_batches: int = 0
    log_frames: int = 0
    log_bytes: int = 0
    log_inflated_bytes: int = 0
    segments: int = 0
    segment_frames: int = 0
    segment_bytes: int = 0
    samples: int = 0
    chunk_bytes: dict[str, int] = field(default_factory=dict)
    rollup_bytes: dict[int, int] = field(default_factory=dict)
    series: int = 0
    series_chunks: int = 0
    series_bytes: int = 0

    @property
    def compacted_bytes(self) -> int:
        """Segments with all that belongs to them."""
        parts = (*self.chunk_bytes.values(), *self.rollup_bytes.values())
        return self.segment_bytes + sum(parts)

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.log_bytes + self.compacted_bytes + self.series_bytes

    @property
    def bytes_per_sample(self) -> float | None:
        """Of what was compacted; None before anything was."""
        return self.compacted_bytes / self.samples if self.samples else None


def sizes(database: Database) -> list[RunSize]:
    """Every run that is not deleted, by project and name."""
    names = select(t.run.c.id, t.run.c.project, t.run.c.run)
    names = names.where(t.run.c.deleted_ns.is_(None)).order_by(t.run.c.project, t.run.c.run)
    found = {row.id: RunSize(row.project, row.run) for row in _read(database, names)}
    for statement in (_LOG, _INFLATED, _SEGMENTS, _SERIES):
        for row in _read(database, statement):
            numbers = row._asdict()
            run = found.get(numbers.pop("run_id"))
            for name, value in numbers.items() if run is not None else ():
                setattr(run, name, int(value or 0))
    for table, key in ((t.chunk, "quantity"), (t.rollup, "width")):
        for row in _read(database, _parts(table, key)):
            if row.run_id in found:
                run = found[row.run_id]
                parts: dict[Any, int] = run.chunk_bytes if key == "quantity" else run.rollup_bytes
                parts[row.key] = int(row.weight)
    return list(found.values())


def _read(database: Database, statement: Select[Any]) -> Sequence[Row[Any]]:
    with database.read() as connection:
        return connection.execute(statement).all()


def _weight(table: Table) -> ColumnElement[int]:
    return func.sum(func.length(table.c.body))


def _parts(table: Table, key: str) -> Select[Any]:
    columns = (t.segment.c.run_id, table.c[key].label("key"))
    return (
        select(*columns, _weight(table).label("weight"))
        .join(t.segment, t.segment.c.id == table.c.segment_id)
        .group_by(*columns)
    )


_LOG = select(
    t.frame_batch.c.run_id,
    func.count().label("log_batches"),
    func.sum(t.frame_batch.c.last_seq - t.frame_batch.c.first_seq + 1).label("log_frames"),
    _weight(t.frame_batch).label("log_bytes"),
).group_by(t.frame_batch.c.run_id)
_INFLATED = select(
    t.stream.c.run_id, func.sum(t.stream.c.logged_bytes).label("log_inflated_bytes")
).group_by(t.stream.c.run_id)
_SEGMENTS = select(
    t.segment.c.run_id,
    func.count().label("segments"),
    func.sum(t.segment.c.frames).label("segment_frames"),
    func.sum(t.segment.c.samples).label("samples"),
    _weight(t.segment).label("segment_bytes"),
).group_by(t.segment.c.run_id)
_SERIES = (
    select(
        t.series.c.run_id,
        func.count(t.series.c.id.distinct()).label("series"),
        func.count(t.sample_chunk.c.id).label("series_chunks"),
        _weight(t.sample_chunk).label("series_bytes"),
    )
    .outerjoin(t.sample_chunk, t.sample_chunk.c.series_id == t.series.c.id)
    .where(t.series.c.run_id.is_not(None))
    .group_by(t.series.c.run_id)
)
