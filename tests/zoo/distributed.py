"""Sick between ranks: real gloo processes that differ, wait, die or hang."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import ALL, CLIPPED, Case, Must, layer, rank, says
from tests.zoo.clock import EVEN, Clock
from tests.zoo.ground import Ground

SICK_AT = 120
LAST = 1
"""The rank that falls ill."""


class Job:
    """A small network in DistributedDataParallel, each rank with samples of its own."""

    def __init__(self, ground: Ground, wrap: bool = True) -> None:
        torch.manual_seed(ground.seed if wrap else ground.seed + ground.rank)
        self.ground = ground
        self.inner = deep(32, 3, nn.Tanh)
        self.model: nn.Module = DistributedDataParallel(self.inner) if wrap else self.inner
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05)

    def train(self, steps: int, before: Any = lambda step: None) -> None:
        self.ground.watch(self.model, self.optimizer)
        for step, (x, y) in self.ground.batches(*data.digits(), 32, steps):
            before(step)
            loss = functional.cross_entropy(self.model(x), y)
            self.ground.step(self.model, self.optimizer, loss)

    @property
    def sick(self) -> bool:
        return self.ground.rank == LAST


def bit_flip(ground: Ground) -> None:
    """A bit of one weight turns over on one rank; the gradients stay equal."""
    job = Job(ground)

    def flip(step: int) -> None:
        if step != SICK_AT:
            return
        ground.began(step)
        if job.sick:
            with torch.no_grad():
                job.inner[2].weight.view(torch.int32)[3, 5] ^= 1 << 18  # type: ignore[union-attr, operator]

    job.train(300, flip)


def bad_sample_of_one_rank(ground: Ground) -> None:
    """One rank reads a NaN; behind the all-reduce all of them have it."""
    job = Job(ground)
    ground.watch(job.model, job.optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 32, 200):
        if step == SICK_AT:
            ground.began(step)
            if job.sick:
                x[3, 7] = float("nan")
        ground.step(job.model, job.optimizer, functional.cross_entropy(job.model(x), y))


def forgotten_wrap(ground: Ground) -> None:
    """Each rank trains its own model."""
    ground.began(0)
    Job(ground, wrap=False).train(200)


def sleeping_rank(ground: Ground) -> None:
    """One rank takes much longer for its own work than the others."""
    job = Job(ground)

    def laze(step: int) -> None:
        if step >= SICK_AT:
            ground.began(SICK_AT)
            if job.sick:
                time.sleep(0.008)

    job.train(500, laze)


def slow_all_reduce(ground: Ground) -> None:
    """The network between the ranks gets slow: each transfer takes longer on all of them."""
    job = Job(ground)
    slow = False

    def reduce(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses text for types
        time.sleep(0.02 if slow else 0.001)
        future = dist.all_reduce(bucket.buffer() / ground.world, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    assert isinstance(job.model, DistributedDataParallel)
    job.model.register_comm_hook(None, reduce)

    def worsen(step: int) -> None:
        nonlocal slow
        if step == 250:
            ground.began(step)
            slow = True

    job.train(600, worsen)


def killed_rank(ground: Ground) -> None:
    job = Job(ground)

    def die(step: int) -> None:
        if step == SICK_AT and job.sick:
            ground.began(step - 1)  # the last that anybody did
            time.sleep(2.0)  # what it said before was written down; the others wait for it
            os.kill(os.getpid(), signal.SIGKILL)

    job.train(300, die)


def hung_rank(ground: Ground) -> None:
    """One rank stands; the others wait for it in an all-reduce. All processes are alive."""
    job = Job(ground)

    def hang(step: int) -> None:
        if step == SICK_AT and job.sick:
            ground.began(step - 1)
            (ground.folder / "stands").touch()
            threading.Event().wait()

    job.train(300, hang)


def frozen_rank(ground: Ground) -> None:
    """The node of one rank is gone; the other waits for it, alive."""
    job = Job(ground)

    def freeze(step: int) -> None:
        if step == SICK_AT and job.sick:
            ground.began(step - 1)
            time.sleep(2.0)
            (ground.folder / "stands").touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    job.train(300, freeze)


CASES = (
    Case(
        "bit_flip",
        bit_flip,
        must=(Must("ReplicaMismatch", ("page", "ticket"), layer("2")),),
        may=("NormSelfCheckFailed",),
        variants=CLIPPED,
        ranks=2,
        clock=EVEN,
    ),
    Case(
        "bit_flip_of_three",
        bit_flip,
        must=(Must("ReplicaMismatch", ("page", "ticket"), rank(LAST)),),
        ranks=3,
        clock=EVEN,
    ),
    Case(
        "bad_sample_of_one_rank",
        bad_sample_of_one_rank,
        must=(Must("NonFiniteGradient", ("page",), rank(LAST)),),
        must_if={"skip": (Must("NonFiniteGradient", ("note",), rank(LAST)),)},
        may=("NonFiniteLoss",),
        variants=ALL,
        ranks=2,
        clock=EVEN,
    ),
    Case(
        "forgotten_wrap",
        forgotten_wrap,
        must=(Must("NeverSynchronized", ("ticket",)),),
        variants=CLIPPED,
        ranks=2,
        clock=EVEN,
    ),
    Case(
        "sleeping_rank",
        sleeping_rank,
        must=(Must("Straggler", ("ticket",), rank(LAST)),),
        may=("ThroughputDrop",),
        ranks=3,
    ),
    Case(
        "slow_all_reduce",
        slow_all_reduce,
        must=(Must("AllReduceSlow", ("ticket",), says("rank")),),
        may=("ThroughputDrop",),
        ranks=2,
        clock=Clock(stretch=100),
    ),
    Case(
        "killed_rank",
        killed_rank,
        must=(Must("RunFailed", ("page",), rank(LAST)),),
        may=("RankSilent", "RunStalled"),
        ranks=2,
        dies=True,
    ),
    Case(
        "hung_rank",
        hung_rank,
        must=(Must("RunStalled"),),
        ranks=2,
        dies=True,
        stands=(0, LAST),
    ),
    Case(
        "frozen_rank",
        frozen_rank,
        must=(Must("RankSilent", named=rank(LAST)),),
        may=("RunStalled",),
        ranks=2,
        dies=True,
        stands=(0,),
    ),
)
