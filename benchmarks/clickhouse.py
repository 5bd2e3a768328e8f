"""What the values of layers cost in ClickHouse, beside tables of the database.

One rank sends the six statistics of every layer at every step; the same batches are compacted
into tables of SQLite and into ClickHouse embedded in this process. Printed of each: bytes per
measured value (values and roll-ups, as the store counts them, and as ClickHouse counts its
parts after a merge), seconds of compaction, and milliseconds, as the median of several calls,
to read one layer over all steps and to read the roll-ups of all layers for a picture. Nothing
is kept in the service's memory between calls; the operating system may hold pages of the files.
A ClickHouse server is not measured: its answers come over HTTP too. The last line is JSON.

    pip install 'gradwarden[clickhouse,postgres]' chdb
    python benchmarks/clickhouse.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from query_data import BIG, Size, layout_of, statistics_of_every_step
from sqlalchemy import func, select

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.compacting.compaction import Compaction
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.log.frames import FrameLog
from gradwarden_server.store.records import StartRequest
from gradwarden_server.store.runs import RunStore
from gradwarden_server.store.shelves import clickhouse_schema as schema
from gradwarden_server.store.shelves.clickhouse import ClickHouseShelf
from gradwarden_server.store.shelves.clickhouse_engines import connect
from gradwarden_server.store.shelves.shelf import Shelves
from gradwarden_server.store.shelves.shelf_tables import TableShelf

PROJECT = "default"
CALLS = 9
LONG_NS = 10**18


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--steps", type=int, default=16_384)
    options = parser.parse_args(argv)
    size = Size(options.layers, options.steps, 0)
    figures: dict[str, Any] = {"layers": size.layers, "steps": size.steps}
    with tempfile.TemporaryDirectory() as folder:
        shelf = ClickHouseShelf(connect(f"chdb://{folder}/clickhouse"))
        for name, series in (("tables", None), ("clickhouse", shelf)):
            figures[name] = measured(Path(folder) / name, size, series)
            print(f"{name:10}", figures[name])
        shelf.close()
    print(json.dumps(figures))
    return 0


def measured(folder: Path, size: Size, series: ClickHouseShelf | None) -> dict[str, float]:
    """All figures of one shelf."""
    database = Database(f"sqlite:///{folder}/gw.sqlite")
    database.migrate()
    shelves = Shelves(TableShelf(database), series)
    log = LogReader(database, Cache(0), shelves)
    fill(database, size)
    compaction = Compaction(database, log)
    began = time.perf_counter()
    while due := compaction.due(time.time_ns() + LONG_NS):
        for one in due:
            compaction.compact(one)
    took = time.perf_counter() - began
    with database.read() as connection:
        samples = connection.execute(select(func.sum(t.segment.c.samples))).scalar_one()
        stored = connection.execute(select(func.sum(t.segment.c.bytes))).scalar_one()
    reader = log.segments
    told = list(reader.spines(reader.index(PROJECT, BIG, 0, size.steps)))
    found = {
        "bytes_per_sample": (stored + parts(series)) / samples,
        "compaction_seconds": took,
        "layer_ms": median(lambda i: list(reader.row(told, "l2", i * size.layers // CALLS))),
        "picture_ms": median(lambda i: list(reader.rollups(told, 128, "l2", ["max", "mean"]))),
    }
    database.close()
    return {name: round(value, 2) for name, value in found.items()}


def fill(database: Database, size: Size) -> None:
    """The log of one run."""
    runs, frames = RunStore(database), FrameLog(database)
    now_ns = time.time_ns()
    runs.put_layout(PROJECT, layout_of(size.layers)).result()
    start = StartRequest(BIG, "a1", 0, nonce="n0", host="bench", pid=1, started_ns=now_ns)
    runs.start(PROJECT, start, now_ns).result()
    for batch in statistics_of_every_step(size):
        if batch.stream.rank == 0:
            raw = wire.encode(batch)
            frames.append(PROJECT, wire.check(raw).header, raw, now_ns).result()


def parts(series: ClickHouseShelf | None) -> int:
    """Bytes of what ClickHouse holds, merged."""
    if series is None:
        return 0
    for table in schema.TABLES:
        series.engine.execute(f"OPTIMIZE TABLE {table} FINAL")
    answer = series.engine.query(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table LIKE 'gradwarden_%'"
    )
    return int.from_bytes(answer, "little")


def median(call: Callable[[int], object]) -> float:
    """Milliseconds of the call, after one that is not counted."""
    times = []
    for i in (0, *range(CALLS)):
        began = time.perf_counter()
        call(i)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


if __name__ == "__main__":
    raise SystemExit(main())
