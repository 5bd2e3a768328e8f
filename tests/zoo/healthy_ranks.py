"""Healthy: real gloo processes that train one model together."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import Case
from tests.zoo.clock import EVEN
from tests.zoo.distributed import Job
from tests.zoo.ground import Ground


def two_ranks(ground: Ground) -> None:
    Job(ground).train(400)


def evaluating_rank(ground: Ground) -> None:
    """Rank 0 alone evaluates; the others wait for it in the next all-reduce."""
    x, y = data.digits()
    job = Job(ground)

    def evaluate(step: int) -> None:
        if step % 50 == 49 and ground.rank == 0:
            job.inner.eval()
            with torch.no_grad():
                for _ in range(20):
                    functional.cross_entropy(job.inner(x), y)
            job.inner.train()

    job.train(400, evaluate)


def sharded(ground: Ground) -> None:
    """FSDP2: each rank holds a part of each weight."""
    torch.manual_seed(ground.seed)
    model = deep(48, 4, nn.ReLU)
    mesh = init_device_mesh("cpu", (ground.world,))
    for part in (*(p for p in model if isinstance(p, nn.Linear)), model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 32, 300):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


CASES = (
    Case("healthy_two_ranks", two_ranks, ranks=2, variants=("plain", "clip")),
    Case("healthy_evaluating_rank", evaluating_rank, ranks=2),
    Case("healthy_sharded", sharded, ranks=2, clock=EVEN),
)
