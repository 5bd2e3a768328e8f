"""Shards of one group become one matrix: the arithmetic, the live join, and the same in history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import text

from gradwarden import wire
from gradwarden_server import joins
from gradwarden_server.detect.assembler import WAIT_NS, Assembler
from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.steps import Step
from gradwarden_server.store.reading import gather
from tests.server.detection import RULES
from tests.server.test_store import NOW, PROJECT, Store

COLUMNS = (*wire.QUANTITIES, "hist_8", "weight_l2", "update_ratio")
SECOND = 1_000_000_000


def statistics(gradient: Any, weight: Any, moved: Any) -> list[float]:
    """One row in float64, by the definitions."""
    g = np.asarray(gradient, np.float64)
    finite = g[np.isfinite(g)]
    size = np.abs(finite[finite != 0])
    norm = float(np.linalg.norm(weight))
    return [
        float(np.sqrt(np.square(g).sum())),
        float(np.abs(g).max(initial=0.0)),
        float(np.isnan(g).sum()),
        float(np.isinf(g).sum()),
        float((g == 0).sum()),
        float((np.abs(g) < 1e-8).sum()),
        float(((size >= 2.0**-10) & (size < 2.0**-6)).sum()),
        norm,
        float(np.linalg.norm(moved)) / norm if norm else math.nan,
    ]


VALUES = st.sampled_from([0.0, -0.0, 1e-9, 0.004, -0.01, 1.5, -3e4, math.nan, math.inf, -math.inf])


@given(
    st.lists(st.tuples(VALUES, st.floats(0.5, 2), st.floats(0.01, 1)), min_size=1, max_size=40),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_join_of_uneven_shards_is_the_statistics_of_the_whole(
    elements: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    shards = data.draw(st.integers(1, 5))
    cuts = sorted(data.draw(st.integers(0, len(elements))) for _ in range(shards - 1))
    edges = [0, *cuts, len(elements)]
    table = np.array(elements)
    parts = [
        np.array([statistics(*table[a:b].T)], np.float32) for a, b in itertools.pairwise(edges)
    ]
    joined = joins.join(parts, shards, COLUMNS, np.array([True]))
    expected = statistics(*table.T)
    assert bool(joined.complete)
    np.testing.assert_allclose(joined.values[0], expected, rtol=1e-5)
    exact = slice(COLUMNS.index("nan"), COLUMNS.index("weight_l2"))
    assert joined.values[0][exact].tolist() == expected[exact]


def test_rows_that_all_hold_alike_are_taken_once_from_the_lowest_that_saw_them() -> None:
    parts = np.ones((3, 2, 6), np.float32)
    parts[:, 1] = [[s + 1, s + 1, 0, 0, s, s] for s in range(3)]
    parts[0, 1] = np.nan
    joined = joins.join(parts, 3, wire.QUANTITIES, np.array([True, False]))
    assert joined.values[0, 0] == pytest.approx(math.sqrt(3))
    assert joined.values[1].tolist() == [2, 2, 0, 0, 1, 1]
    assert bool(joined.complete)


def test_a_row_that_no_shard_observed_is_unobserved_and_nothing_lacks() -> None:
    parts = np.ones((2, 2, 6), np.float32)
    parts[:, 1] = np.nan
    joined = joins.join(parts, 2, wire.QUANTITIES, np.array([True, True]))
    assert joins.observed(joined.values, wire.QUANTITIES).tolist() == [True, False]
    assert bool(joined.complete)


def test_without_a_shard_a_sum_is_unknown_and_a_nan_is_not() -> None:
    part = np.ones((3, 6), np.float32)
    part[:, 2:4] = 0
    part[1] = [math.nan, math.nan, 4, 0, 0, 0]
    joined = joins.join([part], 2, wire.QUANTITIES, np.array([True, True, False]))
    assert not joined.complete
    assert np.isnan(joined.values[0]).all()
    assert joined.values[1, 2:4].tolist() == [4, 0]
    assert np.isnan(joined.values[1, [0, 1, 4, 5]]).all()
    assert joined.values[2].tolist() == [1, 1, 0, 0, 1, 1]


# -- a run of two shards, one of them with a replica ----------------------------------------

ROWS = 4
LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{i}.weight", (8, 8), "float32", f"blocks.{i}", "matrix", i < 3)
        for i in range(ROWS)
    )
)
TURNED = wire.Layout(LAYOUT.parameters, (3, 2, 1, 0))
LAYOUTS = {LAYOUT.hash: LAYOUT, TURNED.hash: TURNED}
CELLS = {0: (0, 2), 1: (1, 2), 2: (0, 2), 3: (1, 2)}


def values(shard: int, step: int, bad: Sequence[int] = ()) -> NDArray[np.float32]:
    rows = np.zeros((ROWS, 6), np.float32)
    rows[:, 0] = [(3.0, 4.0)[shard] * (row + 1) + step for row in range(ROWS)]
    rows[:, 1] = rows[:, 0] / 2
    rows[:, 4] = shard + 1
    rows[3] = [7.0 + step, 2.0, 0, 0, 5, 5]  # replicated: the same on every rank
    for row in bad:
        rows[row] = [math.nan, math.nan, 2, 0, 0, 0]
    return rows


def batch(
    rank: int, steps: Sequence[int], matrix: bool = True, bad: Mapping[int, Sequence[int]] = {}
) -> wire.Batch:
    key = wire.StreamKey("r", "a1", rank, f"n-a1-{rank}", 0)
    shard = CELLS[rank][0]
    frames = tuple(
        wire.Frame(
            seq=step + 1,
            step=step,
            time_ns=NOW + step * SECOND,
            scalars={"loss": 1.0},
            capture="pre_clip",
            stepped=True,
            values=values(shard, step, bad.get(step, ())).tobytes() if matrix else b"",
        )
        for step in steps
    )
    return wire.Batch(key, frames, (LAYOUT, TURNED)[shard].hash, ROWS)


def whole(step: int) -> NDArray[np.float32]:
    both = [values(shard, step).astype(np.float64) for shard in (0, 1)]
    expected = both[0].copy()
    expected[:3, 0] = np.hypot(both[0][:3, 0], both[1][:3, 0])
    expected[:3, 1] = np.maximum(both[0][:3, 1], both[1][:3, 1])
    expected[:3, 4] = 3
    return expected.astype(np.float32)


def assembler(world_size: int = 2) -> Assembler:
    return Assembler(world_size, layouts=LAYOUTS.get)


def add(made: Assembler, sent: wire.Batch, at: int = 0) -> None:
    made.add(sent, 1, at, cell=CELLS[sent.stream.rank])


def test_a_step_waits_for_its_shards_and_is_their_join() -> None:
    made = assembler()
    add(made, batch(1, [0, 1]))
    assert made.release(0) == []
    other = assembler()
    other.restore(made.state())
    for one in (made, other):
        add(one, batch(0, [0, 1]))
        steps = one.release(0)
        assert [s.step for s in steps] == [0, 1]
        for step in steps:
            group = step.groups[0]
            assert group.complete
            assert (group.rank, group.capture, group.stepped) == (0, "pre_clip", True)
            np.testing.assert_allclose(group.values, whole(step.step), rtol=1e-6)


def test_replicas_of_a_shard_count_once() -> None:
    made = assembler(4)
    for rank in (3, 2, 1):
        add(made, batch(rank, [0]))
    add(made, batch(0, [0], matrix=False))
    (step,) = made.release(0)
    assert step.groups[0].rank == 2
    np.testing.assert_allclose(step.groups[0].values, whole(0), rtol=1e-6)


def judged(steps: Sequence[Step]) -> tuple[RunDetectors, list[Verdict]]:
    engine = RunDetectors(LAYOUTS.get, RULES.detectors, RULES.baseline, world_size=2)
    return engine, engine.advance(steps)


def test_a_missing_shard_is_no_drop_for_any_detector() -> None:
    made = assembler()
    steps = []
    for number in range(120):
        add(made, batch(0, [number]), number * SECOND)
        if number % 10 != 9:
            add(made, batch(1, [number]), number * SECOND)
        else:
            add(made, batch(1, [number], matrix=False), number * SECOND)
        steps += made.release(number * SECOND)
    assert [s.groups[0].complete for s in steps] == [n % 10 != 9 for n in range(120)]
    assert steps[9].groups[0].observed.tolist() == [False, False, False, True]
    _, verdicts = judged(steps)
    norms = [p.value for v in verdicts for p in v.points if p.name == "gradwarden_gradient_norm"]
    assert len(norms) == 108
    expected = [math.sqrt(np.square(whole(n)[:, 0]).sum()) for n in range(120) if n % 10 != 9]
    assert norms == pytest.approx(expected)
    active = {c.alertname for v in verdicts for c in v.conditions if c.active}
    assert not active


def test_a_non_finite_shard_is_told_before_the_other_one_is_there() -> None:
    made = assembler()
    add(made, batch(1, [0], bad={0: [2]}))
    assert made.release(0) == []
    (early,) = made.urgent()
    assert early.partial
    assert early.groups[0].bad.nonzero()[0].tolist() == [2]
    (late,) = made.release(WAIT_NS)
    assert late.missing == (0,)
    assert not late.groups[0].complete
    _, verdicts = judged([late])
    (page,) = [c for v in verdicts for c in v.conditions if c.active]
    assert (page.alertname, page.severity) == ("NonFiniteGradient", "page")
    assert page.annotations["parameter"] == "blocks.2.weight"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path}/gw.sqlite")
    for layout in LAYOUTS.values():
        made.runs.put_layout(PROJECT, layout).result()
    for rank, (shard, shards) in CELLS.items():
        made.start(rank=rank, group=0, shard=shard, shards=shards)
    yield made
    made.database.close()


def curves(store: Store, keys: Sequence[str]) -> dict[str, Any]:
    return store.history.series(PROJECT, "r", keys, None, None, 1000).keys


def test_history_reads_the_numbers_that_detectors_saw(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_HELD_BYTES", 1000)  # ten steps of one shard
    steps = list(range(60))
    sent = [batch(0, steps[a : a + 7]) for a in range(0, 60, 7)]
    sent += [batch(1, steps[a : a + 5]) for a in range(0, 60, 5)]  # much later: a spool
    sent.append(batch(3, steps[:9]))
    made = assembler()
    for one in sent:
        store.send(one)
        add(made, one)
    live = {s.step: s.groups[0] for s in made.release(10 * WAIT_NS)}
    quantities = list(wire.QUANTITIES[:5])
    keys = [f"layer:{row}:{name}" for row in range(ROWS) for name in quantities]
    found = curves(store, [*keys, "grad_norm", "loss"])
    for row in range(ROWS):
        for column, name in enumerate(quantities):
            seen = [float(live[n].values[row, column]) for n in steps]
            assert found[f"layer:{row}:{name}"]["last"] == seen
    expected = [math.sqrt(np.square(whole(n)[:, 0], dtype=np.float64).sum()) for n in steps]
    assert found["grad_norm"]["last"] == pytest.approx(expected)
    assert found["loss"]["last"] == [1.0] * 60
    picture = store.history.heatmap(PROJECT, "r", "l2", None, None, 100)
    assert picture is not None
    top = max(float(live[n].values[:, 0].max()) for n in steps)
    assert picture.header["hi"] == pytest.approx(math.log10(top))
    assert 0 not in picture.cells


def test_history_leaves_out_what_a_missing_shard_would_lower(store: Store) -> None:
    store.send(batch(0, [0, 1, 2], bad={2: [1]}))
    store.send(batch(1, [0]))
    found = curves(store, ["grad_norm", "layer:0:l2", "layer:1:l2", "layer:3:l2"])
    assert found["grad_norm"]["last"] == pytest.approx(
        [math.sqrt(np.square(whole(0)[:, 0]).sum()), None, None]
    )
    assert found["grad_norm"]["nonfinite"] == [0, 0, 1]
    assert found["layer:0:l2"]["last"] == pytest.approx([5.0, None, None])
    assert found["layer:1:l2"]["nonfinite"] == [0, 0, 1]
    assert found["layer:3:l2"]["last"] == [7.0, 8.0, 9.0]
    picture = store.history.heatmap(PROJECT, "r", "l2", None, None, 10)
    assert picture is not None
    grid = np.frombuffer(picture.cells, np.uint8).reshape(ROWS, 3)
    assert (grid[:3, 1] == 0).all()
    assert (grid[1, 2], grid[3, 1] > 0) == (255, True)


def test_a_step_told_in_two_frames_is_laid_together(store: Store) -> None:
    one, other = batch(0, [0]), batch(0, [0])
    upper, lower = values(0, 0), values(0, 0)
    upper[:2], lower[2:] = np.nan, np.nan
    frames = (
        replace(one.frames[0], values=upper.tobytes(), open=True),
        replace(other.frames[0], seq=2, values=lower.tobytes()),
    )
    store.send(replace(one, frames=frames))
    store.send(batch(1, [0]))
    found = curves(store, [f"layer:{row}:l2" for row in range(ROWS)])
    assert [c["last"][0] for c in found.values()] == pytest.approx(whole(0)[:, 0].tolist())


def test_streams_from_before_there_were_shards_hold_the_whole(store: Store) -> None:
    store.database.downgrade("0001")
    store.database.migrate()
    assert {(s.shard, s.shards) for s in store.runs.streams(PROJECT, "r")} == {(0, 1)}
    with store.database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM stream")).scalar_one() == len(CELLS)
