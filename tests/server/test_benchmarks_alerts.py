"""The benchmark of pages says what it measured, and every NaN of its fleet reaches the pager."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import needs

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "alert_latency.py"


@pytest.mark.full
def test_a_small_fleet_pages_and_so_does_a_tuned_prometheus() -> None:
    needs("prometheus")
    needs("prometheus-alertmanager")
    words = ["--incidents", "5", "--ranks", "10", "--peer-incidents", "2"]
    command = [sys.executable, str(BENCHMARK), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["name"], set(told["met"])) == ("alert_latency", set(told["goals"])), done.stderr
    figures = told["figures"]
    assert (figures["incidents"], figures["unpaged"]) == (5, 0)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    for peer in ("prometheus_defaults", "prometheus_tuned"):
        assert (figures[peer]["incidents"], figures[peer]["unpaged"]) == (2, 0)
