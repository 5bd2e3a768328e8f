"""A series' many small chunks become few larger ones: the same points in the same order.

The evaluator appends a chunk a commit, and readers take chunks by their first time and then
by their row number. Neighbours in that order are merged into the first of them, which keeps
its row number, in one write: at no moment is a point missing or there twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, select, tuple_, update

from gradwarden_server.store import tables as t
from gradwarden_server.store.keeping.sweep import Broom, deleting

POINTS = 4096
"""No chunk is made larger than this."""
_WORTH = 16
"""A series is looked at when it has so many small chunks, and its newest are left until then."""
_SMALL_BYTES = 8 << 10
_PAGE = 128
_SERIES = 256


def merge_all(broom: Broom) -> int:
    """Merge the chunks of every series that is worth it; how many chunks that saved."""
    after = saved = 0
    while True:
        query = (
            select(t.sample_chunk.c.series_id)
            .where(t.sample_chunk.c.series_id > after)
            .where(func.length(t.sample_chunk.c.body) < _SMALL_BYTES)
            .group_by(t.sample_chunk.c.series_id)
            .having(func.count() >= _WORTH)
            .order_by(t.sample_chunk.c.series_id)
            .limit(_SERIES)
        )
        with broom.database.read() as connection:
            found = connection.execute(query).scalars().all()
        if not found:
            return saved
        for series in found:
            saved += _merge(broom, series)
        after = found[-1]


def drop_old(broom: Broom, before_ns: int) -> int:
    """Delete chunks that ended before a moment; how many."""
    after = dropped = 0
    old = (t.sample_chunk.c.t0_ns < before_ns, t.sample_chunk.c.t1_ns < before_ns)
    while True:
        mine = t.sample_chunk.c.series_id == t.series.c.id
        query = (
            select(t.series.c.id)
            .where(t.series.c.id > after, exists(select(t.sample_chunk.c.id).where(mine, *old)))
            .order_by(t.series.c.id)
            .limit(_SERIES)
        )
        with broom.database.read() as connection:
            found = connection.execute(query).scalars().all()
        if not found:
            return dropped
        for series in found:
            of_series = t.sample_chunk.c.series_id == series
            dropped += broom.sweep(deleting(t.sample_chunk, of_series, *old))
        after = found[-1]


def _merge(broom: Broom, series: int) -> int:
    saved = 0
    for group in _groups(_chunks(broom, series)):
        body = _joined([row.body for row in group])
        saved += broom.once(partial(_replace, rows=group, body=body))
    return saved


def _chunks(broom: Broom, series: int) -> Iterator[Row[Any]]:
    """The chunks of a series as readers take them, a page at a time."""
    order = (t.sample_chunk.c.t0_ns, t.sample_chunk.c.id)
    after: tuple[int, int] | None = None
    while True:
        query = select(t.sample_chunk).where(t.sample_chunk.c.series_id == series)
        if after is not None:
            query = query.where(tuple_(*order) > after)
        with broom.database.read() as connection:
            page = connection.execute(query.order_by(*order).limit(_PAGE)).all()
        yield from page
        if len(page) < _PAGE:
            return
        after = (page[-1].t0_ns, page[-1].id)


def _groups(chunks: Iterator[Row[Any]]) -> Iterator[list[Row[Any]]]:
    """Neighbours that fit into one chunk; what came last waits until it is worth a write."""
    group: list[Row[Any]] = []
    points = 0
    for row in chunks:
        more = len(zlib.decompress(row.body)) // 16
        if group and points + more > POINTS:
            if len(group) > 1:
                yield group
            group, points = [], 0
        group.append(row)
        points += more
    if len(group) >= _WORTH:
        yield group


def _joined(bodies: Sequence[bytes]) -> bytes:
    """Times of all, then values of all."""
    raws = [zlib.decompress(body) for body in bodies]
    times = b"".join(raw[: len(raw) // 2] for raw in raws)
    values = b"".join(raw[len(raw) // 2 :] for raw in raws)
    return zlib.compress(times + values, 6)


def _replace(connection: Connection, rows: Sequence[Row[Any]], body: bytes) -> int:
    """How many chunks fewer there are."""
    first, rest = rows[0], [row.id for row in rows[1:]]
    t1_ns = max(row.t1_ns for row in rows)
    gone = connection.execute(delete(t.sample_chunk).where(t.sample_chunk.c.id.in_(rest)))
    kept = connection.execute(
        update(t.sample_chunk).where(t.sample_chunk.c.id == first.id).values(body=body, t1_ns=t1_ns)
    )
    if (gone.rowcount, kept.rowcount) != (len(rest), 1):
        raise LookupError(f"chunks of series {first.series_id} went while they were merged")
    return len(rest)
