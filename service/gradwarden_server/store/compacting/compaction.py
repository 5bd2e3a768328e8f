"""From the log to segments, one stream at a time, and safe to cut off anywhere.

A segment's unsealed row is the claim on its batches; its values are put on a shelf; then one
transaction seals it, and from that moment readers take the segment and not the log; its batches
are deleted last. What a dead process left unsealed is undone, what it left undeleted is
deleted: the same batches make the same segment again.
"""

from __future__ import annotations

import logging
import zlib
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, or_, select, true, update

from gradwarden_server.store import tables as t
from gradwarden_server.store.compacting.build import build
from gradwarden_server.store.compacting.claims import Backlog, Claim, Due
from gradwarden_server.store.compacting.workshop import Workshop
from gradwarden_server.store.database import Database, Priority, clock_ns
from gradwarden_server.store.errors import Unavailable
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.shelves.built import Built
from gradwarden_server.store.shelves.filing import filed
from gradwarden_server.store.shelves.shelf import Filed
from gradwarden_server.store.streams import insert_or_ignore

log = logging.getLogger(__name__)

FRAMES = 1024
"""Frames of one segment at most."""
SEGMENT_BYTES = 64 << 20
"""Inflated bytes of one segment's matrices at most: what its making takes in memory."""
ABANDONED_NS = 60 * 1_000_000_000
"""An unsealed segment this old, by the database's clock, was left by a process that died."""
IDLE_NS = 900 * 1_000_000_000
"""A stream that was not heard for so long is compacted whole; an ended one sooner."""
ENDED_NS = 60 * 1_000_000_000

_SWEEP_ROWS = 128
_LISTED = 1024
_TORN = "ReplicaMismatch"
_GONE = "gone"  # of an unsealed segment: its values are being dropped
_SCATTER = 2654435761  # Knuth's multiplier: neighbours fall far apart


