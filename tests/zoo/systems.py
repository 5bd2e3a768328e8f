"""Sick around the training: memory, disks, loaders."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from gradwarden.guard import Guard, Snapshot
from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import Case, Must, says
from tests.zoo.clock import Clock
from tests.zoo.ground import Ground

SICK_AT = 150


def out_of_memory(ground: Ground) -> None:
    model = deep(48, 2, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 64, 300):
        if step == SICK_AT:
            ground.began(step - 1)  # the last that was done
            raise MemoryError("cannot allocate 80 GiB for a batch of this length")
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def truncated_checkpoint(ground: Ground) -> None:
    """The newest healthy checkpoint lost its second half when a NaN makes the guard need it."""
    model = deep(48, 2, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    kept = Snapshot(model, optimizer, path=ground.folder / "kept")
    guard = Guard(
        on_nonfinite="rollback",
        save=kept.save,
        restore=kept.restore,
        checkpoint_every=50,
        healthy_after_steps=20,
    )
    ground.watch(model, optimizer, guard=guard)
    for step, (x, y) in ground.batches(*data.digits(), 64, 300):
        if step == SICK_AT + 25:  # saved after step 149, and its checksum is known
            newest = max((ground.folder / "kept").glob("step-*"))
            os.truncate(newest, newest.stat().st_size // 2)
            ground.began(step)
        if step == SICK_AT + 40:
            x[0, 0] = float("nan")
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


class Slow(Dataset[tuple[Tensor, Tensor]]):
    """Digits from a storage that gets slow."""

    def __init__(self) -> None:
        self.x, self.y = data.digits()
        self.delay = 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        if self.delay and at % 16 == 0:  # not even a sleep of none: it gives the core away
            time.sleep(self.delay)
        return self.x[at], self.y[at]


def slow_loader(ground: Ground) -> None:
    held = Slow()
    model = deep(512, 4, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ground.watch(model, optimizer)
    loader = DataLoader(held, batch_size=32, shuffle=True, generator=ground.generator)
    step = 0
    while step < 800:
        for x, y in loader:
            if step == 400:
                ground.began(step)
                held.delay = 0.02
            ground.step(model, optimizer, functional.cross_entropy(model(x), y))
            step += 1


CASES = (
    Case(
        "out_of_memory",
        out_of_memory,
        must=(Must("RunFailed", ("page",), says("memory")),),
        dies=True,
        quick=True,
    ),
    Case(
        "truncated_checkpoint",
        truncated_checkpoint,
        must=(Must("CheckpointCorrupt", ("page",), says("kept")),),
        may=("NonFiniteGradient", "NonFiniteLoss"),
    ),
    Case(
        "slow_loader",
        slow_loader,
        must=(Must("InputBound", ("ticket",)), Must("ThroughputDrop", ("ticket",), says("data"))),
        clock=Clock(stretch=400),
    ),
)
