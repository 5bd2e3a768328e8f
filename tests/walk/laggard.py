"""A real DDP training script in which one rank is slow, or falls ill alone.

Run by torchrun as ``python -m tests.walk.laggard``; it knows gradwarden by two lines.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gradwarden
from tests.walk.lasting import is_over


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--until", type=Path, help="train on until this file exists")
    parser.add_argument("--slow-rank", type=int, default=-1)
    parser.add_argument("--sick-rank", type=int, default=-1)
    parser.add_argument("--sick-step", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    inner.append(nn.Linear(64, 10))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = gradwarden.watch(model, optimizer)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(rank)
    step = 0

    def fault(gradient: Tensor) -> Tensor:
        sick = rank == arguments.sick_rank and step == arguments.sick_step
        return gradient * (float("nan") if sick else 1.0)

    inner[2].weight.register_hook(fault)
    for step in itertools.count():
        if step >= arguments.steps and (arguments.until is None or is_over(arguments.until)):
            break
        if rank == arguments.slow_rank:
            time.sleep(0.15)  # stands for slow work; nothing waits on this
        batch = torch.randint(len(images), (32,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
    torch.distributed.barrier()
    monitor.finish()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
