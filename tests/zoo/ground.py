"""What a training of the zoo stands on: its seed, its rank, its way of stepping, its truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

import gradwarden
from tests.zoo.cases import Variant

TRUTH = "truth.json"
RUN = "zoo"


@dataclass
class Ground:
    """One process of one run."""

    seed: int
    variant: Variant
    folder: Path
    rank: int = 0
    world: int = 1
    life: int = 0
    monitor: gradwarden.Monitor = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed * 1009 + self.rank)

    def watch(
        self, model: nn.Module, optimizer: Optimizer | list[Optimizer], **more: Any
    ) -> gradwarden.Monitor:
        """The real SDK with its defaults, without a server.

        Every step is captured whatever it costs: which ones a throttle leaves out would
        depend on how busy the machine is.
        """
        given = {"environment": "prod", "throttle": False, "exit_seconds": 60.0, "diagnose": False}
        given |= more
        self.monitor = gradwarden.watch(
            model, optimizer, run=RUN, spool=self.folder / "spool", **given
        )
        return self.monitor

    def step(self, model: nn.Module, optimizer: Optimizer, loss: Tensor, **log: Any) -> bool:
        """Backward and step, in the way of the variant; False where the loop skipped it."""
        optimizer.zero_grad()
        loss.backward()
        done = self.apply(model, optimizer)
        self.monitor.log(loss=loss, **log)
        return done

    def apply(self, model: nn.Module, optimizer: Optimizer) -> bool:
        """What a loop does between backward and the next batch; False where it skipped."""
        held = [p for p in model.parameters() if p.grad is not None]
        if self.variant == "clip":
            clip_grad_norm_(held, 1.0)
        if self.variant == "skip" and not all(_finite(p) for p in held):
            optimizer.zero_grad()
            return False
        optimizer.step()
        return True

    def batches(self, x: Tensor, y: Tensor, size: int, steps: int) -> Iterator[tuple[int, Any]]:
        """``(step, (x, y))`` with ``size`` samples drawn for each step."""
        for step in range(steps):
            at = torch.randint(len(x), (size,), generator=self.generator)
            yield step, (x[at], y[at])

    def began(self, step: int, **facts: Any) -> None:
        """Write down the truth: the fault is there from this step on. Only the first counts."""
        path = self.folder / TRUTH
        if not path.exists():
            path.write_text(json.dumps({"step": step, **facts}))

    @property
    def truth(self) -> dict[str, Any]:
        path = self.folder / TRUTH
        return json.loads(path.read_text()) if path.exists() else {}


def _finite(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())


Make = Callable[[Ground], None]
