"""The benchmark of judging records once, plays it through every detector, and tells each part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.detection import RULES

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "detect.py"


@pytest.mark.full
def test_the_benchmark_of_judging_tells_what_each_detector_costs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--passes", "1"]
    place = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=place
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["name"], set(told["met"])) == ("detect", set(told["goals"]))
    parts = {"decode", "assembler", "baselines and context", "speakers", "verdicts"}
    for layers in told["goals"]:
        figures = told["figures"][layers]
        assert set(figures["us_per_frame"]) == parts | {rule.alert for rule in RULES.detectors}
        assert figures["frames_per_second"] > 0
        assert figures["matrices"] == 48
        assert not figures["raised"], "a healthy training"
    again = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=place
    )
    assert again.returncode == 0, again.stderr
    assert "recording" not in again.stdout
