"""Reading what a run sent: batches in the order of the log, whether a segment holds them or not.

Log positions of a run are dense, so a gap among the rows of the log says that segments stand
in their place. Where both are asked the log is read first: what is sealed in between is then
told twice and taken once, never missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, Row, Select, bindparam, func, literal, select, union_all

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import Damaged
from gradwarden_server.store.log import recall
from gradwarden_server.store.log.segments import Segment, SegmentReader
from gradwarden_server.store.shelves.shelf import Shelves
from gradwarden_server.store.shelves.spine import Spine

CACHE_BYTES = 256 << 20
_PAGE = 64
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One batch of the log; ``shift_ns`` is to be added to its frames' own times.

    Its rank holds one of ``shards`` parts of its group's parameters. Its steps lie within
    [step0, step1]; without a ``layout`` none of them has a matrix. ``recalled`` is the batch
    itself where a segment held it.
    """

    position: int
    ordinal: int
    rank: int
    shift_ns: int
    received_ns: int
    body: bytes
    group: int
    shard: int
    shards: int
    step0: int
    step1: int
    layout: str
    recalled: wire.Batch | None = None

    def batch(self) -> wire.Batch:
        """Decode the body.

        Raises:
            Damaged: it is not as it was received.
        """
        if self.recalled is not None:
            return self.recalled
        try:
            return wire.decode(self.body)
        except wire.WireError as error:
            place = f"rank {self.rank}, steps {self.step0} to {self.step1}"
            what = f"the batch at log position {self.position}"
            raise Damaged(place, what, str(error)) from None


_STORED = tuple(name for name in LogEntry.__dataclass_fields__ if name != "recalled")


@dataclass(frozen=True, slots=True)
class Logged:
    """One batch of a stream in the log, without its body."""

    position: int
    first_seq: int
    last_seq: int
    step0: int
    step1: int
    t0_ns: int
    t1_ns: int
    layout: str


class LogReader:
    """Every method pages in short transactions."""

    def __init__(
        self, database: Database, cache: Cache | None = None, shelves: Shelves | None = None
    ) -> None:
        """``shelves`` as :class:`gradwarden_server.store.log.segments.SegmentReader` takes them."""
        self._database = database
        self.cache = cache or Cache(CACHE_BYTES)
        self.segments = SegmentReader(database, self.cache, shelves)

    def after(self, project: str, run: str, position: int, limit: int) -> list[LogEntry]:
        """The next ``limit`` batches past a log position, in log order."""
        statement = (
            _entries(project, run)
            .where(t.frame_batch.c.position > position)
            .order_by(t.frame_batch.c.position)
            .limit(limit)
        )
        with self._database.read() as connection:
            found = [_entry(row) for row in connection.execute(statement)]
        if found and found[-1].position == position + len(found):
            return found
        until = found[-1].position if len(found) == limit else _MOST
        held = {entry.position: entry for entry in found}
        compacted = self.segments.past(project, run, position, until)
        for entry in self._compacted(compacted, position, until):
            held.setdefault(entry.position, entry)
        chosen = [held[at] for at in sorted(held)[:limit]]
        missing = {e.position for e in chosen if not e.body}
        recalled = {e.position: e for e in self._recalled(compacted, missing)}
        return [recalled.get(e.position, e) for e in chosen if e.body or e.position in recalled]

    def index(self, project: str, run: str, first: int, last: int) -> list[LogEntry]:
        """The batches that touch steps [first, last], without their bodies.

        Ordered by attempt, then log position, so that later attempts overwrite earlier ones.
        """
        logged, segments = self.holding(project, run, first, last)
        found = {entry.position: entry for entry in logged}
        for entry in self._compacted(segments, 0, _MOST, first, last):
            found.setdefault(entry.position, entry)
        return sorted(found.values(), key=lambda e: (e.ordinal, e.position))

    def holding(
        self, project: str, run: str, first: int, last: int
    ) -> tuple[list[LogEntry], list[Segment]]:
        """What touches steps [first, last]: segments, and the batches that none stands for.

        Both by attempt, then log position; the batches are without their bodies.
        """
        asked = {"of_project": project, "of_run": run, "low": first, "high": last}
        with self._database.read() as connection:
            rows = connection.execute(_TOUCHING, asked).all()
        segments = self.segments.index(project, run, first, last)
        until: dict[int, int] = {}
        for segment in segments:
            known = until.get(segment.stream_id, -1)
            until[segment.stream_id] = max(known, segment.position1)
        # Segments of a stream follow each other, so the newest covers all that is older.
        free = [row for row in rows if row.position > until.get(row.stream_id, -1)]
        return [_entry(row) for row in free], segments

    def bodies(self, project: str, run: str, positions: Sequence[int]) -> Iterator[LogEntry]:
        """The batches at these log positions, read in short transactions."""
        for start in range(0, len(positions), _PAGE):
            page = positions[start : start + _PAGE]
            statement = _entries(project, run).where(t.frame_batch.c.position.in_(page))
            with self._database.read() as connection:
                rows = connection.execute(statement).all()
            yield from map(_entry, rows)
            missing = set(page) - {row.position for row in rows}
            if missing:
                low, high = min(missing) - 1, max(missing)
                yield from self._recalled(self.segments.past(project, run, low, high), missing)

    def of_stream(self, stream_id: int, limit: int) -> list[Logged]:
        """The oldest batches of a stream that no segment stands for."""
        sealed = select(func.coalesce(func.max(t.segment.c.position1), -1)).where(
            t.segment.c.stream_id == stream_id, t.segment.c.sealed
        )
        statement = (
            select(*(t.frame_batch.c[name] for name in Logged.__dataclass_fields__))
            .where(
                t.frame_batch.c.stream_id == stream_id,
                t.frame_batch.c.position > sealed.scalar_subquery(),
            )
            .order_by(t.frame_batch.c.position)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Logged(*row) for row in connection.execute(statement)]

    def layouts(self, project: str, run: str) -> list[str]:
        """The hashes of the layouts that the run's matrices follow, the newest first."""
        newest: dict[str, int] = {}
        asked = {"of_project": project, "of_run": run}
        with self._database.read() as connection:
            for layout, at in connection.execute(_LAYOUTS, asked):
                newest[layout] = max(at, newest.get(layout, 0))
        return sorted(newest, key=lambda layout: -newest[layout])

    def span(self, project: str, run: str) -> tuple[int, int] | None:
        """The first and last step that is held of a run, or None."""
        asked = {"of_project": project, "of_run": run}
        with self._database.read() as connection:
            spans = connection.execute(_SPAN, asked).all()
        known = [(low, high) for low, high in spans if low is not None]
        return (min(k[0] for k in known), max(k[1] for k in known)) if known else None

    def _compacted(
        self,
        segments: Sequence[Segment],
        after: int,
        until: int,
        first: int = 0,
        last: int = _MOST,
    ) -> Iterator[LogEntry]:
        """The batches of segments within log positions and steps, without their frames."""
        whole = [segment for segment in segments if segment.held == "raw"]
        for segment, told in self.segments.spines(whole):
            starts = np.cumsum(told.sent.frames) - told.sent.frames
            step0 = np.minimum.reduceat(told.steps, starts)
            step1 = np.maximum.reduceat(told.steps, starts)
            at = told.sent.position
            kept = (at > after) & (at <= until) & (step1 >= first) & (step0 <= last)
            for i in np.flatnonzero(kept).tolist():
                yield _recalled_entry(segment, told, i, int(step0[i]), int(step1[i]))

    def _recalled(self, segments: Iterable[Segment], positions: set[int]) -> Iterator[LogEntry]:
        wanted = [
            segment
            for segment in segments
            if segment.held == "raw"
            and any(segment.position0 <= at <= segment.position1 for at in positions)
        ]
        for segment, told in self.segments.spines(wanted):
            for i, batch in recall.batches(self.segments, self.cache, segment, told, positions):
                steps = [frame.step for frame in batch.frames]
                entry = _recalled_entry(segment, told, i, min(steps), max(steps))
                yield replace(entry, recalled=batch)


