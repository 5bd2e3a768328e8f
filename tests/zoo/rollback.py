"""A guard at work: a NaN, back to the last healthy checkpoint, past the bad batch, to the end.

Each guarded run has a healthy twin of the same seed, and ends with its accuracy.
"""

from __future__ import annotations

import json

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from gradwarden.guard import Guard, Snapshot
from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import Case, Must
from tests.zoo.clock import EVEN
from tests.zoo.ground import Ground

SICK_AT = 260
STEPS = 500
ENDED = "ended.{}.json"
"""What each rank ended with: ``accuracy`` on images that it never saw, ``finite``, ``acts``."""
_NOTED = Must("NonFiniteGradient", ("note", "ticket"))


def _train(ground: Ground, sick_rank: int | None, guarded: bool = True) -> None:
    x, y = data.digits()
    torch.manual_seed(ground.seed)
    inner = deep(64, 2, nn.ReLU)
    model: nn.Module = DistributedDataParallel(inner) if ground.world > 1 else inner
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    guard = None
    if guarded:
        kept = Snapshot(model, optimizer, schedule, path=ground.folder / "kept")
        guard = Guard(
            on_nonfinite="rollback",
            save=kept.save,
            restore=kept.restore,
            checkpoint_every=50,
            healthy_after_steps=20,
        )
    ground.watch(model, optimizer, guard=guard)
    for step, (some, target) in ground.batches(x[:1400], y[:1400], 64, STEPS):
        if step == SICK_AT and sick_rank is not None:
            ground.began(step)
            if ground.rank == sick_rank:
                some[7, 3] = float("nan")
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))
        schedule.step()
    with torch.no_grad():
        right = (inner(x[1400:]).argmax(1) == y[1400:]).float().mean()
    ended = {
        "accuracy": float(right),
        "finite": all(bool(torch.isfinite(p).all()) for p in inner.parameters()),
        "weights": [float(p.double().sum()) for p in inner.parameters()],
    }
    (ground.folder / ENDED.format(ground.rank)).write_text(json.dumps(ended))


def alone(ground: Ground) -> None:
    _train(ground, sick_rank=0)


def alone_unguarded(ground: Ground) -> None:
    _train(ground, sick_rank=0, guarded=False)


def alone_healthy(ground: Ground) -> None:
    _train(ground, sick_rank=None)


def ranks(ground: Ground) -> None:
    """Only the last rank meets the bad sample; all go back."""
    _train(ground, sick_rank=1)


def ranks_healthy(ground: Ground) -> None:
    _train(ground, sick_rank=None)


CASES = (
    Case("rolled_back", alone, must=(_NOTED,), may=("NonFiniteLoss",)),
    Case(
        "not_rolled_back",
        alone_unguarded,
        must=(Must("NonFiniteGradient", ("page",)),),
        may=("NonFiniteLoss",),
    ),
    Case("healthy_guarded", alone_healthy),
    Case("rolled_back_ranks", ranks, must=(_NOTED,), may=("NonFiniteLoss",), ranks=2, clock=EVEN),
    Case("healthy_guarded_ranks", ranks_healthy, ranks=2, clock=EVEN),
)
