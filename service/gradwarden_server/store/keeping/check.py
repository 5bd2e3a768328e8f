"""Whether everything that is stored is whole: each checksum, each body, each position.

Reads beside a running service, a page at a time. What is found damaged is named by project,
run, rank, steps and layers, so that a person knows what is lost and what is not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, Select, Table, bindparam, func, select, text

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.columns import codec
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import DatabaseDamaged
from gradwarden_server.store.keeping.transfer import Progress, silent, snapshot
from gradwarden_server.store.shelves import spine

_PAGE = 32
_MOST_LISTED = 20
_LIMITS = wire.Limits(payload_bytes=1 << 31)
_WORDS = 0  # the codec byte of 64-bit words
_UNREADABLE = (wire.WireError, codec.Corrupt, zlib.error, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it should be; None where that does not apply."""

    what: str
    detail: str
    project: str | None = None
    run: str | None = None
    rank: int | None = None
    steps: tuple[int, int] | None = None
    layers: str | None = None

    def __str__(self) -> str:
        parts = [f"project {self.project}" if self.project else "", f"run {self.run or ''}"]
        parts = [part for part in parts if part.strip() not in ("", "run")]
        parts += [f"rank {self.rank}"] if self.rank is not None else []
        parts += [f"steps {self.steps[0]} to {self.steps[1]}"] if self.steps else []
        parts += [self.layers] if self.layers else []
        return f"{self.what}: {self.detail}" + (f" ({', '.join(parts)})" if parts else "")


def damages(database: Database, progress: Progress = silent) -> Iterator[Damage]:
    """Everything that is damaged, as it is found."""
    yield from _structure(database)
    checks = (
        (t.frame_batch, "batch of the log", _batch),
        (t.segment, "segment", _segment),
        (t.chunk, "chunk", _chunk),
        (t.rollup, "roll-up", _rollup),
        (t.sample_chunk, "chunk of a series", _samples),
        (t.layout, "layout", _layout),
    )
    for table, what, fault in checks:
        try:
            for row in _walk(database, table, progress):
                detail = fault(row)
                if detail is not None:
                    yield _placed(what, detail, row)
        except DatabaseDamaged as error:
            yield Damage(f"table {table.name}", f"cannot be read: {error.why}")
    try:
        yield from _positions(database, progress)
    except DatabaseDamaged as error:
        yield Damage("positions", f"cannot be read: {error.why}")


def _structure(database: Database) -> Iterator[Damage]:
    """What SQLite says of its own file; PostgreSQL holds references by itself."""
    if database.kind != "sqlite":
        return
    try:
        with database.read() as connection:
            for (line,) in connection.execute(text(f"PRAGMA integrity_check({_MOST_LISTED})")):
                if line != "ok":
                    yield Damage("database file", f"{database.place}: {line}")
            for row in connection.execute(text("PRAGMA foreign_key_check")).fetchmany(_MOST_LISTED):
                yield Damage("orphan row", f"row {row[1]} of {row[0]} has no {row[2]}")
    except DatabaseDamaged as error:
        yield Damage("database file", f"{database.place}: {error.why}")


def _walk(database: Database, table: Table, progress: Progress) -> Iterator[Row[Any]]:
    """Every row with where it belongs, a page in a short transaction each."""
    with database.read() as connection:
        total = connection.execute(select(func.count()).select_from(table)).scalar_one()
    statement = _where(table)
    keys = list(table.primary_key.columns)
    done, last = 0, None
    progress(table.name, 0, total)
    while True:
        page = statement.order_by(*keys).limit(_PAGE)
        if last is not None:
            page = page.where(_after(keys, last))
        with database.read() as connection:
            rows = connection.execute(page).all()
        yield from rows
        if len(rows) < _PAGE:
            progress(table.name, total, total)
            return
        done += len(rows)
        progress(table.name, done, total)
        last = tuple(rows[-1]._mapping[key] for key in keys)


def _after(keys: list[Any], last: tuple[Any, ...]) -> Any:
    """Row values, spelled out: the first key alone narrows by its index."""
    condition: Any = keys[-1] > last[-1]
    for key, value in zip(keys[-2::-1], last[-2::-1], strict=True):
        condition = (key > value) | ((key == value) & condition)
    return (keys[0] >= last[0]) & condition


def _where(table: Table) -> Select[Any]:
    place = (t.run.c.project, t.run.c.run)
    if table is t.layout:
        return select(table)
    if table is t.sample_chunk:
        return (
            select(table, t.series.c.name, *place)
            .join(t.series, t.series.c.id == table.c.series_id)
            .outerjoin(t.run, t.run.c.id == t.series.c.run_id)
        )
    steps = (t.segment.c.step0, t.segment.c.step1)
    if table in (t.chunk, t.rollup):
        statement = select(table, *steps, t.stream.c.rank, *place)
        statement = statement.join(t.segment, t.segment.c.id == table.c.segment_id)
        owner: Table = t.segment
    else:
        statement = select(table, t.stream.c.rank, *place)
        owner = table
    if owner is t.segment:
        statement = statement.where(t.segment.c.sealed)
    return statement.join(t.stream, t.stream.c.id == owner.c.stream_id).join(
        t.run, t.run.c.id == owner.c.run_id
    )


def _placed(what: str, detail: str, row: Row[Any]) -> Damage:
    found = row._mapping
    layers = None
    if "block" in found:
        first = found["block"] * codec.BLOCK_ROWS
        layers = f"{found['quantity']} of rows {first} to {first + codec.BLOCK_ROWS - 1}"
    elif "aggregate" in found:
        layers = f"{found['aggregate']} of {found['quantity']} over {found['width']} steps"
    elif "name" in found:
        layers = found["name"]
    steps = (found["step0"], found["step1"]) if "step0" in found else None
    return Damage(
        what, detail, found.get("project"), found.get("run"), found.get("rank"), steps, layers
    )


