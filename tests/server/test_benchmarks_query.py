"""The benchmark of reading builds what it says, and measures every kind of read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "query.py"


@pytest.mark.full
def test_the_benchmark_of_reading_runs_and_keeps_its_database(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--calls", "2", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["name"], set(told["met"])) == ("query", set(told["goals"]))
    figures = told["figures"]
    assert set(told["goals"]) <= set(figures)
    for kind in ("heatmap", "layer", "layer_every_step", "latest", "compare", "histogram"):
        assert 0 < figures[f"{kind}_p50_ms"] <= figures[f"{kind}_p95_ms"]
    assert figures["resident_peak_bytes"] >= figures["resident_after_bytes"] > 0
    (built,) = tmp_path.glob("query-*/built.json")
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert f"using {built.parent}" in again.stdout
