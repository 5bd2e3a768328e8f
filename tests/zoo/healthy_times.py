"""Healthy: runs that end, come back, pause, or are not heard for a while."""

from __future__ import annotations

import os
import signal

import torch
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import Case
from tests.zoo.clock import Clock, Pause
from tests.zoo.ground import Ground


def _train(
    ground: Ground, first: int, last: int, *, kept: bool = True, interrupt: int = -1
) -> nn.Module:
    """Train from step to step, from the checkpoint of the life before if there is one."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    path = ground.folder / "last.pt"
    if first:
        held = torch.load(path)
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
    monitor = ground.watch(model, optimizer, start_step=first)
    for offset, (x, y) in ground.batches(*data.digits(), 64, last - first):
        step = first + offset
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))
        if step == interrupt:
            raise KeyboardInterrupt
        if step % 100 == 99 and kept:
            with monitor.checkpoint(path, step) as draft:
                torch.save(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, draft
                )
    return model


def resume(ground: Ground) -> None:
    """It ended with its allocation and was started again where it was."""
    _train(ground, 400 * ground.life, 400 * (ground.life + 1))


def preempted(ground: Ground) -> None:
    """The scheduler takes its place at step 450 and starts it again from step 400."""
    if ground.life == 0:
        _train(ground, 0, 450)
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        _train(ground, 400, 800)


def interrupted(ground: Ground) -> None:
    _train(ground, 0, 600, interrupt=350)


def pauses(ground: Ground) -> None:
    """Evaluation and checkpoints between the steps; the clock makes them long."""
    x, y = data.digits()
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    monitor = ground.watch(model, optimizer)
    path = ground.folder / "last.pt"
    for step, (some, target) in ground.batches(x, y, 64, 600):
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))
        if step % 100 == 99:
            model.eval()
            with torch.no_grad():
                functional.cross_entropy(model(x), y)
            model.train()
        if step % 150 == 149:
            with monitor.checkpoint(path, step) as draft:
                torch.save(model.state_dict(), draft)


def steady(ground: Ground) -> None:
    """Nothing happens in it; what happens is around it."""
    _train(ground, 0, 900, kept=False)


_STEPS = (100, 200, 300, 400, 500)
_EVALUATING = Clock(
    even=True, stretch=200, pauses=tuple(Pause(step, 600.0, "evaluation") for step in _STEPS)
)
_SAVING = Clock(
    even=True,
    stretch=12_000,
    pauses=tuple(Pause(step, 70.0, "checkpoint") for step in (150, 450)),
)
_COMPILING = Clock(even=True, stretch=200, pauses=(Pause(1, 700.0, "compile"),))
_UNHEARD = Clock(even=True, stretch=1000, outage=(200, 700))

CASES = (
    Case("healthy_resume", resume, lives=2),
    Case("healthy_preempted", preempted, lives=2, dies=True),
    Case("healthy_interrupted", interrupted, dies=True, quick=True),
    Case("healthy_long_evaluations", pauses, clock=_EVALUATING),
    Case("healthy_long_checkpoints", pauses, clock=_SAVING),
    Case("healthy_compile_pause", steady, clock=_COMPILING),
    Case("healthy_service_outage", steady, clock=_UNHEARD),
)