def _batch(row: Row[Any]) -> str | None:
    try:
        header = wire.check(row.body, _LIMITS).header
    except _UNREADABLE as error:
        return str(error)
    told = header.first_seq, header.first_seq + header.n - 1
    if told != (row.first_seq, row.last_seq):
        return f"it holds frames {told[0]} to {told[1]}, not {row.first_seq} to {row.last_seq}"
    return None


def _sealed(row: Row[Any]) -> str | None:
    found = zlib.crc32(row.body)
    if found != row.crc32:
        return f"its checksum is {found:08x}, not {row.crc32:08x}"
    return None


def _segment(row: Row[Any]) -> str | None:
    try:
        return _sealed(row) or _spine(row, spine.unpack(row.body))
    except _UNREADABLE as error:
        return str(error)


def _spine(row: Row[Any], told: spine.Spine) -> str | None:
    held = int(told.sent.position.min()), int(told.sent.position.max())
    if held != (row.position0, row.position1):
        return f"it stands for positions {row.position0} to {row.position1} and holds {held}"
    if told.steps.size != row.frames:
        return f"it holds {told.steps.size} frames, not {row.frames}"
    return None


def _chunk(row: Row[Any]) -> str | None:
    # 64-bit words say so in their first byte, and are packed in another way.
    words = row.body[:1] == bytes([_WORDS])
    return _packed(row, codec.unpack_words if words else codec.unpack)


def _rollup(row: Row[Any]) -> str | None:
    return _packed(row, codec.unpack)


def _packed(row: Row[Any], unpack: Callable[[bytes], object]) -> str | None:
    wrong = _sealed(row)
    if wrong is None:
        try:
            unpack(row.body)
        except codec.Corrupt as error:
            wrong = str(error)
    return wrong


def _samples(row: Row[Any]) -> str | None:
    try:
        raw = zlib.decompress(row.body)
    except zlib.error as error:
        return str(error)
    if len(raw) % 16 or not raw:
        return f"{len(raw)} bytes are no times and values"
    return None


def _layout(row: Row[Any]) -> str | None:
    try:
        found = wire.Layout.from_json(row.body).hash
    except _UNREADABLE as error:
        return str(error)
    return None if found == row.hash else f"it is kept as {row.hash} and hashes to {found}"


def _positions(database: Database, progress: Progress) -> Iterator[Damage]:
    """Each batch that a run was given a position for is held once: by the log or a segment."""
    with database.read() as connection:
        runs = connection.execute(select(t.run.c.id).where(t.run.c.deleted_ns.is_(None))).scalars()
        rows = list(runs)
    for number, run in enumerate(rows):
        with snapshot(database) as connection:
            yield from _of_run(connection, run)
        progress("positions", number + 1, len(rows))


_SEGMENT = (
    select(t.segment, t.stream.c.rank)
    .join(t.stream, t.stream.c.id == t.segment.c.stream_id)
    .where(t.segment.c.id == bindparam("number"))
)


def _missing_chunks(
    connection: Connection, run: Row[Any], segment: Row[Any], told: spine.Spine
) -> Iterator[Damage]:
    """A column that is not one value has a chunk for every block of rows."""
    if segment.held != "raw" or segment.shelf:  # a series engine checks what it holds
        return
    query = select(t.chunk.c.quantity, func.count()).group_by(t.chunk.c.quantity)
    found = connection.execute(query.where(t.chunk.c.segment_id == segment.id))
    counts = {row[0]: row[1] for row in found}
    blocks = -(-told.parameters // codec.BLOCK_ROWS)
    for column in set(told.columns) - set(told.constants):
        there = counts.get(column, 0)
        if there != blocks:
            steps = (segment.step0, segment.step1)
            detail = f"{there} of {blocks} chunks are there"
            yield Damage("segment", detail, run.project, run.run, segment.rank, steps, column)


def _of_run(connection: Connection, row: int) -> Iterator[Damage]:
    run = connection.execute(select(t.run).where(t.run.c.id == row)).one_or_none()
    if run is None or run.deleted_ns is not None:
        return
    segments = select(t.segment.c.id).where(t.segment.c.run_id == row, t.segment.c.sealed)
    covered: dict[int, list[tuple[int, int]]] = {}
    held: list[Any] = []
    for number in connection.execute(segments).scalars().all():
        segment = connection.execute(_SEGMENT, {"number": number}).one()
        covered.setdefault(segment.stream_id, []).append((segment.position0, segment.position1))
        try:
            told = spine.unpack(segment.body)
        except codec.Corrupt:
            return  # told already, and what it holds cannot be known
        held.append(told.sent.position)
        yield from _missing_chunks(connection, run, segment, told)
    batches = select(t.frame_batch.c.stream_id, t.frame_batch.c.position)
    logged = [
        position
        for stream, position in connection.execute(batches.where(t.frame_batch.c.run_id == row))
        if not any(low <= position <= high for low, high in covered.get(stream, ()))
    ]
    found = np.concatenate([np.array(logged, np.int64), *held])
    numbers, counts = np.unique(found, return_counts=True)
    for name, wrong in (
        ("held twice", numbers[counts > 1]),
        ("missing", np.setdiff1d(np.arange(1, run.position + 1), numbers)),
        ("beyond the run's last", numbers[numbers > run.position]),
    ):
        if wrong.size:
            listed = ", ".join(map(str, wrong[:10].tolist()))
            more = f" and {wrong.size - 10} more" if wrong.size > 10 else ""
            detail = f"log position {listed}{more} {'is' if wrong.size == 1 else 'are'} {name}"
            yield Damage("positions", detail, run.project, run.run)
