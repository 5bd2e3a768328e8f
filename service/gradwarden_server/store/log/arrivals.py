"""What trainers said and no commit holds yet, written together: a few statements for them all.

Rows of runs are locked first, all of them and in one order. What was asked at the same time
may take effect in any order; starts come last, so that a stream that ends makes room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from gradwarden import wire
from gradwarden_server.store import streams
from gradwarden_server.store import tables as t
from gradwarden_server.store.errors import RunDeleted, StoreError, UnknownLayout, UnknownStream
from gradwarden_server.store.log import states
from gradwarden_server.store.log.placing import Placed, place
from gradwarden_server.store.log.states import StreamName, StreamState
from gradwarden_server.store.notices import Topic, announce
from gradwarden_server.store.records import Heartbeat, StartRequest

KEY = "run"
"""Their place in a commit, after layouts: who waits for a row of a run holds no layout's."""

_INSERT_BATCHES = insert(t.frame_batch)
_INSERT_EVENTS = insert(t.event)


@dataclass(frozen=True, slots=True)
class Frames:
    """A batch, its frames still to be told from those held; ``layout_known`` saves a look-up."""

    project: str
    header: wire.Header
    raw: bytes
    received_ns: int
    layout_known: bool

    @property
    def speaker(self) -> wire.StreamKey:
        return self.header.stream


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat."""

    project: str
    speaker: Heartbeat
    received_ns: int


@dataclass(frozen=True, slots=True)
class Start:
    """A process that announces itself."""

    project: str
    speaker: StartRequest
    received_ns: int


Arrival = Frames | Beat | Start


def take(connection: Connection, arrivals: Sequence[Arrival]) -> list[Any]:
    """Write all of them; each is answered with its Ack, None, Started or its refusal."""
    states.lock(connection, {(a.project, a.speaker.run) for a in arrivals})
    outcomes: list[Any] = [None] * len(arrivals)
    spoken = [i for i, arrival in enumerate(arrivals) if not isinstance(arrival, Start)]
    if spoken:
        for i, outcome in zip(
            spoken, _hear(connection, [arrivals[i] for i in spoken]), strict=True
        ):
            outcomes[i] = outcome
    for i, arrival in sorted(enumerate(arrivals), key=_run_of):
        if isinstance(arrival, Start):
            try:
                with connection.begin_nested():
                    outcomes[i] = streams.start(
                        connection, arrival.project, arrival.speaker, arrival.received_ns
                    )
            except StoreError as refusal:
                outcomes[i] = refusal
    return outcomes


def _run_of(numbered: tuple[int, Arrival]) -> tuple[str, str]:
    return numbered[1].speaker.run, numbered[1].project


def _hear(connection: Connection, arrivals: Sequence[Any]) -> list[Any]:
    """Frames and heartbeats of streams that started."""
    names = [_name(arrival) for arrival in arrivals]
    held = states.load(connection, dict.fromkeys(names))
    layouts = _layouts(connection, arrivals)
    outcomes: list[Any] = []
    moved: dict[int, StreamState] = {}
    rows: list[Placed] = []
    finishes: list[tuple[StreamState, str]] = []
    for name, arrival in zip(names, arrivals, strict=True):
        try:
            state = _holder(held, name, arrival.speaker.nonce, arrival.received_ns)
            if isinstance(arrival, Beat):
                state.beat(arrival.speaker, arrival.received_ns)
                outcomes.append(None)
            else:
                _check_layout(arrival, layouts)
                placed = place(state, arrival.header, arrival.raw, arrival.received_ns)
                outcomes.append(placed.ack)
                if not placed.ack.stored:
                    continue
                rows.append(placed)
                if placed.finish is not None:
                    finishes.append((state, placed.finish))
            moved[state.id] = state
        except (StoreError, wire.WireError) as refusal:
            outcomes.append(refusal)
    batches = [row for placed in rows for row in placed.batches]
    events = [row for placed in rows for row in placed.events]
    if batches:
        connection.execute(_INSERT_BATCHES, batches)
        announce(connection, Topic.FRAMES)
    if events:
        connection.execute(_INSERT_EVENTS, events)
    if moved:
        states.save(connection, list(moved.values()))
    for state, status in finishes:
        _finish(connection, state, status)
    return outcomes


def _name(arrival: Frames | Beat) -> StreamName:
    speaker = arrival.speaker
    return arrival.project, speaker.run, speaker.attempt, speaker.rank


def _holder(
    held: dict[StreamName, StreamState], name: StreamName, nonce: str, now_ns: int
) -> StreamState:
    """The stream, if this process is the one that started it.

    Raises:
        UnknownStream, RunDeleted, RunAlreadyLive: it is not there, or another's.
    """
    _, run, attempt, rank = name
    state = held.get(name)
    if state is None:
        raise UnknownStream(run, attempt, rank)
    if state.run.deleted:
        raise RunDeleted(run)
    if state.nonce != nonce:
        raise streams.already_live(state, run, now_ns)
    return state


def _layouts(connection: Connection, arrivals: Sequence[Any]) -> dict[tuple[str, str], int]:
    """The rows of each layout that a batch names and nobody has vouched for."""
    asked = {
        (arrival.project, arrival.header.layout)
        for arrival in arrivals
        if isinstance(arrival, Frames) and any(arrival.header.matrix) and not arrival.layout_known
    }
    rows = {}
    for project, digest in asked:
        found = connection.execute(
            select(t.layout.c.body).where(t.layout.c.project == project, t.layout.c.hash == digest)
        ).scalar_one_or_none()
        if found is not None:
            rows[project, digest] = len(found["parameters"])
    return rows


def _check_layout(arrival: Frames, layouts: dict[tuple[str, str], int]) -> None:
    header = arrival.header
    if arrival.layout_known or not any(header.matrix):
        return
    rows = layouts.get((arrival.project, header.layout))
    if rows is None:
        raise UnknownLayout(header.layout)
    if rows != header.parameters:
        raise wire.Malformed("L", header.parameters, f"layout {header.layout} has {rows} rows")


def _finish(connection: Connection, state: StreamState, status: str) -> None:
    """End the attempt when its last rank ended, and the run with its newest attempt.

    A failure of any rank is the attempt's; the rank that failed need not be the last to end.
    """
    attempt = connection.execute(select(t.attempt).where(t.attempt.c.id == state.attempt_id)).one()
    worst = ("failed", "preempted", "cancelled", "finished")
    if status not in worst:  # a word of a newer trainer, or nonsense
        status = "failed"
    if attempt.status in worst:
        status = min(status, attempt.status, key=worst.index)
    alive = connection.execute(
        select(func.count())
        .select_from(t.stream)
        .where(t.stream.c.attempt_id == state.attempt_id, t.stream.c.ended.is_(False))
    ).scalar_one()
    if alive and status not in ("failed", "preempted"):
        return
    ended = {"status": status, "ended_ns": state.last_time_ns}
    connection.execute(update(t.attempt).where(t.attempt.c.id == state.attempt_id).values(ended))
    newest = connection.execute(
        select(func.max(t.attempt.c.ordinal)).where(t.attempt.c.run_id == state.run.id)
    ).scalar_one()
    if attempt.ordinal == newest:
        connection.execute(update(t.run).where(t.run.c.id == state.run.id).values(ended))
