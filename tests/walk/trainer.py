"""A real training script for the walk: digits, a small network, a fault in a middle layer.

Every loop shape that the walk promises is here, and none of them knows gradwarden beyond two
lines. Run as ``python -m tests.walk.trainer``; under torchrun it trains with DDP over gloo.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import clip_grad_norm_  # imported before gradwarden.watch, on purpose

import gradwarden
from tests.walk.lasting import is_over


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "stem": nn.Linear(64, 32),
            "blocks": nn.Sequential(
                *(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(4))
            ),
            "head": nn.Linear(32, 10),
        }
    )


def forward(model: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    return model["head"](model["blocks"](torch.tanh(model["stem"](x))))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.ModuleDict) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return forward(self.inner, x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--sick-step", type=int, default=-1)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--clip", action="store_true")
    parser.add_argument("--skip", choices=["no", "by-norm", "by-gradients"], default="no")
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--die-at", type=int, default=-1)
    parser.add_argument("--dying-rank", type=int, default=-1, help="-1: every rank")
    parser.add_argument("--resume-at", type=int, default=0, help="where an elastic restart begins")
    parser.add_argument("--raise-at", type=int, default=-1)
    parser.add_argument("--until", type=Path, help="train on until this file exists")
    parser.add_argument("--sick-every", type=int, default=0, help="fall ill, be healed, again")
    parser.add_argument("--bare", action="store_true", help="forget to wrap the model")
    parser.add_argument("--flip-at", type=int, default=-1, help="one bit of one weight")
    parser.add_argument("--flip-rank", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        arguments.first_step, arguments.die_at = arguments.resume_at, -1

    rank = int(os.environ.get("RANK", "0"))
    inner = network()
    model: nn.Module = Wrapped(inner)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
        if not arguments.bare:
            model = nn.parallel.DistributedDataParallel(model)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    sick = inner["blocks"][arguments.layer][0]
    step = arguments.first_step

    def fault(module: nn.Module, gradients: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The gradient that enters the sick layer has a NaN, as sqrt'(0) * 0 would leave."""
        period = arguments.sick_every
        if step != arguments.sick_step and not (period and step % period == period // 2):
            return gradients
        return tuple(g * float("nan") for g in gradients)

    sick.register_full_backward_pre_hook(fault)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = gradwarden.watch(model, optimizer, start_step=arguments.first_step)
    generator = torch.Generator().manual_seed(rank)
    healthy = {name: value.clone() for name, value in model.state_dict().items()}
    steps = itertools.count(arguments.first_step)
    if arguments.until is None:
        steps = itertools.islice(steps, arguments.steps - arguments.first_step)
    for step in steps:
        if arguments.until is not None and step % 10 == 0 and is_over(arguments.until):
            break
        if arguments.sick_every and step % arguments.sick_every == arguments.sick_every // 2 + 5:
            model.load_state_dict(healthy)
        if step == arguments.die_at and arguments.dying_rank in (-1, rank):
            print(f"dying at step {step}", flush=True)
            os.kill(os.getpid(), 9)
        if step == arguments.raise_at:
            raise MemoryError("out of memory: tried to allocate 80 GiB")
        if step == arguments.flip_at and rank == arguments.flip_rank:
            with torch.no_grad():
                sick.weight.view(torch.int32)[3, 5] ^= 1 << 18
        batch = torch.randint(len(images), (32,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        if arguments.clip or arguments.skip == "by-norm":
            norm = clip_grad_norm_(model.parameters(), 1.0)
            if arguments.skip == "by-norm" and not torch.isfinite(norm):
                continue
        if arguments.skip == "by-gradients" and not all(
            bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None
        ):
            continue
        optimizer.step()
        monitor.log(loss=loss)
        if arguments.pace:
            time.sleep(arguments.pace)  # a step takes its time; nothing waits on this
        if step % 20 == 0:
            print(f"step {step}", flush=True)
    monitor.finish()
    print("health", json.dumps(monitor.health()), flush=True)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
