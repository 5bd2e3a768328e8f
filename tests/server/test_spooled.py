"""A training without a service leaves a spool, which is judged as the service would have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradwarden_server.cli.spooled import Spooled, judge
from tests.server.detection import RULES

_TRAINING = """
import os, signal, sys
import torch
from torch import nn
import gradwarden

spool, ill, killed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
monitor = gradwarden.watch(model, optimizer, spool=spool, environment="prod")
for step in range(60):
    loss = model(torch.randn(8, 8)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    if step == ill:
        model[2].weight.grad[0, 0] = float("nan")
    optimizer.step()
    monitor.log(loss=loss, lr=1e-2)
    if step == killed:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def train(spool: Path, ill: int = -1, killed: int = -1) -> Spooled:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    command = [sys.executable, "-c", _TRAINING, str(spool), str(ill), str(killed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if killed >= 0 else 0), done.stderr
    [one] = judge(spool, RULES)
    return one


def fired(one: Spooled) -> dict[str, str]:
    return {
        change.alert.alertname: change.alert.severity
        for change in one.replay.changes
        if change.to_state == "firing"
    }


def test_a_healthy_training_raises_nothing(tmp_path: Path) -> None:
    one = train(tmp_path)
    assert not {name for name, severity in fired(one).items() if severity != "note"}
    assert not one.replay.open
    assert one.facts.last_step == 59


def test_a_nan_is_found_in_its_layer_at_its_step(tmp_path: Path) -> None:
    one = train(tmp_path, ill=40)
    assert fired(one)["NonFiniteGradient"] == "page"
    [born] = [
        change.alert
        for change in one.replay.changes
        if change.alert.alertname == "NonFiniteGradient" and change.to_state == "firing"
    ]
    assert (born.annotations["step"], born.annotations["layer"]) == ("40", "2")
    assert not one.replay.open, "the run ended well, whatever it learned"


def test_a_killed_training_failed(tmp_path: Path) -> None:
    one = train(tmp_path, killed=40)
    assert fired(one)["RunFailed"] == "page"
    assert "RunFailed" in {alert.alertname for alert in one.replay.open.values()}


def test_there_must_be_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        judge(tmp_path / "nowhere", RULES)
