"""Sick by construction: layers that do not learn, and loops that forget a line."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import CLIPPED, Case, Must, layer
from tests.zoo.ground import Ground
from tests.zoo.healthy_models import Experts

SICK_AT = 250


class Branches(nn.Module):
    """Two branches over one image, added before the head."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
        self.right = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
        self.head = nn.Linear(32, 10)
        self._detached = detached

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        return self.head(torch.relu(self.left(x) + (right.detach() if self._detached else right)))


def dead_relu(ground: Ground) -> None:
    """One wild update pushed a bias so far down that its ReLU never opens again."""
    model = deep(48, 4, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    ground.watch(model, optimizer)
    sick = model[4]
    assert isinstance(sick, nn.Linear)
    for step, (x, y) in ground.batches(*data.digits(), 64, 500):
        if step == SICK_AT:
            ground.began(step)
            with torch.no_grad():
                sick.bias -= 1000.0
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def dead_branch(ground: Ground) -> None:
    """The same from birth, while the branch beside it lives."""
    model = Branches()
    with torch.no_grad():
        model.right[0].bias.fill_(-1000.0)  # type: ignore[union-attr, operator]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 400):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def forgotten_zero_grad(ground: Ground) -> None:
    model = deep(48, 2, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 300):
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        ground.apply(model, optimizer)
        monitor.log(loss=loss)


def detached_branch(ground: Ground) -> None:
    model = Branches(detached=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 300):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def left_in_eval_mode(ground: Ground) -> None:
    """After an evaluation nobody called train()."""
    x, y = data.digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2))
    model.append(nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step, (some, target) in ground.batches(x, y, 64, 400):
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))
        if step == SICK_AT:
            model.eval()
            with torch.no_grad():
                functional.cross_entropy(model(x[:256]), y[:256])
            ground.began(step + 1)


def starved_expert(ground: Ground) -> None:
    """Nothing balances the router, and one expert's score has a bad start."""
    model = Experts()
    with torch.no_grad():
        model.router.bias[5] = -30.0
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 24, 800):
        guess, balance = model(x)
        ground.step(model, optimizer, functional.cross_entropy(guess, y) + 0.1 * balance)


CASES = (
    Case(
        "dead_relu",
        dead_relu,
        must=(Must("DeadLayer", ("ticket",), layer("4")),),
        may=("LossDivergence",),
        variants=CLIPPED,
        quick=True,
    ),
    Case(
        "dead_branch",
        dead_branch,
        must=(Must("DeadLayer", ("ticket",), layer("right", "right.0")),),
        variants=CLIPPED,
    ),
    Case(
        "starved_expert",
        starved_expert,
        must=(Must("ExpertStarved", ("ticket",), layer("experts.5")),),
    ),
    Case(
        "forgotten_zero_grad",
        forgotten_zero_grad,
        must=(Must("GradientsNotZeroed", ("ticket",)),),
        may=("LossDivergence", "ExplodingGradient"),
        variants=CLIPPED,
        quick=True,
    ),
    Case(
        "detached_branch",
        detached_branch,
        must=(Must("NoGradient", ("ticket",), layer("right", "right.0", "right.2")),),
        variants=CLIPPED,
    ),
    Case(
        "left_in_eval_mode",
        left_in_eval_mode,
        must=(Must("TrainingInEvalMode", ("note",)),),
        quick=True,
    ),
)
