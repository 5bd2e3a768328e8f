"""Sick from birth: initialisation and depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.cases import CLIPPED, Case, Must, layer
from tests.zoo.ground import Ground


def deep(width: int, depth: int, activation: type[nn.Module], classes: int = 10) -> nn.Sequential:
    """``depth`` hidden layers ``0``, ``2``, ... and a head, over the digits."""
    parts: list[nn.Module] = []
    for i in range(depth):
        parts += [nn.Linear(64 if i == 0 else width, width), activation()]
    return nn.Sequential(*parts, nn.Linear(width, classes))


def sigmoid_mlp(ground: Ground) -> None:
    model = deep(48, 10, nn.Sigmoid)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 500):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def wild_relu(ground: Ground) -> None:
    model = deep(64, 6, nn.ReLU)
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, y) in ground.batches(*data.digits(), 64, 300):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


class Reader(nn.Module):
    """A recurrent network that guesses the next character."""

    def __init__(self, letters: int, recurrent: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 16)
        self.rnn = recurrent
        self.head = nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


def wild_rnn(ground: Ground) -> None:
    numbers, letters = data.text()
    recurrent = nn.RNN(16, 48, nonlinearity="relu", batch_first=True)
    nn.init.normal_(recurrent.weight_hh_l0, std=3.5 / 48**0.5)
    model = Reader(letters, recurrent, 48)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    ground.watch(model, optimizer)
    ground.began(0)
    for _ in range(300):
        batch = data.lines(numbers, 24, 16, ground.generator)
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        ground.step(model, optimizer, loss)


CASES = (
    Case(
        "sigmoid_mlp",
        sigmoid_mlp,
        must=(Must("VanishingGradient", ("ticket",), layer("10", "12", "14", "16", "18")),),
        variants=CLIPPED,
        quick=True,
    ),
    Case(
        "wild_relu",
        wild_relu,
        must=(Must("ExplodingGradient", named=layer("?", "1?")),),
        variants=CLIPPED,
        quick=True,
    ),
    Case(
        "wild_rnn",
        wild_rnn,
        must=(Must("ExplodingGradient", named=layer("rnn", "rnn.*", "head", "embedding")),),
        variants=CLIPPED,
    ),
)
