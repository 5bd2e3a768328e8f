"""The frame log: every received batch as it came, exactly once, acked after its commit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, insert, select, update

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import UnknownLayout
from gradwarden_server.store.notices import Topic, announce
from gradwarden_server.store.records import Ack
from gradwarden_server.store.streams import check_holder, find_stream

_SECOND_NS = 1_000_000_000
FUTURE_NS = 300 * _SECOND_NS
"""Frames dated further ahead than this are stored at their receipt and flagged."""
_CLOCK_TOLERANCE_NS = 1 * _SECOND_NS
_LAYOUTS_KNOWN = 10_000
_MOST_GAPS = 10_000
"""Each gap is read and written again with every batch; honest streams have a handful."""

# Three statements for every batch, so they are put together once.
_INSERT = insert(t.frame_batch)
_ADVANCE_STREAM = (
    update(t.stream)
    .where(t.stream.c.id == bindparam("of_stream"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "seqs",
                "last_time_ns",
                "last_step",
                "last_step_ns",
                "last_seen_ns",
                "ended",
            )
        }
    )
)
_ADVANCE_RUN = (
    update(t.run)
    .where(t.run.c.id == bindparam("of_run"))
    .values(
        position=bindparam("position"),
        last_seen_ns=bindparam("last_seen_ns"),
        last_step=case(
            (t.run.c.last_step > bindparam("to_step"), t.run.c.last_step),
            else_=bindparam("to_step"),
        ),
    )
)


class FrameLog:
    """Appends are durable before they are acked."""

    def __init__(
        self, database: Database, appended: Callable[[str], None] = lambda project: None
    ) -> None:
        """``appended`` is called with the project after each commit: it wakes the evaluator."""
        self._database = database
        self._appended = appended
        # (project, hash, rows) that a durable commit proved right; a layout never changes.
        self._known: set[tuple[str, str, int]] = set()

    def append(self, project: str, batch: wire.Batch, raw: bytes, received_ns: int) -> Future[Ack]:
        """Store the frames of ``batch`` that are new; ``raw`` is the batch as it came.

        The future raises UnknownStream, UnknownLayout or RunAlreadyLive; nothing is stored
        then.
        """
        layout = (project, batch.layout, batch.parameters)

        def job(connection: Connection) -> Ack:
            known = layout in self._known
            return _append(connection, project, batch, raw, received_ns, known)

        def done(future: Future[Ack]) -> None:
            if future.exception() is not None:
                return
            if any(frame.values for frame in batch.frames):
                if len(self._known) >= _LAYOUTS_KNOWN:
                    self._known.clear()
                self._known.add(layout)
            self._appended(project)

        future = self._database.write(job, key=batch.stream.run)
        future.add_done_callback(done)
        return future


def _append(
    connection: Connection,
    project: str,
    batch: wire.Batch,
    raw: bytes,
    received_ns: int,
    layout_known: bool,
) -> Ack:
    key = batch.stream
    row = find_stream(connection, project, key.run, key.attempt, key.rank)
    check_holder(row, key.run, key.nonce, received_ns)
    if not layout_known:
        _check_layout(connection, project, batch)
    gaps = wire.missing(_held(row), batch.first_seq, batch.last_seq)
    stored = sum(last - first + 1 for first, last in gaps)
    if not stored:
        return Ack(0, len(batch.frames))
    position, last_time_ns = row.position, row.last_time_ns
    for first, last in gaps:
        whole = stored == len(batch.frames)
        piece = batch if whole else batch.select(first, last)
        position += 1
        shift_ns, refused = _shift(row.clock, piece, received_ns, last_time_ns)
        last_time_ns = max(f.time_ns for f in piece.frames) + shift_ns
        values = {
            "run_id": row.run_id,
            "position": position,
            "stream_id": row.id,
            "first_seq": first,
            "last_seq": last,
            "step0": min(f.step for f in piece.frames),
            "step1": max(f.step for f in piece.frames),
            "t0_ns": min(f.time_ns for f in piece.frames) + shift_ns,
            "t1_ns": last_time_ns,
            "shift_ns": shift_ns,
            "received_ns": received_ns,
            "layout": piece.layout,
            "body": raw if whole else wire.encode(piece),
        }
        connection.execute(_INSERT, values)
        _keep_events(connection, row, piece, shift_ns, refused)
    _advance(connection, row, batch, received_ns, position, last_time_ns)
    announce(connection, Topic.FRAMES)
    return Ack(stored, len(batch.frames) - stored)


def _held(row: Row[Any]) -> list[tuple[int, int]]:
    return [(first, last) for first, last in row.seqs]


def _check_layout(connection: Connection, project: str, batch: wire.Batch) -> None:
    if not any(frame.values for frame in batch.frames):
        return
    found = connection.execute(
        select(t.layout.c.body).where(
            t.layout.c.project == project, t.layout.c.hash == batch.layout
        )
    ).scalar_one_or_none()
    if found is None:
        raise UnknownLayout(batch.layout)
    if len(found["parameters"]) != batch.parameters:
        raise wire.Malformed(
            "L", batch.parameters, f"layout {batch.layout} has {len(found['parameters'])} rows"
        )


def _shift(
    clock: dict[str, int | None] | None,
    batch: wire.Batch,
    received_ns: int,
    last_time_ns: int | None,
) -> tuple[int, bool]:
    """Nanoseconds to add to host time, and whether the host's date was refused.

    The least offset seen holds the network's delay too, so a small one is no clock error.
    """
    known = [v for v in ((clock or {}).get(k) for k in ("current", "previous")) if v is not None]
    shift = min(known) if known and abs(min(known)) > _CLOCK_TOLERANCE_NS else 0
    newest = max(frame.time_ns for frame in batch.frames)
    refused = newest + shift > received_ns + FUTURE_NS
    if refused:
        shift = received_ns - newest
    oldest = min(frame.time_ns for frame in batch.frames)
    if last_time_ns is not None and oldest + shift < last_time_ns and shift:
        shift = min(last_time_ns - oldest, max(shift, received_ns - newest))
    return shift, refused


def _keep_events(
    connection: Connection, row: Row[Any], batch: wire.Batch, shift_ns: int, refused: bool
) -> None:
    events = [(frame, event) for frame in batch.frames for event in frame.events]
    if refused:
        text = f"host clock is ahead by {-shift_ns / 1e9:.0f} s; stored at receipt"
        events.append((batch.frames[-1], {"kind": "clock", "text": text}))
    if not events:
        return
    connection.execute(
        insert(t.event),
        [
            {
                "run_id": row.run_id,
                "attempt_id": row.attempt_id,
                "rank": row.rank,
                "step": frame.step,
                "time_ns": frame.time_ns + shift_ns,
                "kind": event["kind"][:64],
                "data": {name: value for name, value in event.items() if name != "kind"},
            }
            for frame, event in events
        ],
    )


def _advance(
    connection: Connection,
    row: Row[Any],
    batch: wire.Batch,
    received_ns: int,
    position: int,
    last_time_ns: int | None,
) -> None:
    last_step = max(f.step for f in batch.frames)
    moved = row.last_step is None or last_step > row.last_step
    finishes = [e for f in batch.frames for e in f.events if e["kind"] == "finish"]
    seqs = wire.merge(_held(row), batch.first_seq, batch.last_seq)
    if len(seqs) > _MOST_GAPS:
        raise wire.Malformed("first_seq", batch.first_seq, f"{len(seqs)} gaps in this stream")
    values = {
        "of_stream": row.id,
        "seqs": seqs,
        "last_time_ns": last_time_ns,
        "last_step": last_step if moved else row.last_step,
        "last_step_ns": received_ns if moved else row.last_step_ns,
        "last_seen_ns": received_ns,
        "ended": row.ended or bool(finishes),
    }
    connection.execute(_ADVANCE_STREAM, values)
    values = {"of_run": row.run_id, "position": position, "last_seen_ns": received_ns}
    connection.execute(_ADVANCE_RUN, values | {"to_step": last_step})
    if finishes:
        _finish(connection, row, str(finishes[-1].get("status", "finished")), last_time_ns)


def _finish(connection: Connection, row: Row[Any], status: str, at_ns: int | None) -> None:
    """End the attempt when its last rank ended, and the run with its newest attempt.

    A failure of any rank is the attempt's; the rank that failed need not be the last to end.
    """
    attempt = connection.execute(select(t.attempt).where(t.attempt.c.id == row.attempt_id)).one()
    worst = ("failed", "preempted", "cancelled", "finished")
    if status not in worst:  # a word of a newer trainer, or nonsense
        status = "failed"
    if attempt.status in worst:
        status = min(status, attempt.status, key=worst.index)
    alive = connection.execute(
        select(func.count())
        .select_from(t.stream)
        .where(t.stream.c.attempt_id == row.attempt_id, t.stream.c.ended.is_(False))
    ).scalar_one()
    if alive and status not in ("failed", "preempted"):
        return
    ended = {"status": status, "ended_ns": at_ns}
    connection.execute(update(t.attempt).where(t.attempt.c.id == row.attempt_id).values(ended))
    newest = connection.execute(
        select(func.max(t.attempt.c.ordinal)).where(t.attempt.c.run_id == row.run_id)
    ).scalar_one()
    if attempt.ordinal == newest:
        connection.execute(update(t.run).where(t.run.c.id == row.run_id).values(ended))
