"""Per-parameter norms of split training equal those of one process, read back over the API."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.server.pager import PATIENCE
from tests.walk import sharder
from tests.walk.conftest import House

MODES = {
    2: ("ddp", "full"),
    4: ("ddp", "full", "hybrid", "tensor", "mixed", "flat", "flat_original"),
}
RUNS = [
    (mode, ranks, clip)
    for ranks, modes in MODES.items()
    for mode in modes
    for clip in ((False,) if mode in sharder.UNCLIPPED else (False, True))
]


def split(house: House, ranks: int) -> None:
    """Train every mode on so many ranks, in one group of processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    launch += [f"--master-port={free_port()}", "-m", "tests.walk.sharder"]
    environment = house.environment("unused", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*launch, *MODES[ranks]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE * 6,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("sharded"))
    try:
        for ranks in MODES:
            split(house, ranks)
        yield house
    finally:
        house.close()


def norms(house: House, run: str) -> dict[str, list[float]]:
    """L2 norms by parameter, as the page of the run would draw them."""
    layers = house.get(f"/v1/runs/{run}")["layers"]
    keys = [f"layer:{layer['i']}:l2" for layer in layers]
    series = house.get(f"/v1/runs/{run}/series", keys=",".join(keys))
    assert series["step"] == list(range(sharder.STEPS))
    return {
        layer["name"]: series["keys"][key]["last"] for layer, key in zip(layers, keys, strict=True)
    }


@pytest.mark.parametrize(
    ("mode", "ranks", "clip"),
    [row for row in RUNS if row[0] != "flat"],
    ids=lambda value: str(value),
)
def test_norms_are_those_of_one_process(trained: House, mode: str, ranks: int, clip: bool) -> None:
    run = f"{mode}-{ranks}-{'clip' if clip else 'plain'}"
    found, expected = norms(trained, run), sharder.reference(clip)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name
    total = trained.get(f"/v1/runs/{run}/series", keys="grad_norm")["keys"]["grad_norm"]
    steps = zip(*expected.values(), strict=True)
    assert total["last"] == pytest.approx([sum(n * n for n in s) ** 0.5 for s in steps], rel=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_one_flat_parameter_has_the_norm_of_the_model(trained: House, clip: bool) -> None:
    found = norms(trained, f"flat-4-{'clip' if clip else 'plain'}")
    steps = zip(*sharder.reference(clip).values(), strict=True)
    assert len(found) == 1
    (values,) = found.values()
    assert values == pytest.approx([sum(n * n for n in s) ** 0.5 for s in steps], rel=1e-5)


CELLS = [
    ("ddp-4-plain", [(0, 1)] * 4, {0}),
    ("full-4-plain", [(0, 4), (1, 4), (2, 4), (3, 4)], {0, 1, 2, 3}),
    ("hybrid-4-plain", [(0, 2), (1, 2), (0, 2), (1, 2)], {0, 1}),
    ("tensor-4-plain", [(0, 4), (1, 4), (2, 4), (3, 4)], {0, 1, 2, 3}),
    ("flat-4-plain", [(0, 4), (1, 4), (2, 4), (3, 4)], {0, 1, 2, 3}),
]


@pytest.mark.parametrize(("run", "cells", "speakers"), CELLS)
def test_one_rank_of_each_cell_sends_its_matrix(
    trained: House, run: str, cells: list[tuple[int, int]], speakers: set[int]
) -> None:
    ranks = trained.get(f"/v1/runs/{run}")["ranks"]
    assert [(r["shard"], r["shards"]) for r in ranks] == cells
    assert {r["group"] for r in ranks} == {0}
    assert matrices(trained.service.path, run) == speakers


def matrices(database: Path, run: str) -> set[int]:
    """Ranks of which any stored batch holds a matrix."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    rows = connection.execute(
        "SELECT DISTINCT stream.rank FROM frame_batch"
        " JOIN stream ON stream.id = frame_batch.stream_id"
        " JOIN run ON run.id = stream.run_id WHERE run.run = ? AND frame_batch.layout != ''",
        (run,),
    ).fetchall()
    connection.close()
    return {rank for (rank,) in rows}


def test_no_alert_comes_of_splitting(trained: House) -> None:
    for mode, ranks, clip in RUNS:
        trained.until_judged(f"{mode}-{ranks}-{'clip' if clip else 'plain'}")
    pages = trained.get("/v1/alerts", severity="page")["items"]
    assert pages == []
