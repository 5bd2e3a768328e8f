"""Segments of the database as shelves know them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.shelves.shelf import Filed


def filed(connection: Connection, which: ColumnElement[bool]) -> list[Filed]:
    """These segments, sealed or not."""
    own = (t.segment.c[n] for n in ("id", "claimed_ns", "shelf"))
    place = (t.run.c.run, t.attempt.c.attempt, t.stream.c.rank, t.segment.c.step0)
    statement = (
        select(*own, *place, t.segment.c.step1)
        .join(t.stream, t.stream.c.id == t.segment.c.stream_id)
        .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
        .join(t.run, t.run.c.id == t.segment.c.run_id)
        .where(which)
        .order_by(t.segment.c.id)
    )
    return [Filed(**row._asdict()) for row in connection.execute(statement)]
