"""Reading a run back: whose word counts for a step, and what is kept in memory."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gradwarden import wire
from gradwarden_server.store import runs as runs_module
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.reading import telling
from gradwarden_server.store.reading.history import History
from gradwarden_server.store.runs import RunStore
from tests.server.test_store import LAYOUT, PROJECT, Store, batch, frame


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path}/gw.sqlite")
    made.runs.put_layout(PROJECT, LAYOUT).result()
    yield made
    made.database.close()


def test_the_lowest_rank_speaks_and_norms_add_over_groups(store: Store) -> None:
    store.start()
    store.start(rank=1, group=1)
    other = batch(*(frame(n, value=4.0, scalars={"loss": 9.0}) for n in (1, 2, 3)), rank=1)
    store.send(replace(other, stream=replace(other.stream, group=1)))
    store.send(batch(frame(1, value=3.0, scalars={"loss": 1.0}), frame(2, value=3.0)))
    table = store.history.series(
        PROJECT, "r", ["loss", "grad_norm", "layer:1:l2", "nobody"], None, None, 10
    )
    assert table.step == [0, 1, 2]
    assert table.keys["loss"]["last"] == [1.0, 9.0, 9.0]
    assert table.keys["layer:1:l2"]["last"] == [3.0, 3.0, 4.0]
    both, one = math.sqrt(3 * (3**2 + 4**2)), math.sqrt(3 * 4**2)
    assert table.keys["grad_norm"]["last"] == pytest.approx([both, both, one])
    assert table.keys["nobody"]["last"] == [None, None, None]
    assert table.keys["nobody"]["nonfinite"] == [0, 0, 0]


def test_a_replica_that_speaks_too_counts_once(store: Store) -> None:
    store.start()
    store.start(rank=1)
    store.send(batch(frame(1, value=3.0), frame(2, value=3.0), rank=1))
    store.send(batch(frame(1, value=3.0)))
    norms = store.history.series(PROJECT, "r", ["grad_norm"], None, None, 10)
    assert norms.keys["grad_norm"]["last"] == pytest.approx([math.sqrt(27)] * 2)


def test_bad_values_that_every_replica_tells_are_counted_once(store: Store) -> None:
    row = struct.pack("<6f", math.nan, math.nan, 5, 2, 0, 0) * 3
    for rank in (0, 1, 2):
        store.start(rank=rank)
    bad = replace(frame(2), values=row)
    store.send(batch(frame(1), bad, rank=2))
    store.send(batch(frame(1), bad, frame(3, value=2.0)))
    store.send(batch(replace(bad, seq=1), replace(frame(4), seq=2), rank=1))  # step 3 by it alone
    heatmap = store.history.heatmap(PROJECT, "r", "l2", None, None, 10)
    assert heatmap is not None
    assert heatmap.header["nonfinite"] == [[row, 1, 5, 2] for row in range(3)]
    assert min(heatmap.cells) > 0, "what one replica alone told is there"


def test_a_bucket_keeps_extremes_and_counts_what_is_not_finite(store: Store) -> None:
    store.start()
    losses = [1.0, 7.0, math.nan, math.inf, 2.0, 3.0, math.nan, math.nan]
    store.send(batch(*(frame(i + 1, scalars={"loss": v}) for i, v in enumerate(losses))))
    table = store.history.series(PROJECT, "r", ["loss"], None, None, 2)
    assert table.step == [0, 4]
    assert table.keys["loss"] == {
        "min": [1.0, 2.0],
        "max": [7.0, 3.0],
        "last": [7.0, 3.0],
        "nonfinite": [2, 2],
    }


def test_the_cache_counts_each_batch_once_however_many_decode_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.start()
    store.send(batch(*(frame(n) for n in range(1, 9))))
    readers = 4
    together = threading.Barrier(readers)
    decode = telling.decode

    def at_once(*args: object) -> object:
        together.wait(20)
        return decode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(telling, "decode", at_once)
    history = History(store.log, store.runs)
    with ThreadPoolExecutor(readers) as pool:
        asked = [
            pool.submit(history.heatmap, PROJECT, "r", "l2", None, None, 10) for _ in range(readers)
        ]
        cells = {picture.cells for one in asked if (picture := one.result(20)) is not None}
    assert len(cells) == 1
    ((held, size),) = store.log.cache._held.values()
    assert store.log.cache.bytes == size == held.size


def test_a_run_larger_than_the_cache_is_read_page_by_page(store: Store) -> None:
    store.start()
    for n in range(1, 151):
        store.send(batch(frame(n, value=float(n), scalars={"loss": float(n)})))
    whole = store.history.heatmap(PROJECT, "r", "l2", None, None, 1000)
    reader = LogReader(store.database, Cache(10_000))
    small = History(reader, store.runs)
    assert small.heatmap(PROJECT, "r", "l2", None, None, 1000) == whole
    assert 0 < reader.cache.bytes <= 10_000
    losses = small.series(PROJECT, "r", ["loss"], None, None, 1000).keys["loss"]["last"]
    assert losses == [float(n) for n in range(1, 151)]


def test_layouts_in_memory_are_bounded_by_their_parameters(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_PARAMETERS_KEPT", 7)
    runs = RunStore(store.database)
    many = [replace(p, name=f"{i}.{p.name}") for i in range(6) for p in LAYOUT.parameters]
    layouts = [wire.Layout(tuple(many[i : i + i % 3 + 1])) for i in range(12)]
    for layout in layouts:
        store.runs.put_layout(PROJECT, layout).result()
    for layout in [*layouts, *layouts]:
        assert runs.layout(PROJECT, layout.hash) == layout
        assert sum(len(held.parameters) for held in runs._layouts.values()) == runs._kept <= 7
