"""The scale benchmark says what it measured, and its fleet loses no frame."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.mark.full
def test_a_small_fleet_is_carried_and_its_nan_reaches_the_pager() -> None:
    command = [sys.executable, str(BENCHMARK), "--minutes", "0.5", "--ranks", "16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["name"], set(told["met"])) == ("scale", set(told["goals"])), done.stderr
    figures = told["figures"]
    assert figures["frames_sent"] > 0
    assert (figures["frames_lost"], figures["unacked"], figures["requests_failed"]) == (0, 0, 0)
    assert (figures["nans"], figures["pages_missing"]) == (1, 0)
    assert figures["dashboard"]["failures"] == []
    assert figures["evaluator_errors"] == 0