class Compaction:
    """The steps of a compaction; each is one or several short transactions."""

    def __init__(
        self,
        database: Database,
        log: LogReader,
        precision_bits: int = 0,
        frames: int = FRAMES,
        workshop: Workshop | None = None,
    ) -> None:
        """``precision_bits`` as :func:`gradwarden_server.store.compacting.build.build` takes them.

        Without a ``workshop`` segments are made right here.
        """
        self._workshop = workshop
        self._database = database
        self._log = log
        self._shelves = log.segments.shelves
        self._bits = precision_bits
        self._frames = frames

    def ready(self) -> None:
        """Raise Unavailable if what compaction makes cannot be put anywhere now."""
        self._shelves.current.ready()

    def rest(self) -> None:
        """Nothing is to be done for a while."""
        if self._workshop is not None:
            self._workshop.rest()

    def due(self, now_ns: int) -> list[Due]:
        """Streams that hold a segment's worth, or fell silent; the fullest first."""
        silent = or_(
            t.stream.c.last_seen_ns < now_ns - IDLE_NS,
            t.stream.c.ended & (t.stream.c.last_seen_ns < now_ns - ENDED_NS),
        )
        ready = or_(t.stream.c.logged_bytes >= SEGMENT_BYTES, silent)
        statement = (
            select(
                t.stream.c.id,
                t.stream.c.run_id,
                t.run.c.project,
                t.run.c.run,
                t.attempt.c.attempt,
                t.stream.c.rank,
                t.stream.c.logged_frames,
                t.stream.c.logged_bytes,
                ready.label("ready"),
            )
            .join(t.run, t.run.c.id == t.stream.c.run_id)
            .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
            .where(
                t.run.c.deleted_ns.is_(None),
                t.stream.c.logged_frames > 0,
                or_(t.stream.c.logged_frames >= self._frames // 2, ready),
            )
            .order_by(t.stream.c.logged_frames.desc())
            .limit(_LISTED)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [
            Due(*row[:-1]) for row in rows if row.ready or row.logged_frames >= self.target(row.id)
        ]

    def target(self, stream_id: int) -> int:
        """Frames at which this stream is compacted: ranks in step do not come all at once."""
        spread = stream_id * _SCATTER % 2**32 * (self._frames // 2) >> 32
        return self._frames - spread

    def backlog(self) -> Backlog:
        """How far compaction is behind."""
        over = t.stream.c.logged_frames - self._frames
        behind = case((over > 0, over), else_=0)
        share = case((over > 0, t.stream.c.logged_bytes * over / t.stream.c.logged_frames), else_=0)
        statement = select(
            func.coalesce(func.sum(behind), 0), func.coalesce(func.sum(share), 0)
        ).where(t.stream.c.logged_frames > self._frames)
        with self._database.read() as connection:
            frames, size = connection.execute(statement).one()
        return Backlog(int(frames), int(size))

    def compact(self, due: Due) -> Claim | None:
        """Make one segment of a stream's oldest batches; None where there was nothing to claim.

        Raises:
            gradwarden.wire.WireError: a batch is damaged; its claim is given back.
        """
        self.sweep(due.stream_id)
        claim = self.claim(due)
        if claim is None:
            return None
        try:
            made = self.make(claim)
            self.seal(claim, made, self.fill(claim, made))
        except BaseException:
            self.abandon(claim)
            raise
        self.sweep(due.stream_id)
        return claim

    def claim(self, due: Due) -> Claim | None:
        """Take the oldest batches of a stream that make up a segment, if nobody else did."""
        batches = self._log.of_stream(due.stream_id, self._frames)
        layouts: set[str] = set()
        frames = size = 0
        share = due.bytes // max(1, due.frames)
        taken: list[Any] = []
        for batch in batches:
            count = batch.last_seq - batch.first_seq + 1
            layouts |= {batch.layout} - {""}
            full = frames + count > self._frames or size + count * share > SEGMENT_BYTES
            if taken and (full or len(layouts) > 1):
                break
            taken.append(batch)
            frames, size = frames + count, size + count * share
        if not taken:
            return None
        values = {
            "run_id": due.run_id,
            "stream_id": due.stream_id,
            "position0": taken[0].position,
            "position1": taken[-1].position,
            "step0": min(b.step0 for b in taken),
            "step1": max(b.step1 for b in taken),
            "t0_ns": min(b.t0_ns for b in taken),
            "t1_ns": max(b.t1_ns for b in taken),
            "frames": frames,
            "matrices": 0,
            "samples": 0,
            "layout": max(layouts, default=""),
            "sealed": False,
            "held": "raw",
            "shelf": self._shelves.current.name,
            "bytes": 0,
            "crc32": 0,
            "body": b"",
        }

        mine = (t.segment.c.stream_id == due.stream_id) & (
            t.segment.c.position0 == taken[0].position
        )
        self._clear(mine, ABANDONED_NS)

        def job(connection: Connection) -> tuple[int, int] | None:
            now_ns = clock_ns(connection)
            _drop(connection, mine & (t.segment.c.claimed_ns < now_ns - ABANDONED_NS))
            statement = insert_or_ignore(connection, t.segment).values(
                values | {"claimed_ns": now_ns}
            )
            number = connection.execute(statement.returning(t.segment.c.id)).scalar_one_or_none()
            return None if number is None else (int(number), now_ns)

        made = self._write(job)
        if made is None:
            return None
        filed = Filed(
            id=made[0],
            claimed_ns=made[1],
            shelf=self._shelves.current.name,
            run=due.run,
            attempt=due.attempt,
            rank=due.rank,
            step0=values["step0"],
            step1=values["step1"],
        )
        return Claim(filed, due, [b.position for b in taken], frames, size)

    def make(self, claim: Claim) -> Built:
        """Read the claimed batches and make the segment of them; writes nothing."""
        due = claim.due
        keep_roots = self._may_differ(claim)
        if self._workshop is not None:
            return self._workshop.make(due.project, due.run, claim.positions, keep_roots)
        entries = list(self._log.bodies(due.project, due.run, claim.positions))
        entries.sort(key=lambda entry: entry.position)
        return build(entries, self._bits, keep_roots=keep_roots)

    def _may_differ(self, claim: Claim) -> bool:
        """Whether roots are still wanted: not yet compared, or of a run that was torn once."""
        cursor = select(t.cursor.c.position).where(t.cursor.c.run_id == claim.due.run_id)
        torn = select(t.alert.c.id).where(
            t.alert.c.run_id == claim.due.run_id, t.alert.c.alertname == _TORN
        )
        with self._database.read() as connection:
            judged = connection.execute(cursor).scalar_one_or_none() or 0
            return judged < claim.positions[-1] or connection.execute(torn).first() is not None

    def fill(self, claim: Claim, made: Built) -> int:
        """Put the values on their shelf; what they weigh in the database, in bytes."""
        return self._shelves.current.put(claim.due.project, claim.filed, made)

    def seal(self, claim: Claim, made: Built, weight: int) -> None:
        """Let the segment stand for its batches.

        Args:
            claim: Of the segment.
            made: What was put on its shelf.
            weight: As :meth:`fill` told it.

        Raises:
            LostClaim: another process undid the claim.
        """

        def job(connection: Connection) -> None:
            sealed = connection.execute(
                update(t.segment)
                .where(
                    t.segment.c.id == claim.filed.id,
                    t.segment.c.claimed_ns == claim.filed.claimed_ns,
                    t.segment.c.sealed.is_(False),
                    t.segment.c.held != _GONE,
                )
                .values(
                    sealed=True,
                    matrices=int(made.spine.matrix.sum()),
                    samples=made.samples,
                    bytes=len(made.body) + weight,
                    crc32=zlib.crc32(made.body),
                    body=made.body,
                )
            )
            if sealed.rowcount != 1:
                raise LostClaim(f"segment {claim.filed.id} of run {claim.due.run!r}")
            size = func.min if connection.dialect.name == "sqlite" else func.least
            rest = t.stream.c.logged_bytes - size(t.stream.c.logged_bytes, claim.bytes)
            frames = t.stream.c.logged_frames - claim.frames
            connection.execute(
                update(t.stream)
                .where(t.stream.c.id == claim.due.stream_id)
                .values(logged_frames=frames, logged_bytes=case((frames > 0, rest), else_=0))
            )

        self._write(job)

    def abandon(self, claim: Claim) -> None:
        """Give a claim back."""
        mine = (t.segment.c.id == claim.filed.id) & (
            t.segment.c.claimed_ns == claim.filed.claimed_ns
        )
        self._clear(mine)

        def job(connection: Connection) -> bool:
            _drop(connection, mine)
            return connection.execute(select(t.segment.c.id).where(mine)).first() is not None

        # The row may be gone with its run, or sealed after all, by a commit nobody heard of.
        sealed = self._write(job)
        if self._shelves.series is not None and not sealed:
            self._shelves.series.drop([claim.filed])

    def sweep(self, stream_id: int) -> None:
        """Delete the batches of a stream that sealed segments stand for."""
        statement = (
            select(t.frame_batch.c.id)
            .join(
                t.segment,
                (t.segment.c.stream_id == t.frame_batch.c.stream_id)
                & t.segment.c.sealed
                & (t.frame_batch.c.position >= t.segment.c.position0)
                & (t.frame_batch.c.position <= t.segment.c.position1),
            )
            .where(t.frame_batch.c.stream_id == stream_id)
            .limit(_SWEEP_ROWS)
        )

        def job(connection: Connection) -> int:
            rows = list(connection.execute(statement).scalars())
            connection.execute(delete(t.frame_batch).where(t.frame_batch.c.id.in_(rows)))
            return len(rows)

        while self._write(job) == _SWEEP_ROWS:
            pass

    def recover(self, alone: bool) -> None:
        """Undo and finish what dead processes left; ``alone`` says that no other can live."""

        age_ns = -1 if alone else ABANDONED_NS
        cleared = True
        try:
            self._clear(true(), age_ns)
        except Unavailable as error:
            log.warning("what dead processes left unfinished is undone later: %s", error)
            cleared = False

        def job(connection: Connection) -> list[int]:
            if cleared:
                _drop(connection, t.segment.c.claimed_ns < clock_ns(connection) - age_ns)
            # Only the newest sealed segment of a stream can have batches left.
            newest = (
                select(func.max(t.segment.c.position1).label("until"), t.segment.c.stream_id)
                .where(t.segment.c.sealed)
                .group_by(t.segment.c.stream_id)
                .subquery()
            )
            left = (
                select(newest.c.stream_id)
                .join(t.frame_batch, t.frame_batch.c.stream_id == newest.c.stream_id)
                .where(t.frame_batch.c.position <= newest.c.until)
                .distinct()
            )
            return list(connection.execute(left).scalars())

        for stream_id in self._write(job):
            self.sweep(stream_id)

    def _clear(self, which: ColumnElement[bool], age_ns: int | None = None) -> None:
        """Take the values of unsealed segments off a series engine, before their rows go.

        They are said to be gone first, so that a process that was taken for dead cannot seal
        what it put there.
        """
        series = self._shelves.series
        if series is None:
            return

        def job(connection: Connection) -> list[Filed]:
            mine = t.segment.c.sealed.is_(False) & (t.segment.c.shelf == series.name) & which
            if age_ns is not None:
                mine &= t.segment.c.claimed_ns < clock_ns(connection) - age_ns
            connection.execute(update(t.segment).where(mine).values(held=_GONE))
            return filed(connection, mine)

        series.drop(self._write(job))

    def _write(self, job: Any) -> Any:
        return self._database.write(job, Priority.COMPACTION).result()


class LostClaim(Exception):
    """This process was taken for dead, and another one makes the segment."""


def _drop(connection: Connection, which: ColumnElement[bool]) -> None:
    unsealed = t.segment.c.sealed.is_(False)
    connection.execute(delete(t.segment).where(unsealed, which))
