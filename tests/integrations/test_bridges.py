"""W&B and MLflow, real and offline: links both ways, a few numbers, and the findings in words."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import gradwarden
from gradwarden.integrations import mlflow as mlflow_bridge
from gradwarden.integrations import wandb as wandb_bridge
from tests.integrations.conftest import bits, needs_library, norms, total
from tests.sdk.conftest import batch, mlp
from tests.sdk.fake import FakeService

STEPS = 8
SICK = 5


def train(monitor: Any, model: torch.nn.Module, optimizer: Any, log: Any = None) -> None:
    """One of the steps is spoilt, and applied."""
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(step)).pow(2).mean() * (math.nan if step == SICK else 1.0)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        if step != SICK:
            optimizer.step()
        if monitor is not None:
            monitor.log(loss=loss)
        if log is not None:
            log(step, float(loss))


def pair() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = mlp()
    return model, torch.optim.SGD(model.parameters(), 1e-2)


def page(service: FakeService) -> str:
    return f"{service.url}/runs/run-1"


@pytest.mark.full
def test_wandb_and_gradwarden_know_each_other(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    wandb = needs_library("wandb")
    settings = wandb.Settings(mode="offline", root_dir=str(tmp_path), silent=True)
    rows = []
    with wandb.init(project="p", name="a name", settings=settings) as run:
        model, optimizer = pair()
        monitor = gradwarden.watch(model, optimizer, **options)
        wandb_bridge.link(monitor)

        def log(step: int, loss: float) -> None:
            run.log({"their_loss": loss})
            rows.append(run.step)

        train(monitor, model, optimizer, log)
        monitor.finish()
        run.log({"their_end": 1.0})  # their row takes what waits for one
        assert run.config["gradwarden"] == page(service)
        summary = dict(run.summary)
    assert rows == list(range(1, STEPS + 1))  # their step counter is theirs
    assert summary["gradwarden"] == page(service)
    assert summary["gradwarden/steps"] == STEPS
    assert summary["gradwarden/skipped"] == 1
    told = norms(service)
    peak = max(total(row) for step, row in told.items() if step != SICK)
    assert summary["gradwarden/grad_norm_max"] == pytest.approx(peak, rel=1e-5)
    assert summary["gradwarden/step"] == STEPS - 1
    assert summary["gradwarden/grad_norm"] == pytest.approx(total(told[STEPS - 1]), rel=1e-5)
    start = service.starts[0]
    assert start["name"] == "a name"
    assert start["config"]["wandb"] == f"offline run {run.id}"
    plain, its = pair()
    train(None, plain, its)
    assert bits(model) == bits(plain)


@pytest.mark.full
def test_what_the_caller_says_wins_over_wandb(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    wandb = needs_library("wandb")
    settings = wandb.Settings(mode="offline", root_dir=str(tmp_path), silent=True)
    with wandb.init(project="p", name="theirs", settings=settings):
        model, optimizer = pair()
        monitor = gradwarden.watch(model, optimizer, name="ours", owner="me", **options)
        train(monitor, model, optimizer)
        monitor.finish()
    assert (service.starts[0]["name"], service.starts[0]["owner"]) == ("ours", "me")


@pytest.mark.full
@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow_gets_tags_metrics_and_the_findings(
    store: str,
    service: FakeService,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow = needs_library("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = f"sqlite:///{tmp_path / 'm.db'}" if store == "sqlite" else (tmp_path / "m").as_uri()
    mlflow.set_tracking_uri(where)
    mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("e")
    with mlflow.start_run() as active:
        model, optimizer = pair()
        monitor = gradwarden.watch(model, optimizer, config={"lr": 0.01}, **options)
        mlflow_bridge.link(monitor)
        train(monitor, model, optimizer)
        monitor.finish()
    key = active.info.run_id
    data = mlflow.MlflowClient().get_run(key).data
    assert data.tags["gradwarden.run"] == "run-1"
    assert data.tags["gradwarden.url"] == page(service)
    assert data.metrics["gradwarden.steps"] == STEPS
    assert data.metrics["gradwarden.skipped"] == 1
    assert data.metrics["gradwarden.grad_norm_max"] > 0
    (artifact,) = (tmp_path / "artifacts").rglob("diagnosis.txt")
    text = artifact.read_text()
    assert f"run run-1: finished\n{page(service)}\n" in text
    assert f"step {SICK} was skipped" in text
    assert service.starts[0]["config"] == {"lr": 0.01, "mlflow": f"{where} run {key}"}


class Broken:
    """A tracker that raises, in the place of W&B."""

    id, url, name, entity = "x", None, "n", None

    def define_metric(self, *_: Any, **__: Any) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("their bug")


def test_a_tracker_that_raises_costs_the_tracker_and_nothing_else(
    service: FakeService,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", type("W", (), {"run": Broken()}))
    model, optimizer = pair()
    monitor = gradwarden.watch(model, optimizer, **options)
    wandb_bridge.link(monitor)
    train(monitor, model, optimizer)
    monitor.finish()
    assert sorted(norms(service)) == list(range(STEPS))
    assert capfd.readouterr().err.count("wandb failed (RuntimeError: their bug)") == 1


@pytest.mark.parametrize("bridge", ["wandb", "mlflow"])
def test_without_their_run_a_link_says_what_is_missing_and_imports_nothing(
    bridge: str, tmp_path: Path
) -> None:
    lines = (
        "import sys, torch, gradwarden",
        f"from gradwarden.integrations import {bridge}",
        "model = torch.nn.Linear(2, 2)",
        "monitor = gradwarden.watch(model, torch.optim.SGD(model.parameters(), 0.1))",
        f"{bridge}.link(monitor)",
        "assert not {'wandb', 'mlflow', 'transformers', 'lightning'} & set(sys.modules)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"wandb": "wandb.init()", "mlflow": "mlflow.start_run()"}[bridge] in done.stderr
