"""Every column read back, against a slow twin: what was not measured is neither zero nor sick."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.store.reading.pieces import READABLE
from tests.server.test_store import NOW, PROJECT, Store
from tests.server.traffic import FRAMES, start_body
from tests.service import Service

ROWS, STEPS = 5, 90
SHAPES = ((8, 8), (3,), (), (0, 4), (16, 2))
SENT = (wire.COLUMNS, wire.QUANTITIES, wire.QUANTITIES + wire.SLOW, wire.QUANTITIES[:4])


def layout(sharded: bool = False) -> wire.Layout:
    return wire.Layout(
        tuple(
            wire.Parameter(f"blocks.{i}.weight", shape, "float32", f"blocks.{i}", "matrix", sharded)
            for i, shape in enumerate(SHAPES)
        )
    )


def matrix(rng: random.Random, step: int) -> NDArray[np.float32]:
    """[ROWS, 24]: histograms now and then, the slow columns of a row in turn, some unobserved."""
    found = np.full((ROWS, len(wire.COLUMNS)), np.nan, np.float32)
    for row in range(ROWS):
        if rng.random() < 0.9:
            norm = 10 ** rng.uniform(-3, 3)
            found[row, :6] = [norm, norm / 2, 0, 0, rng.randrange(9), rng.randrange(9)]
            if rng.random() < 0.05:
                found[row, :4] = [math.nan, math.nan, rng.randrange(1, 5), rng.randrange(3)]
        if step % 10 == 0:
            found[row, 6:22] = [rng.randrange(50) for _ in range(16)]
        if step % 4 == row:
            ratio = math.inf if rng.random() < 0.1 else 10 ** rng.uniform(-5, -1)
            found[row, 22:] = [rng.uniform(1, 9), ratio]
    return found


def batch(
    values: Mapping[int, NDArray[np.float32]],
    columns: tuple[str, ...] = wire.COLUMNS,
    rank: int = 0,
    attempt: str = "a1",
    of: wire.Layout | None = None,
) -> wire.Batch:
    picked = [wire.COLUMNS.index(name) for name in columns]
    frames = tuple(
        wire.Frame(
            step + 1, step, NOW + step, {"loss": 1.0, "step_seconds": 0.2}, values=v.tobytes()
        )
        for step, v in ((s, np.ascontiguousarray(v[:, picked])) for s, v in values.items())
    )
    key = wire.StreamKey("r", attempt, rank, f"n-{attempt}-{rank}")
    return wire.Batch(key, frames, (of or layout()).hash, ROWS, columns)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path}/gw.sqlite")
    for sharded in (False, True):
        made.runs.put_layout(PROJECT, layout(sharded)).result()
    yield made
    made.database.close()


# -- the twin -------------------------------------------------------------------------------


def cell(values: NDArray[np.float32], row: int, name: str) -> float | None:
    """What was measured of one row at one step, or None."""
    column = "l2" if name == "rms" else name
    value = float(values[row, wire.COLUMNS.index(column)])
    observed = not math.isnan(values[row, wire.COLUMNS.index("nan")])
    if column in ("l2", "absmax"):
        if not observed:
            return None
    elif math.isnan(value):
        return None
    if name == "rms":
        elements = math.prod(SHAPES[row])
        return value / math.sqrt(elements) if elements else None
    return value


def expected_cells(
    run: Mapping[int, NDArray[np.float32]], name: str, width: int, count: int
) -> tuple[list[list[float | str | None]], list[float]]:
    """Per row and column the value drawn, "bad" or None; and what the scale spans."""
    grid: list[list[float | str | None]] = [[None] * count for _ in range(ROWS)]
    kept: list[float] = []
    for row in range(ROWS):
        for column in range(count):
            steps = [s for s in range(column * width, (column + 1) * width) if s in run]
            found = [v for s in steps if (v := cell(run[s], row, name)) is not None]
            found = found[-1:] if name in wire.SLOW else found
            finite = [v for v in found if math.isfinite(v)]
            if finite:
                grid[row][column] = max(finite)
                kept.append(max(finite))
            sick = any((run[s][row, 2:4] > 0).any() for s in steps)
            if sick or (found and not finite and name in wire.SLOW):
                grid[row][column] = "bad"
    return grid, [v for v in kept if v > 0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_column_reads_back_as_it_was_sent(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    store.start()
    run: dict[int, NDArray[np.float32]] = {}
    batches, step = [], 0
    while step < STEPS:
        size = rng.randrange(1, 12)
        values = {s: matrix(rng, s) for s in range(step, min(step + size, STEPS))}
        columns = rng.choice(SENT)
        batches.append(batch(values, columns))
        lacking = [i for i, name in enumerate(wire.COLUMNS) if name not in columns]
        for s, sent in values.items():
            run[s] = sent.copy()
            run[s][:, lacking] = np.nan
        step += size
    rng.shuffle(batches)  # spools arrive late
    for one in batches:
        store.send(one)
    for name in READABLE:
        keys = [f"layer:{row}:{name}" for row in range(ROWS)]
        table = store.history.series(PROJECT, "r", keys, None, None, 1000)
        assert table.reported == ["grad_norm", "loss", "step_seconds"]
        for row, key in enumerate(keys):
            told = [cell(run[s], row, name) for s in range(STEPS)]
            finite = [v if v is not None and math.isfinite(v) else None for v in told]
            assert table.keys[key]["last"] == pytest.approx(finite), key
            bad = [int(v is not None and not math.isfinite(v)) for v in told]
            assert table.keys[key]["nonfinite"] == bad, key
        for cols in (1000, 13, 1):
            picture = store.history.heatmap(PROJECT, "r", name, None, None, cols)
            assert picture is not None
            head = picture.header
            assert (head["metric"], head["agg"]) == (name, "last" if name in wire.SLOW else "max")
            drawn = np.frombuffer(picture.cells, np.uint8).reshape(ROWS, -1)
            grid, positive = expected_cells(run, name, head["bucket"], head["cols"])
            kinds = [
                [{0: None, 255: "bad"}.get(b, "value") for b in line] for line in drawn.tolist()
            ]
            assert kinds == [
                ["value" if isinstance(v, float) else v for v in line] for line in grid
            ]
            for line, bytes_ in zip(grid, drawn.tolist(), strict=True):
                for value, byte in zip(line, bytes_, strict=True):
                    if not isinstance(value, float) or value <= 0:
                        continue
                    shown = head["lo"] + (byte - 1) / 253 * (head["hi"] - head["lo"])
                    step_size = (head["hi"] - head["lo"]) / 253
                    assert shown == pytest.approx(math.log10(value), abs=step_size + 1e-6)
            ends = [math.log10(f(positive)) if positive else 0 for f in (min, max)]
            assert [head["lo"], head["hi"]] == pytest.approx(ends, abs=1e-5)


def test_shards_join_in_every_column_and_a_missing_one_is_not_measured(store: Store) -> None:
    of = layout(sharded=True)
    parts = []
    for rank in (0, 1):
        store.start(rank=rank, group=0, shard=rank, shards=2)
        values = {}
        for step in range(3):
            m = np.zeros((ROWS, 24), np.float32)
            m[:, 0], m[:, 6:22] = (3.0, 4.0)[rank], np.arange(16) + rank
            m[:, 22], m[:, 23] = (3.0, 4.0)[rank], (0.1, 0.2)[rank]
            if step == 1:
                m[:, 6:] = np.nan
            values[step] = m
        parts.append(values)
        sent = values if rank == 0 else {s: values[s] for s in (0, 1)}
        store.send(batch(sent, rank=rank, of=of))
    keys = ["rms", "hist_3", "weight_l2", "update_ratio"]
    table = store.history.series(
        PROJECT, "r", [f"layer:0:{name}" for name in keys], None, None, 10
    ).keys
    ratio = math.sqrt((0.1**2 * 9 + 0.2**2 * 16) / 25)
    assert table["layer:0:rms"]["last"] == pytest.approx([5 / 8, 5 / 8, None])
    assert table["layer:0:hist_3"]["last"] == [7, None, None]
    assert table["layer:0:weight_l2"]["last"] == [5, None, None]
    assert table["layer:0:update_ratio"]["last"] == pytest.approx([ratio, None, None])
    assert all(column["nonfinite"] == [0, 0, 0] for column in table.values())
    found = store.history.histogram(PROJECT, "r", 0, None)
    assert found is not None
    assert (found.step, found.counts) == (0, [2 * k + 1 for k in range(16)])


def test_reading_norms_keeps_no_more_in_memory_than_norms(store: Store, tmp_path: Path) -> None:
    rng = random.Random(4)
    store.start()
    values = {s: matrix(rng, s) for s in range(STEPS)}
    store.send(batch(values))
    narrow = Store(f"sqlite:///{tmp_path}/narrow.sqlite")
    try:
        narrow.runs.put_layout(PROJECT, layout()).result()
        narrow.start()
        narrow.send(batch(values, wire.QUANTITIES))
        for one in (narrow, store):
            one.history.heatmap(PROJECT, "r", "l2", None, None, 100)
        assert store.log.cache.bytes == narrow.log.cache.bytes
        before = store.log.cache.bytes
        store.history.heatmap(PROJECT, "r", "hist_0", None, None, 100)
        tenth = STEPS // 10 * ROWS * 16 * 4
        assert store.log.cache.bytes - before == pytest.approx(tenth, abs=5000)
    finally:
        narrow.database.close()


def test_the_newest_histogram_is_of_the_attempt_that_counts(store: Store) -> None:
    rng = random.Random(5)
    of_first = {s: matrix(rng, s) for s in range(600)}
    store.start()
    store.send(batch(of_first))
    store.start(attempt="a2", parent="a1", first_step=35, takeover=True)
    of_second = {s: matrix(rng, s) for s in range(35, 700)}
    for s in range(51, 700):
        of_second[s][:, 6:22] = np.nan
    store.send(batch(of_second, attempt="a2"))

    def asked(step: int | None) -> tuple[int, list[int]] | None:
        found = store.history.histogram(PROJECT, "r", 2, step)
        return None if found is None else (found.step, found.counts)

    def sent(values: NDArray[np.float32]) -> list[int]:
        return [int(n) for n in values[2, 6:22]]

    assert asked(39) == (30, sent(of_first[30]))
    assert asked(40) == (40, sent(of_second[40]))
    assert asked(699) == asked(None) == (50, sent(of_second[50]))
    assert asked(0) == (0, sent(of_first[0]))


def test_a_histogram_over_http_or_the_reason_why_there_is_none(service: Service) -> None:
    run = start_body("hist")
    assert service.call("POST", "/v1/start", json=run).status_code == 200
    path = "/v1/runs/hist/histogram"
    answer = service.call("GET", path, params={"row": 0})
    assert (answer.status_code, answer.json()["detail"]) == (404, "row: 0; the run has 0 rows")
    assert service.call("POST", "/v1/layouts", json=layout().to_json()).status_code == 200
    key = wire.StreamKey("hist", run["attempt"], 0, run["nonce"])
    rng = random.Random(6)
    values = {s: matrix(rng, s) for s in range(9, 25)}
    made = batch(values)
    sent = wire.Batch(key, made.frames, made.layout, ROWS, wire.COLUMNS)
    answer = service.call("POST", "/v1/ingest", content=wire.encode(sent), headers=FRAMES)
    assert answer.status_code == 200
    found = service.get(path, params={"row": 4, "step": 19})
    assert (found["row"], found["name"], found["step"]) == (4, "blocks.4.weight", 10)
    assert found["edges"] == [2.0 ** (4 * k - 38) for k in range(15)]
    assert found["counts"] == [int(n) for n in values[10][4, 6:22]]
    assert service.get(path, params={"row": 4})["step"] == 20
    answer = service.call("GET", path, params={"row": 4, "step": 9})
    assert answer.status_code == 404
    assert "no histogram of row 4 was captured at or before step 9" in answer.json()["detail"]
    assert service.call("GET", path, params={"row": -1}).status_code == 400
    assert service.call("GET", "/v1/runs/nobody/histogram", params={"row": 0}).status_code == 404
    series = service.get("/v1/runs/hist/series", params={"keys": "layer:4:update_ratio"})
    assert series["reported"] == ["grad_norm", "loss", "step_seconds"]
