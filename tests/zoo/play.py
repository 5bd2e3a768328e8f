"""Runs the real trainings: one process for each rank, forked from one that has torch loaded."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, cast

from tests.conftest import free_port
from tests.zoo.cases import Variant

PATIENCE = 240.0
"""Seconds that a life may take on a busy machine; a hang is reported, not waited for."""
_ONE_AT_A_TIME = threading.Lock()
"""Whoever asks after a process reads its exit code off a pipe, and starting one asks after all:
of two threads that ask at once one finds the pipe empty and reports 255."""
_QUIET = 3.0
"""Seconds without a new byte after which all that a standing run had to say is on disk."""


def context() -> ForkServerContext:
    """Where processes come from; the first one loads torch for all."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.zoo.registry", "tests.zoo.judge"])
    return made


def play(name: str, variant: Variant, seed: int, folder: Path) -> list[str]:
    """Run all lives of a case; what went wrong with its processes, if anything did."""
    from tests.zoo.registry import CASES

    case = CASES[name]
    troubles: list[str] = []
    for life in range(case.lives):
        port = free_port() if case.ranks > 1 else 0
        ranks = [
            start(_live, name, variant, seed, folder, rank, case.ranks, life, port)
            for rank in range(case.ranks)
        ]
        troubles += _wait(ranks, folder, case.dies)
    return troubles


def start(target: Callable[..., None], *given: object) -> ForkServerProcess:
    """A process of its own for ``target``."""
    process = context().Process(target=target, args=given)
    with _ONE_AT_A_TIME:
        process.start()
    return process


def lives(process: ForkServerProcess, seconds: float = 0.0) -> bool:
    """Whether it goes on, after waiting so long for its end."""
    wait([process.sentinel], seconds)
    with _ONE_AT_A_TIME:
        return process.is_alive()


def _wait(ranks: list[ForkServerProcess], folder: Path, dies: bool) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    heard, size = time.monotonic(), -1
    while (living := [p for p in ranks if lives(p)]) and time.monotonic() < deadline:
        wait([p.sentinel for p in living], 0.05)
        if (folder / "stands").exists():
            now = sum(p.stat().st_size for p in (folder / "spool").rglob("*.spool"))
            if now != size:
                heard, size = time.monotonic(), now
            if time.monotonic() - heard > _QUIET:
                break
    hung = [i for i, p in enumerate(ranks) if lives(p)]
    for process in ranks:
        process.kill()
        while lives(process, 1.0):
            pass
    if dies:
        return []
    troubles = [f"rank {i} did not end within {PATIENCE:g} s" for i in hung]
    codes = [(i, p.exitcode) for i, p in enumerate(ranks) if i not in hung]
    troubles += [f"rank {i} ended with {code}" for i, code in codes if code]
    return troubles + [f"{path.name}: an exception" for path in folder.glob("raised*")]


def _live(
    name: str,
    variant: Variant,
    seed: int,
    folder: Path,
    rank: int,
    world: int,
    life: int,
    port: int,
) -> None:
    log = os.open(folder / f"rank{rank}.life{life}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for key in [k for k in os.environ if k.startswith("GRADWARDEN_")]:
        del os.environ[key]
    import torch
    import torch.distributed as dist

    from tests.zoo.ground import Ground
    from tests.zoo.registry import CASES

    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo")
    # From here on as an interpreter does it, which multiprocessing does not.
    try:
        CASES[name].make(Ground(seed, variant, folder, rank, world, life))
    except BaseException:
        (folder / f"raised{rank}.life{life}").touch()
        sys.excepthook(*cast(Any, sys.exc_info()))
    atexit._run_exitfuncs()
    if world > 1 and not any(folder.glob("raised*")):
        dist.destroy_process_group()
