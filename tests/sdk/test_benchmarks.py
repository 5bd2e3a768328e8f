"""The benchmarks of the SDK run and say what they would; how fast is for a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = (
    "everything, once",
    "everything, torch alone",
    "local flags of buckets",
    "a slice's weight checksums",
    *(f"preset {p}{how}" for p in ("light", "standard", "full") for how in ("", ", torch alone")),
)
PEERS = {"Lightning grad_norm", "wandb.watch", "TensorBoard histograms"}


def test_the_overhead_benchmark_reports_every_line() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "sdk_overhead.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == "sdk_overhead"
    assert set(result["met"]) == set(result["goals"])
    lines, absent = result["figures"]["lines"], set(result["figures"]["absent"])
    assert absent <= PEERS
    for case in ("small", "fp32"):
        named = {*OURS, "naive .item()", "Composer's way", *(PEERS - absent)}
        assert named <= set(lines[case])
        for figure in lines[case].values():
            assert figure["low"] <= figure["ratio"] <= figure["high"]
    for name in absent:
        assert f"{name:32} NOT MEASURED: pip install " in done.stdout


def test_the_memory_benchmark_reports_growth_and_spool() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "sdk_memory.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == "sdk_memory"
    assert set(result["met"]) == set(result["goals"]) == {"growth_bytes", "spool_bytes"}
    figures = result["figures"]
    assert figures["captured"] == figures["steps"] == 2000
    assert 0 < figures["spool_bytes"] <= figures["spool_bound_bytes"]
