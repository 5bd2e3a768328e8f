"""A trainer whose ranks split one global batch, under each way to split a model too.

Run by torchrun over gloo: ``-m tests.walk.sharder <mode>...``; every mode trains once
without clipping and once with it, each as a run of its own, ``<mode>-<ranks>-<clip>``. What
plain training in one process gives is :func:`reference`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gradwarden

STEPS = 12
BATCH = 16
CLIP = 0.05
"""Far below the norms here, so that every step is clipped."""

UNCLIPPED = ("mixed", "tensor")
"""clip_grad_norm_ refuses gradients of several meshes."""


class Net(nn.Module):
    """Odd sizes: over four ranks shards are uneven and some are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.up = nn.Linear(7, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(self.norm(self.first(x)))
        out: Tensor = self.down(torch.tanh(self.up(hidden)))
        return out


def model() -> Net:
    torch.manual_seed(0)
    return Net()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, 5, generator=generator),
            3 * torch.randn(BATCH, 3, generator=generator),
        )
        for _ in range(STEPS)
    ]


def reference(clip: bool) -> dict[str, list[float]]:
    """Norms by parameter and step of plain training in one process, before clipping."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    found: dict[str, list[float]] = {name: [] for name, _ in net.named_parameters()}
    for x, y in batches():
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            found[name].append(float(parameter.grad.double().norm()))
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
    return found


def split(mode: str) -> tuple[Any, list[Tensor], int, int]:
    """A model as ``mode`` has it, parameters that the loop averages itself, and this rank's
    place among those that see different data."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    net, rank, world = model(), dist.get_rank(), dist.get_world_size()
    if mode == "ddp":
        return nn.parallel.DistributedDataParallel(net), [], rank, world
    if mode.startswith("flat"):
        original = mode == "flat_original"
        host = torch.device("cpu")
        wrapped = FullyShardedDataParallel(net, device_id=host, use_orig_params=original)
        return wrapped, [], rank, world
    if mode == "tensor":
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        grid = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
        plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(net, grid["tensor"], plan)
        return fully_shard(net, mesh=grid["data"]), [], rank // 2, world // 2
    shape, names = ((world,), ("all",)) if mode != "hybrid" else ((2, world // 2), ("r", "s"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    if mode == "mixed":
        ours: set[nn.Parameter] = set(net.norm.parameters())
        return fully_shard(net, mesh=mesh, ignored_params=ours), list(ours), rank, world
    for layer in (net.first, net.up):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh), [], rank, world


def train(mode: str, clip: bool) -> None:
    net, ours, place, places = split(mode)
    run = f"{mode}-{dist.get_world_size()}-{'clip' if clip else 'plain'}"
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    monitor = gradwarden.watch(net, optimizer, run=run)
    share = BATCH // places
    for x, y in batches():
        mine = slice(place * share, (place + 1) * share)
        optimizer.zero_grad()
        (net(x[mine]) - y[mine]).square().mean().backward()
        for parameter in ours:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(places)  # type: ignore[union-attr]
        if clip and mode.startswith("flat"):
            net.clip_grad_norm_(CLIP)
        elif clip:
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
    dist.barrier()
    monitor.finish()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for mode in sys.argv[1:]:
        train(mode, clip=False)
        if mode not in UNCLIPPED:
            train(mode, clip=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
