"""Real trainings without a service: their end tells what ailed them, and so does the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.service import clean_environment, gradwarden

_TRAINING = """
import sys
import torch
from torch import nn
import gradwarden
from gradwarden import aftermath

aftermath.SECONDS = 60.0  # a busy machine
folder, kind = sys.argv[1], sys.argv[2]
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(
    nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
    nn.Linear(32, 1)
)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
monitor = gradwarden.watch(
    model, optimizer, run="spooled", spool=folder + "/spool", environment="prod",
    resume_command="python train.py --from {checkpoint}",
)
for step in range(340):
    if kind == "jump" and step == 310:
        optimizer.param_groups[0]["lr"] = 1e2
    with monitor.phase("data"):
        x = torch.randn(16, 8)
    loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if kind != "mute":
        monitor.log(loss=loss)
        if step % 10 == 0:
            monitor.log(val_loss=loss)
    if step % 50 == 0 and kind != "mute":
        with monitor.checkpoint(f"{folder}/c{step}.pt", step) as draft:
            torch.save(model.state_dict(), draft)
    if kind == "jump" and step > 325 and not torch.isfinite(loss):
        raise ValueError("the loss is not finite")
    if kind == "stopped" and step == 60:
        raise KeyboardInterrupt
"""


def train(folder: Path, kind: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", _TRAINING, str(folder), kind],
        env=clean_environment(GRADWARDEN_EXIT_SECONDS="60", **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def diagnosed(folder: Path) -> tuple[int, dict[str, Any]]:
    told = gradwarden("diagnose", "--spool", str(folder / "spool"), "--json")
    (one,) = json.loads(told.stdout)
    return told.returncode, one


def test_a_training_that_died_says_what_ailed_it(tmp_path: Path) -> None:
    ended = train(tmp_path, "jump")
    assert ended.returncode == 1
    assert "ValueError: the loss is not finite" in ended.stderr, "its own words come first"
    story = ended.stderr.partition("CRITICAL  spooled (failed")[2]
    assert "learning rate went from 0.01 to 100 at step 310" in " ".join(story.split())
    command = f"python train.py --from {tmp_path}/c100.pt"
    assert any(line.strip() == command for line in story.splitlines()), story
    assert max(len(x) for x in story.splitlines() if str(tmp_path) not in x) <= 80

    code, told = diagnosed(tmp_path)
    assert code == 1
    names = [told_["name"] for told_ in told["findings"]]
    assert names[0] == "LearningRateJump"
    assert names[-1] == "RunFailed"
    assert {"NonFiniteGradient", "NonFiniteLoss"} <= set(names)
    (story_,) = [s for s in told["stories"] if s["root"] == told["findings"][0]["id"]]
    assert story_["findings"][-1].startswith("RunFailed")
    shown = {item["series"] for item in told["findings"][0]["evidence"]}
    assert {"lr", "loss", "grad_norm"} <= shown
    assert told["last_good_checkpoint"]["step"] == 100


def test_a_healthy_training_is_told_as_such_and_how_far_it_was_watched(tmp_path: Path) -> None:
    ended = train(tmp_path / "well", "well")
    assert ended.returncode == 0, ended.stderr
    (line,) = re.findall(r"^HEALTHY .*", ended.stderr, re.MULTILINE)
    code, told = diagnosed(tmp_path / "well")
    assert (code, told["verdict"], told["findings"]) == (0, "healthy", []), told["coverage"]
    assert line.startswith("HEALTHY  spooled (finished, step 339)")
    assert train(tmp_path / "mute", "mute").returncode == 0
    code, told = diagnosed(tmp_path / "mute")
    assert (code, told["verdict"]) == (0, "healthy (partly watched)")
    assert any("monitor.log(loss=loss)" in gap["by"] for gap in told["coverage"]["gaps"])


def test_who_stops_a_training_is_not_kept(tmp_path: Path) -> None:
    ended = train(tmp_path, "stopped")
    assert "gradwarden diagnose --spool" in ended.stderr
    assert "HEALTHY" not in ended.stderr


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    ended = train(tmp_path, "jump", GRADWARDEN_DIAGNOSE="0")
    assert ended.returncode == 1
    assert "diagnose" not in ended.stderr


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    absent = gradwarden("diagnose", "--spool", str(tmp_path / "nowhere"))
    assert absent.returncode == 2
    assert "GRADWARDEN_SPOOL" in absent.stderr
    empty = gradwarden("diagnose", "--spool", str(tmp_path))
    assert (empty.returncode, empty.stdout) == (2, "")
    nothing = gradwarden("diagnose")
    assert nothing.returncode == 2
    assert "--spool DIR" in nothing.stderr
