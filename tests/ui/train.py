"""A real, small training that falls ill: one sample of one batch is blank.

The middle block scales by the root of a mean square without an epsilon; at exactly zero its
derivative is infinite, and infinity times zero is NaN. The loss of that step is still fine.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor, nn

import gradwarden


class Gate(nn.Module):
    """A linear layer that scales each sample by its own energy."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mix = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, size] to [n, size]."""
        y: Tensor = self.mix(x)
        return torch.relu(y * y.pow(2).mean(dim=1, keepdim=True).sqrt())


def main() -> None:
    """Train for ``--steps``; the gradient becomes NaN at ``--sick-step``, when given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--sick-step", type=int, default=-1)
    parser.add_argument("--hold", action="store_true", help="stay until stdin closes")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between steps")
    parser.add_argument("--runs", default="", help="several runs, one after the other, by name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    watched = [train(options, name or None) for name in options.runs.split(",")]
    if options.hold:
        sys.stdin.read()
    del watched  # until here, so that none of them ended


def train(options: argparse.Namespace, run: str | None) -> gradwarden.Monitor:
    """One run from its first step to its last; it goes on to be watched."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 32, bias=False), Gate(32), nn.Linear(32, 32), nn.Linear(32, 8)
    )
    teacher = torch.randn(32, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    monitor = gradwarden.watch(model, optimizer, run=run, environment="prod", owner="mei")
    for step in range(options.steps):
        x = torch.randn(64, 32)
        labels = (x @ teacher).argmax(1)
        if step == options.sick_step:
            x[5] = 0.0
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        monitor.log(loss=loss, lr=schedule.get_last_lr()[0])
        schedule.step()
        time.sleep(options.pause)
    return monitor


if __name__ == "__main__":
    main()
