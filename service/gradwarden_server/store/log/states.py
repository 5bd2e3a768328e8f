"""What is written of a stream with everything it sends, for many streams in one statement each.

Rows go in as one JSON document, and on SQLite they come out as one: each row that the driver
steps over lets go of the interpreter, and has to wait for it again behind every busy thread.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from gradwarden_server.store.records import Heartbeat

_CLOCK_WINDOW_NS = 600 * 1_000_000_000

RunName = tuple[str, str]
"""A run's project and identifier."""
StreamName = tuple[str, str, str, int]
"""A stream's project, run, attempt and rank."""


@dataclass(slots=True)
class RunState:
    """A run's row, as far as frames and heartbeats move it."""

    id: int
    deleted: bool
    position: int
    last_seen_ns: int
    last_step: int | None = None
    """The highest step stored since it was loaded."""


@dataclass(slots=True)
class StreamState:
    """A stream's row; what follows ``host`` and ``pid`` is moved and saved."""

    run: RunState
    id: int
    attempt_id: int
    rank: int
    nonce: str
    host: str
    pid: int
    seqs: list[tuple[int, int]]
    clock: dict[str, int | None] | None
    last_time_ns: int | None
    last_step: int | None
    last_step_ns: int | None
    last_seen_ns: int
    heartbeat_ns: int | None
    phase: str | None
    ended: bool
    logged_frames: int = field(default=0)
    """Frames stored since it was loaded, and the bytes of their matrices."""
    logged_bytes: int = field(default=0)

    def seen(self, at_ns: int, step: int | None) -> None:
        """Note that it spoke, and of what step."""
        self.last_seen_ns = self.run.last_seen_ns = at_ns
        if step is not None and (self.last_step is None or step > self.last_step):
            self.last_step, self.last_step_ns = step, at_ns

    def beat(self, beat: Heartbeat, received_ns: int) -> None:
        """Note a sign of life."""
        self.seen(received_ns, beat.step)
        self.heartbeat_ns, self.phase = received_ns, beat.phase
        self.clock = _windowed_minimum(self.clock, received_ns - beat.sent_ns, received_ns)


_KEPT = {
    "seqs": "json",
    "clock": "json",
    "last_time_ns": "bigint",
    "last_step": "bigint",
    "last_step_ns": "bigint",
    "last_seen_ns": "bigint",
    "heartbeat_ns": "bigint",
    "phase": "text",
    "ended": "boolean",
}
_LOADED = ("id", "attempt_id", "rank", "nonce", "host", "pid", *_KEPT)
# Compaction takes from these at the same time.
_ADDED = ("logged_frames", "logged_bytes")

_OF_RUN = ("id", "deleted_ns IS NOT NULL", "position", "last_seen_ns")
_JOINS = """
JOIN run ON run.project = {0} AND run.run = {1}
JOIN attempt ON attempt.run_id = run.id AND attempt.attempt = {2}
JOIN stream ON stream.attempt_id = attempt.id AND stream.rank = {3}
"""
_LOAD = {
    "sqlite": text(
        "SELECT json_group_array(json_array(k.key, "
        + ", ".join(f"run.{name}" for name in _OF_RUN)
        + ", "
        + ", ".join(
            f"json(stream.{n})" if _KEPT.get(n) == "json" else f"stream.{n}" for n in _LOADED
        )
        + ")) FROM json_each(:names) AS k CROSS "
        + _JOINS.format(*(f"json_extract(k.value, '$[{i}]')" for i in range(4)))
    ),
    "postgresql": text(
        "SELECT k.key - 1, "
        + ", ".join(f"run.{name}" for name in _OF_RUN)
        + ", "
        + ", ".join(f"stream.{name}" for name in _LOADED)
        + " FROM jsonb_array_elements(CAST(:names AS jsonb)) WITH ORDINALITY AS k(value, key)"
        + _JOINS.format(*(f"k.value ->> {i}" for i in range(3)), "CAST(k.value ->> 3 AS bigint)")
    ),
}
# Whoever waits for one of these rows reads, in its next statement, what was committed meanwhile.
# All processes lock in this order. A run's lock covers its attempts and its streams.
_LOCK = text(
    "SELECT run.id FROM run WHERE (run.project, run.run) IN ("
    "SELECT k.value ->> 0, k.value ->> 1 FROM jsonb_array_elements(CAST(:names AS jsonb)) AS k) "
    'ORDER BY run.run COLLATE "C", run.project COLLATE "C" FOR NO KEY UPDATE'
)


