"""Recorded series: what the evaluator derives (global gradient norm, loss, non-finite count).

Small chunks of (time, value) beside labels, written in the evaluation transaction, so that
lists and dashboards never read layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
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
        name: str,
        labels: Mapping[str, str],
        points: Sequence[Point],
    ) -> None:
        """Store points of one series in the caller's transaction."""
        if not points:
            return
        body = np.array([p[0] for p in points], dtype="<i8").tobytes()
        body += np.array([p[1] for p in points], dtype="<f8").tobytes()
        connection.execute(
            insert(t.sample_chunk).values(
                series_id=self._series_id(project, connection, name, labels),
                t0_ns=min(p[0] for p in points),
                t1_ns=max(p[0] for p in points),
                codec="i8f8-deflate",
                body=zlib.compress(body, 1),
            )
        )

    def newest(self, project: str, names: Iterable[str], run: str, chunks: int) -> list[Sampled]:
        """The points in the newest ``chunks`` chunks of each named series of a run."""
        found: list[Sampled] = []
        with self._database.read() as connection:
            for name in names:
                labels = {"run": run}
                row = connection.execute(
                    select(t.series.c.id).where(
                        t.series.c.project == project,
                        t.series.c.fingerprint == _fingerprint(name, labels),
                    )
                ).scalar_one_or_none()
                bodies = connection.execute(
                    select(t.sample_chunk.c.body)
                    .where(t.sample_chunk.c.series_id == row)
                    .order_by(t.sample_chunk.c.t0_ns.desc(), t.sample_chunk.c.id.desc())
                    .limit(chunks)
                ).scalars()
                points = [p for body in reversed(list(bodies)) for p in _points(body)]
                found.append(Sampled(name, labels, points))
        return found

    def _series_id(
        self, project: str, connection: Connection, name: str, labels: Mapping[str, str]
    ) -> int:
        digest = _fingerprint(name, labels)
        connection.execute(
            insert_or_ignore(connection, t.series).values(
                project=project, name=name, labels=dict(labels), fingerprint=digest
            )
        )
        row = connection.execute(
            select(t.series.c.id).where(
                t.series.c.project == project, t.series.c.fingerprint == digest
            )
        ).scalar_one()
        return int(row)


def _fingerprint(name: str, labels: Mapping[str, str]) -> str:
    return fingerprint({**labels, "__name__": name})


def _points(body: bytes) -> list[Point]:
    raw = zlib.decompress(body)
    half = len(raw) // 2
    times = np.frombuffer(raw[:half], dtype="<i8")
    values = np.frombuffer(raw[half:], dtype="<f8")
    return list(zip(times.tolist(), values.tolist(), strict=True))
