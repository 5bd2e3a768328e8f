"""An alert that names ranks names their nodes, whoever raised it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.server.detection import ROWS, carrier, engine, held, step

NODES = {0: "node-a", 1: "node-b", 2: "node-b"}


def started(rank: int, **place: Any) -> Any:
    return carrier(0, {"kind": "start", "place": place}, 0.0, rank)


def page(bad: tuple[int, ...], restored: bool = False) -> Any:
    """The annotations of an applied NaN whose loss was bad on these ranks of three."""
    detectors = engine(["NonFiniteGradient"], world_size=3)
    losses = dict.fromkeys(NODES, 1.0)
    starts = [started(rank, node=node, gpu=str(rank)) for rank, node in NODES.items()]
    detectors.advance([*starts, step(0, loss=losses)])
    if restored:
        after = engine(["NonFiniteGradient"], world_size=3)
        after.restore(detectors.state())
        detectors = after
    losses = {rank: np.nan if rank in bad else 1.0 for rank in NODES}
    (condition,) = held(detectors.advance([step(1, nan=range(ROWS), loss=losses)])).values()
    return condition.annotations


@pytest.mark.parametrize("restored", [False, True])
def test_one_rank_has_its_node_and_gpu(restored: bool) -> None:
    words = page((2,), restored)
    assert (words["rank"], words["node"], words["gpu"]) == ("2", "node-b", "2")


def test_several_ranks_have_their_nodes() -> None:
    words = page((0, 2))
    assert (words["rank"], words["node"]) == ("0, 2", "node-a, node-b")
    assert "gpu" not in words


def test_what_names_no_rank_names_no_node() -> None:
    words = page((0, 1, 2))
    assert words["rank"].startswith("rank unknown")
    assert "node" not in words


def test_a_run_that_told_no_place_has_none() -> None:
    detectors = engine(["NonFiniteLoss"])
    (condition,) = held(detectors.advance([step(0, loss=np.nan)])).values()
    assert condition.annotations["rank"] == "0"
    assert "node" not in condition.annotations