def lock(connection: Connection, names: Collection[RunName]) -> None:
    """Lock rows of runs, all in one order; on SQLite the writer holds the whole file already."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"names": json.dumps(list(names))})


def load(connection: Connection, names: Iterable[StreamName]) -> dict[StreamName, StreamState]:
    """The streams of these names that exist; their runs are locked."""
    asked = list(names)
    document = {"names": json.dumps(asked)}
    found = connection.execute(_LOAD[connection.dialect.name], document)
    rows: Iterable[Any] = found
    if connection.dialect.name == "sqlite":
        rows = json.loads(found.scalar_one())
    runs: dict[int, RunState] = {}
    streams: dict[StreamName, StreamState] = {}
    for index, run_id, deleted, position, last_seen_ns, *values in rows:
        run = runs.get(run_id)
        if run is None:
            run = runs[run_id] = RunState(run_id, bool(deleted), position, last_seen_ns)
        state = StreamState(run, *values)
        state.seqs = [(first, last) for first, last in state.seqs]
        streams[asked[index]] = state
    return streams


def _update(table: str, columns: dict[str, str], set_to: dict[str, str]) -> dict[str, Any]:
    """For each dialect an UPDATE of ``table`` from one JSON list of objects."""
    names = {"id": "bigint"} | columns
    typed = ", ".join(f"{name} {kind}" for name, kind in names.items())
    rows = {
        "sqlite": "(SELECT "
        + ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in names)
        + " FROM json_each(:rows)) AS new",
        "postgresql": f"jsonb_to_recordset(CAST(:rows AS jsonb)) AS new({typed})",
    }
    to = ", ".join(f"{name} = {value}" for name, value in set_to.items())
    return {
        dialect: text(f"UPDATE {table} SET {to} FROM {source} WHERE {table}.id = new.id")
        for dialect, source in rows.items()
    }


_SAVE_STREAMS = _update(
    "stream",
    _KEPT | dict.fromkeys(_ADDED, "bigint"),
    {name: f"new.{name}" for name in _KEPT}
    | {name: f"stream.{name} + new.{name}" for name in _ADDED},
)
_SAVE_RUNS = _update(
    "run",
    dict.fromkeys(("position", "last_seen_ns", "last_step"), "bigint"),
    {
        "position": "new.position",
        "last_seen_ns": "new.last_seen_ns",
        "last_step": "CASE WHEN new.last_step IS NULL OR run.last_step > new.last_step "
        "THEN run.last_step ELSE new.last_step END",
    },
)


def save(connection: Connection, states: Collection[StreamState]) -> None:
    """Write streams that were loaded in the same transaction, and their runs."""
    streams = [
        {"id": state.id} | {name: getattr(state, name) for name in (*_KEPT, *_ADDED)}
        for state in states
    ]
    runs = [
        {
            "id": run.id,
            "position": run.position,
            "last_seen_ns": run.last_seen_ns,
            "last_step": run.last_step,
        }
        for run in {state.run.id: state.run for state in states}.values()
    ]
    dialect = connection.dialect.name
    connection.execute(_SAVE_STREAMS[dialect], {"rows": json.dumps(streams)})
    connection.execute(_SAVE_RUNS[dialect], {"rows": json.dumps(runs)})


def _windowed_minimum(
    clock: dict[str, int | None] | None, sample: int, now_ns: int
) -> dict[str, int | None]:
    """The least of received minus sent over the current and the previous ten minutes."""
    if clock is None:
        return {"since": now_ns, "current": sample, "previous": None}
    since, current = clock["since"] or now_ns, clock["current"]
    if now_ns - since > _CLOCK_WINDOW_NS:
        return {"since": now_ns, "current": sample, "previous": current}
    return {**clock, "current": sample if current is None else min(current, sample)}
