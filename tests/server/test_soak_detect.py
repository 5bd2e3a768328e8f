"""The soak of detectors: its trainings are what they say, and what it counts is counted once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOAK = ROOT / "benchmarks" / "soak_detect.py"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(SOAK.parent))
    import soak_detect

    return soak_detect


@pytest.mark.parametrize(("count", "bound"), [(0, 2.9957), (1, 4.7439), (10, 16.9622)])
def test_the_bound_is_that_of_a_poisson_mean(soak: object, count: int, bound: float) -> None:
    assert soak.upper(count) == pytest.approx(bound, abs=1e-3)  # type: ignore[attr-defined]


def test_the_same_number_is_the_same_training(soak: object) -> None:
    runs = soak.soak_runs  # type: ignore[attr-defined]
    one, other = runs.Run(3, 5), runs.Run(3, 5)
    for _, a, b in zip(range(300), one, other, strict=False):
        assert type(a) is type(b)
        if isinstance(a, runs.Step):
            assert (a.step, a.attempt, a.events, a.time_ns) == (
                b.step,
                b.attempt,
                b.events,
                b.time_ns,
            )
            assert {r: s.scalars for r, s in a.ranks.items()} == {
                r: s.scalars for r, s in b.ranks.items()
            }
            for group, held in a.groups.items():
                np.testing.assert_array_equal(held.values, b.groups[group].values)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK), "--folder", str(tmp_path), "--processes", "1"]
    first = subprocess.run(
        [*command, "--steps", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    told = json.loads(first.stdout.splitlines()[-1])["figures"]
    assert told["runs"] == 1
    (kept,) = tmp_path.glob("*.jsonl")
    kept.write_text(kept.read_text() + '{"run":1,"ste')  # as a crash leaves it
    again = subprocess.run(
        [*command, "--steps", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode in (0, 1), again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["figures"]["steps"] == told["steps"]
