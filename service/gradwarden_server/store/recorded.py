"""Recorded series: what the evaluator derives (global gradient norm, loss, non-finite count).

Small chunks of (time, value) beside labels, written in the evaluation transaction, so that
lists and dashboards never read layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, insert, select

from gradwarden_server.model import fingerprint
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.streams import insert_or_ignore

Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One series and its newest points as (time_ns, value), oldest first."""

    name: str
    labels: Mapping[str, str]
    points: Sequence[Point]


class RecordedSeries:
    """Append within the evaluation commit; read the newest points of many series."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        project: str,
        connection: Connection,
        run_row: int,
        name: str,
        labels: Mapping[str, str],
        points: Sequence[Point],
    ) -> None:
        """Store points of one series of a run in the caller's transaction."""
        if not points:
            return
        body = np.array([p[0] for p in points], dtype="<i8").tobytes()
        body += np.array([p[1] for p in points], dtype="<f8").tobytes()
        connection.execute(
            insert(t.sample_chunk).values(
                series_id=_series_id(project, connection, run_row, name, labels),
                t0_ns=min(p[0] for p in points),
                t1_ns=max(p[0] for p in points),
                codec="i8f8-deflate",
                body=zlib.compress(body, 1),
            )
        )

    def newest(
        self, project: str, run_row: int, names: Sequence[str], points: int
    ) -> list[Sampled]:
        """The newest ``points`` points of each series of a run with one of these names."""
        statement = (
            select(t.series)
            .where(
                t.series.c.project == project,
                t.series.c.run_id == run_row,
                t.series.c.name.in_(names),
            )
            .order_by(t.series.c.id)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
            return [
                Sampled(row.name, row.labels, _tail(connection, row.id, points)) for row in rows
            ]


def _tail(connection: Connection, series_id: int, points: int) -> list[Point]:
    """Chunks hold at least one point each, so as many chunks as points are enough."""
    bodies = connection.execute(
        select(t.sample_chunk.c.body)
        .where(t.sample_chunk.c.series_id == series_id)
        .order_by(t.sample_chunk.c.t0_ns.desc(), t.sample_chunk.c.id.desc())
        .limit(points)
    ).scalars()
    found: list[Point] = []
    for body in bodies:
        found = unpacked(body) + found
        if len(found) >= points:
            break
    return found[-points:]


def _series_id(
    project: str, connection: Connection, run_row: int, name: str, labels: Mapping[str, str]
) -> int:
    digest = _fingerprint(name, {**labels, "run_row": str(run_row)})
    connection.execute(
        insert_or_ignore(connection, t.series).values(
            project=project,
            run_id=run_row,
            name=name,
            labels=dict(labels),
            fingerprint=digest,
        )
    )
    row = connection.execute(
        select(t.series.c.id).where(t.series.c.project == project, t.series.c.fingerprint == digest)
    ).scalar_one()
    return int(row)


def _fingerprint(name: str, labels: Mapping[str, str]) -> str:
    return fingerprint({**labels, "__name__": name})


def unpacked(body: bytes) -> list[Point]:
    """The points of one chunk."""
    raw = zlib.decompress(body)
    half = len(raw) // 2
    times = np.frombuffer(raw[:half], dtype="<i8")
    values = np.frombuffer(raw[half:], dtype="<f8")
    return list(zip(times.tolist(), values.tolist(), strict=True))
