"""Real trainers on tiny networks, against a loopback service, beside what plain torch computes."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwarden import wire
from tests.needs import missing
from tests.sdk.fake import FakeService

Matrices = dict[int, dict[str, dict[str, float]]]


def needs_library(name: str) -> Any:
    """A library that only ``make test-full`` installs, or a loud skip."""
    try:
        return pytest.importorskip(name)
    except pytest.skip.Exception:
        missing(name, "pip install -e '.[full]'")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("GRADWARDEN_", "TORCHELASTIC_", "SLURM_", "WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as fake:
        yield fake


@pytest.fixture
def options(service: FakeService, tmp_path: Path) -> dict[str, Any]:
    """Options of ``watch`` that lead to the service."""
    return {"url": service.url, "spool": tmp_path / "spool", "run": "run-1"}


def matrices(service: FakeService) -> Matrices:
    """Step -> parameter -> quantity -> value, of every captured step.

    A step may come in pieces, one for each optimizer; a parameter that comes twice fails.
    """
    found: Matrices = {}
    for batch in service.batches:
        for frame in batch.frames:
            if frame.values:
                names = [p.name for p in service.layouts[batch.layout].parameters]
                rows = struct.iter_unpack(f"<{len(batch.quantities)}f", frame.values)
                for name, row in zip(names, rows, strict=True):
                    values = dict(zip(batch.quantities, row, strict=True))
                    if not math.isnan(values["nan"]):
                        matrix = found.setdefault(frame.step, {})
                        assert name not in matrix, f"step {frame.step} has {name} twice"
                        matrix[name] = values
    return found


def norms(service: FakeService) -> dict[int, dict[str, float]]:
    """Step -> parameter -> gradient norm."""
    return {
        step: {name: row["l2"] for name, row in matrix.items()}
        for step, matrix in sorted(matrices(service).items())
    }


def scalars(service: FakeService, name: str) -> dict[int, float]:
    """Step -> the last value of one scalar."""
    return {f.step: f.scalars[name] for f in service.all_frames() if name in f.scalars}


def verdicts(service: FakeService) -> dict[int, bool | None]:
    """Step -> whether it was applied, of every captured step."""
    told: dict[int, list[wire.Frame]] = {}
    for frame in service.all_frames():
        told.setdefault(frame.step, []).append(frame)
    return {
        step: [f.stepped for f in frames if f.stepped is not None or not f.open][-1]
        for step, frames in told.items()
        if any(f.values for f in frames)
    }


def captures(service: FakeService) -> set[str]:
    """Where the matrices were taken."""
    return {f.capture for f in service.all_frames() if f.values}


def ending(service: FakeService) -> dict[str, Any]:
    """The one finish event."""
    (finish,) = service.events("finish")
    return finish


def same(expected: dict[int, dict[str, float]], relative: float = 1e-5) -> Any:
    """Norms within rounding of these."""
    return {step: pytest.approx(row, rel=relative) for step, row in expected.items()}


def total(row: dict[str, float]) -> float:
    return math.sqrt(sum(v * v for v in row.values()))


def bits(model: torch.nn.Module) -> list[bytes]:
    """Every parameter to the last bit."""
    return [p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in model.parameters()]
