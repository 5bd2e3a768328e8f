"""Recorded series: what detectors derive (gradient norm, loss) and what rules record.

Small chunks of (time, value) beside labels, written in the evaluation transaction, so that
lists and dashboards never read layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
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


@dataclass(frozen=True, slots=True)
class Derived:
    """Points of one series, to be stored as a chunk; at least one.

    ``run_row`` is the run that it goes with. Where it is ``ruled``, a rule recorded it and its
    labels are whole; else those of its run are added when it is read.
    """

    run_row: int | None
    name: str
    labels: Mapping[str, str]
    points: Sequence[Point]
    ruled: bool = False


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
        if points:
            self.append_all(project, connection, [Derived(run_row, name, labels, points)])

    def append_all(self, project: str, connection: Connection, chunks: Sequence[Derived]) -> None:
        """Store points of many series, of one run or several, in the caller's transaction."""
        if not chunks:
            return
        digests = [_digest(chunk) for chunk in chunks]
        known = _series_ids(project, connection, digests)
        lacking = {d: c for d, c in zip(digests, chunks, strict=True) if d not in known}
        if lacking:
            made = [
                {
                    "project": project,
                    "run_id": chunk.run_row,
                    "ruled": chunk.ruled,
                    "name": chunk.name,
                    "labels": dict(chunk.labels),
                    "fingerprint": digest,
                }
                for digest, chunk in sorted(lacking.items())
            ]
            connection.execute(insert_or_ignore(connection, t.series), made)
            known |= _series_ids(project, connection, list(lacking))
        rows = [
            {
                "series_id": known[digest],
                "t0_ns": min(p[0] for p in chunk.points),
                "t1_ns": max(p[0] for p in chunk.points),
                "codec": "i8f8-deflate",
                "body": _packed(chunk.points),
            }
            for digest, chunk in zip(digests, chunks, strict=True)
        ]
        connection.execute(insert(t.sample_chunk), rows)

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
        .order_by(t.sample_chunk.c.t1_ns.desc(), t.sample_chunk.c.id.desc())
        .limit(points)
    ).scalars()
    found: list[Point] = []
    for body in bodies:
        found = unpacked(body) + found
        if len(found) >= points:
            break
    return found[-points:]


def _digest(chunk: Derived) -> str:
    owner = "rules" if chunk.ruled else str(chunk.run_row)
    labels = {**chunk.labels, "run_row": owner, "__name__": chunk.name}
    return fingerprint(labels)


def _series_ids(project: str, connection: Connection, digests: Sequence[str]) -> dict[str, int]:
    """The series that exist, by fingerprint."""
    statement = select(t.series.c.fingerprint, t.series.c.id).where(
        t.series.c.project == project, t.series.c.fingerprint.in_(digests)
    )
    return {row.fingerprint: row.id for row in connection.execute(statement)}


def _packed(points: Sequence[Point]) -> bytes:
    body = np.array([p[0] for p in points], dtype="<i8").tobytes()
    return zlib.compress(body + np.array([p[1] for p in points], dtype="<f8").tobytes(), 1)


def columns(body: bytes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The times and values of one chunk."""
    raw = zlib.decompress(body)
    half = len(raw) // 2
    return np.frombuffer(raw[:half], dtype="<i8"), np.frombuffer(raw[half:], dtype="<f8")


def unpacked(body: bytes) -> list[Point]:
    """The points of one chunk."""
    times, values = columns(body)
    return list(zip(times.tolist(), values.tolist(), strict=True))
