"""A run that met a NaN goes back by its guard, and ends as if the batch had never been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.play import play
from tests.zoo.rollback import ENDED

CHANCE = 0.2
"""Ten digits: what a network with poisoned weights guesses is right less often than this."""


def ended(name: str, seed: int, folder: Path, ranks: int = 1) -> list[dict[str, Any]]:
    """Train; what each rank ended with."""
    made = folder / f"{name}.{seed}"
    made.mkdir()
    assert play(name, "plain", seed, made) == []
    return [json.loads((made / ENDED.format(r)).read_text()) for r in range(ranks)]


def log(name: str, seed: int, folder: Path, rank: int = 0) -> str:
    return (folder / f"{name}.{seed}" / f"rank{rank}.life0.log").read_text()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_rolled_back_run_ends_with_the_accuracy_of_a_healthy_one(
    seed: int, tmp_path: Path
) -> None:
    (healthy,) = ended("healthy_guarded", seed, tmp_path)
    (back,) = ended("rolled_back", seed, tmp_path)
    (lost,) = ended("not_rolled_back", seed, tmp_path)
    assert "guard: rollback" not in log("healthy_guarded", seed, tmp_path)
    # Saved after steps 49, 99, ..., 249; that of 249 had not 20 clean steps behind it at 260.
    assert "guard: rollback at step 260" in log("rolled_back", seed, tmp_path)
    assert "back to" in log("rolled_back", seed, tmp_path)
    assert "step-000000199" in log("rolled_back", seed, tmp_path)
    assert healthy["accuracy"] > 0.85
    assert back["finite"]
    assert back["accuracy"] == pytest.approx(healthy["accuracy"], abs=0.03)
    assert not lost["finite"]
    assert lost["accuracy"] < CHANCE


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_nan_on_one_rank_takes_all_ranks_back_to_one_state(seed: int, tmp_path: Path) -> None:
    healthy = ended("healthy_guarded_ranks", seed, tmp_path, ranks=2)
    back = ended("rolled_back_ranks", seed, tmp_path, ranks=2)
    assert "guard: rollback at step 262" in log("rolled_back_ranks", seed, tmp_path)
    assert back[0] == back[1]
    assert back[0]["finite"]
    assert healthy[0]["accuracy"] > 0.85
    assert back[0]["accuracy"] == pytest.approx(healthy[0]["accuracy"], abs=0.03)