def _recalled_entry(segment: Segment, told: Spine, index: int, step0: int, step1: int) -> LogEntry:
    return LogEntry(
        position=int(told.sent.position[index]),
        ordinal=segment.ordinal,
        rank=segment.rank,
        shift_ns=int(told.sent.shift_ns[index]),
        received_ns=int(told.sent.received_ns[index]),
        body=b"",
        group=segment.group,
        shard=segment.shard,
        shards=segment.shards,
        step0=step0,
        step1=step1,
        layout=told.tellings[int(told.sent.told[index])].layout,
    )


def _of(project: Any, run: Any) -> tuple[Any, ...]:
    return t.run.c.project == project, t.run.c.run == run, t.run.c.deleted_ns.is_(None)


def _entries(project: Any, run: Any, body: Any = t.frame_batch.c.body) -> Select[Any]:
    return (
        select(
            t.frame_batch.c.position,
            t.attempt.c.ordinal,
            t.stream.c.rank,
            t.frame_batch.c.shift_ns,
            t.frame_batch.c.received_ns,
            body,
            t.stream.c.group,
            t.stream.c.shard,
            t.stream.c.shards,
            t.frame_batch.c.step0,
            t.frame_batch.c.step1,
            t.frame_batch.c.layout,
        )
        .join(t.stream, t.stream.c.id == t.frame_batch.c.stream_id)
        .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
        .join(t.run, t.run.c.id == t.frame_batch.c.run_id)
        .where(*_of(project, run))
    )


def _entry(row: Row[Any]) -> LogEntry:
    fields = row._asdict()
    return LogEntry(**{name: fields[name] for name in _STORED})


# What every read of a run asks; to put statements together again would cost more than to run them.
_MINE: tuple[Any, Any] = bindparam("of_project"), bindparam("of_run")
_LOW, _HIGH = bindparam("low", type_=BigInteger), bindparam("high", type_=BigInteger)
_TOUCHING = (
    _entries(*_MINE, literal(b"").label("body"))
    .add_columns(t.frame_batch.c.stream_id)
    .where(t.frame_batch.c.step1 >= _LOW, t.frame_batch.c.step0 <= _HIGH)
    .order_by(t.attempt.c.ordinal, t.frame_batch.c.position)
)
_LAYOUTS = union_all(
    *(
        select(table.c.layout, func.max(position).label("newest"))
        .join(t.run, t.run.c.id == table.c.run_id)
        .where(*_of(*_MINE), table.c.layout != "")
        .group_by(table.c.layout)
        for table, position in (
            (t.frame_batch, t.frame_batch.c.position),
            (t.segment, t.segment.c.position1),
        )
    )
)
_SPAN = union_all(
    *(
        select(func.min(table.c.step0), func.max(table.c.step1))
        .join(t.run, t.run.c.id == table.c.run_id)
        .where(*_of(*_MINE))
        for table in (t.frame_batch, t.segment)
    )
)
