"""A watched run against a real loopback service, and the loops that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from tests.sdk.fake import FakeService


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("GRADWARDEN_", "TORCHELASTIC_", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GRADWARDEN_THROTTLE", "0")  # a busy machine would choose the steps
    monkeypatch.setenv("GRADWARDEN_DIAGNOSE", "0")  # a process for each of hundreds of runs
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch.manual_seed(0)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as fake:
        yield fake


Watch = Callable[..., gradwarden.Monitor]


@pytest.fixture
def watch(service: FakeService, tmp_path: Path) -> Iterator[Watch]:
    """``gradwarden.watch`` against the fake service; what is left open is finished."""
    monitors: list[gradwarden.Monitor] = []

    def start(model: nn.Module, optimizer: Any = None, **options: Any) -> gradwarden.Monitor:
        options = {"url": service.url, "spool": tmp_path / "spool", "run": "run-1", **options}
        monitor = gradwarden.watch(model, optimizer, **options)
        monitors.append(monitor)
        return monitor

    yield start
    for monitor in monitors:
        monitor.finish()


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def batch(step: int) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
