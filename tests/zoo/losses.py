"""Sick in how it learns: rates, clipping, labels, too few samples."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import CLIPPED, Case, Must, layer, says
from tests.zoo.ground import Ground

SICK_AT = 300


def rate_too_high(ground: Ground) -> None:
    """The learning rate is multiplied by 100 and stays there."""
    model = deep(48, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 64, 800):
        if step == SICK_AT:
            ground.began(step)
            optimizer.param_groups[0]["lr"] *= 100
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def momentum_too_high(ground: Ground) -> None:
    """Plain SGD beyond what is stable, from some step on: it swings higher and higher.

    How the end looks is chance: gradients grow a thousandfold, or units die and they vanish, or
    numbers overflow. What every seed has in common is a loss that leaves its best for good.
    """
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.diabetes(), 32, 750):
        if step == SICK_AT:
            ground.began(step)
            optimizer.param_groups[0]["lr"] = 0.019
            optimizer.param_groups[0]["momentum"] = 1.02
        ground.step(model, optimizer, functional.mse_loss(model(x), y))


def plateau(ground: Ground) -> None:
    """What there is to learn was learned: the features of these samples say nothing."""
    x, y = data.diabetes()
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(ground.seed))
    model = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (some, target) in ground.batches(x, y, 128, 1500):
        ground.step(model, optimizer, functional.mse_loss(model(some), target))


def rate_too_low(ground: Ground) -> None:
    model = deep(48, 2, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 700):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def clipped_to_nothing(ground: Ground) -> None:
    model = deep(48, 2, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    monitor = ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 800):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        monitor.log(loss=loss)


def shuffled_labels(ground: Ground) -> None:
    """From some step on the labels belong to other images."""
    x, y = data.digits()
    model = deep(48, 2, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    ground.watch(model, optimizer)
    wrong = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(ground.seed))]
    for step in range(900):
        if step == 500:
            ground.began(step)
        at = torch.randint(len(x), (64,), generator=ground.generator)
        target = (wrong if step >= 500 else y)[at]
        ground.step(model, optimizer, functional.cross_entropy(model(x[at]), target))


def overfitting(ground: Ground) -> None:
    """50 samples and many parameters; the others are what it is evaluated on."""
    x, y = data.digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(ground.seed))
    few, rest = order[:50], order[50:850]
    model = deep(128, 2, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    monitor = ground.watch(model, optimizer)
    best = float("inf")
    for step in range(1200):
        at = few[torch.randint(50, (25,), generator=ground.generator)]
        ground.step(model, optimizer, functional.cross_entropy(model(x[at]), y[at]))
        if step % 50 == 49:
            model.eval()
            with torch.no_grad():
                loss = float(functional.cross_entropy(model(x[rest]), y[rest]))
            model.train()
            if loss > best * 1.02:
                ground.began(step)
            best = min(best, loss)
            monitor.log(val_loss=loss, epoch=(step + 1) / 2)


CASES = (
    Case(
        "rate_too_high",
        rate_too_high,
        must=(Must("LossDivergence", named=says("learning rate", "lr")),),
        may=("ExplodingGradient", "UpdateRatioOutOfBand", "DeadLayer"),
        variants=CLIPPED,
        quick=True,
    ),
    Case(
        "momentum_too_high",
        momentum_too_high,
        must=(
            Must(
                "LossDivergence",
                named=says("learning rate", "lr"),
                alike=("ExplodingGradient",),  # where it is over within 100 steps of the rise
            ),
        ),
        may=(
            "ClipSaturation",
            "DeadLayer",
            "ExplodingGradient",
            "NonFiniteGradient",
            "NonFiniteLoss",
            "UpdateRatioOutOfBand",
        ),
        variants=CLIPPED,
    ),
    Case(
        "plateau",
        plateau,
        must=(Must("LossPlateau", ("ticket",), says("no improvement")),),
        owner={"LossPlateau": {"window_steps": 500}},
    ),
    Case(
        "rate_too_low",
        rate_too_low,
        must=(Must("UpdateRatioOutOfBand", ("ticket",), layer("?")),),
        variants=CLIPPED,
    ),
    Case(
        "clipped_to_nothing",
        clipped_to_nothing,
        must=(Must("ClipSaturation", ("ticket",)),),
    ),
    Case(
        "shuffled_labels",
        shuffled_labels,
        must=(Must("GradientShift", ("note",)),),
        may=("LossDivergence", "ExplodingGradient"),
        variants=CLIPPED,
    ),
    Case("overfitting", overfitting, must=(Must("Overfitting", ("ticket",), says("step")),)),
)
