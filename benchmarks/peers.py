"""What other tools do with a step's gradients, as calls that can be timed: for sdk_overhead.py.

Each is the library's own code on gradients that are there already, called once for each
parameter as its hook or callback would be; Composer's is written out, since the package pins
another torch. None of them is asked to send anything anywhere.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

Call = Callable[[], Any]


def naive(model: nn.Module) -> Call:
    """A norm and an ``.item()`` for each parameter, as loops are written by hand."""
    return lambda: [p.grad.norm().item() for p in model.parameters() if p.grad is not None]


def composer(model: nn.Module) -> Call:
    """Composer's OptimizerMonitor without its optimizer's moments: norms, a total, ``.item()``."""

    def report() -> dict[str, float]:
        metrics: dict[str, torch.Tensor] = {}
        total: Any = 0.0
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and parameter.requires_grad:
                norm = torch.linalg.vector_norm(parameter.grad)
                metrics[f"l2_norm/grad/{name}"] = norm
                total += norm**2
        metrics["l2_norm/grad/global"] = total**0.5
        return {name: value.item() for name, value in metrics.items()}

    return report


def lightning(model: nn.Module) -> Call:
    """``lightning.pytorch.utilities.grad_norm``, as its documentation has users call it."""
    from lightning.pytorch.utilities import grad_norm

    return lambda: grad_norm(model, 2)


def tensorboard(model: nn.Module, folder: Path, stack: ExitStack) -> Call:
    """``add_histogram`` of each gradient."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]
    stack.callback(writer.close)

    def write() -> None:
        for name, parameter in model.named_parameters():
            writer.add_histogram(name, parameter.grad, 0)  # type: ignore[no-untyped-call]

    return write


def wandb(model: nn.Module, folder: Path, stack: ExitStack) -> Call:
    """What the hooks of ``wandb.watch(log_freq=1)`` do in each backward, and the run's log."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb as library

    run = library.init(mode="offline", dir=str(folder), project="overhead")
    stack.callback(run.finish)
    history = run._torch

    def log() -> None:
        for name, parameter in model.named_parameters():
            history.log_tensor_stats(parameter.grad.data, f"gradients/{name}")
        run.log({})

    return log


PEERS: dict[str, tuple[str, Callable[[nn.Module, Path, ExitStack], Call]]] = {
    "naive .item()": ("torch", lambda model, _folder, _stack: naive(model)),
    "Composer's way": ("torch", lambda model, _folder, _stack: composer(model)),
    "Lightning grad_norm": ("lightning", lambda model, _folder, _stack: lightning(model)),
    "wandb.watch": ("wandb", wandb),
    "TensorBoard histograms": ("tensorboard", tensorboard),
}
"""By name: the package that it needs, and what makes its call."""


def missing(package: str) -> bool:
    """Whether a package is not installed here."""
    return importlib.util.find_spec(package) is None
