"""The guard on real gloo ranks: all act at the same step, and nothing ever hangs.

The ranks are plain processes, without a launcher that would end them all when one dies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import gradwarden
from gradwarden.guard import Guard, Snapshot

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
folder = Path(sys.argv[1])
words = sys.argv[2:]


def say(**facts):
    print(json.dumps({"rank": rank, **facts}), flush=True)


def mlp(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def batch(step, bad=False):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1000 * rank + step))
    if bad:
        x[0, 0] = float("nan")
    return x


def backward(model, optimizer, x):
    optimizer.zero_grad()
    model(x).pow(2).mean().backward()


def flat(model):
    return [v for p in model.parameters() for v in p.detach().flatten().tolist()]


def gathered(value):
    every = [None] * world
    dist.all_gather_object(every, value)
    return every
"""


def start(world: int, tmp_path: Path, script: str, *words: str) -> list[subprocess.Popen[str]]:
    file = tmp_path / "train.py"
    file.write_text(HEAD + script)
    env = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    env |= {"PYTHONPATH": str(ROOT / "client_sdk"), "OMP_NUM_THREADS": "1"}
    env |= {"GRADWARDEN_SPOOL": str(tmp_path / "spool"), "WORLD_SIZE": str(world)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, str(file), str(tmp_path), *words],
            env={**env, "RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def end(ranks: list[subprocess.Popen[str]], seconds: float = 120) -> tuple[list[Any], list[str]]:
    """What each rank said, and its stderr; a rank that hangs fails the test."""
    said: list[Any] = []
    errors: list[str] = []
    try:
        for process in ranks:
            out, err = process.communicate(timeout=seconds)
            said.append([json.loads(line) for line in out.splitlines()])
            errors.append(err)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return said, errors


TRIALS = """
seed, count = int(words[0]), int(words[1])
chance = random.Random(seed)
for trial in range(count):
    # Drawn alike on all ranks: what happens, to whom, and when.
    kinds = ["halt", "rollback", "request", "skip_step", "halt+request", "rollback+request"]
    kind = chance.choice(kinds)
    policy, asked, ill = kind.partition("+")[0], "request" in kind, kind != "request"
    sick, slow, at = chance.randrange(world), chance.randrange(world), chance.randrange(8, 20)
    parallel, pause = policy == "skip_step" or chance.random() < 0.5, chance.random() * 0.05
    model = mlp(trial)
    model = DistributedDataParallel(model) if parallel else model
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    given = {"on_nonfinite": policy if ill else None}
    ask_after = at * 0.004 * (chance.random() * 3 if ill else 1)
    if policy == "rollback":
        kept = Snapshot(model, optimizer, path=folder / f"trial-{trial}")
        given |= {"save": kept.save, "restore": kept.restore}
        given |= {"checkpoint_every": 3, "healthy_after_steps": 2}
    acts = []
    monitor = gradwarden.watch(model, optimizer, guard=Guard(**given))
    keeper, act = monitor._session.keeper, monitor._session.keeper._tell
    keeper._tell = lambda action, reason, step, aloud, **more: (
        acts.append((action, step, more.get("to_step"))), act(action, reason, step, aloud, **more)
    )
    timer = threading.Timer(ask_after, keeper.request_halt, ["asked"])
    if asked and rank == 0:
        timer.start()
    stopped = None
    for step in range(400 if asked else 26):
        if rank == slow:
            time.sleep(pause / 10)
        if step == at and rank == slow:
            time.sleep(pause * 6)
        bad = ill and step == at and rank == sick
        backward(model, optimizer, batch(step, bad))
        if asked:
            time.sleep(0.002)  # the request comes while a step is under way
        optimizer.step()
        if monitor.should_stop:
            stopped = step
            break
    monitor.finish()
    finite = all(torch.isfinite(p).all() for p in model.parameters())
    weights = hash(tuple(flat(model))) if parallel else 0
    alike = [list(a) for a in acts]
    seen = gathered((stopped, alike, finite, weights))
    if rank == 0:
        say(trial=trial, kind=kind, at=at, parallel=parallel, seen=seen)
dist.barrier()
dist.destroy_process_group()
"""


def check_trials(world: int, tmp_path: Path, seed: int, count: int, seconds: float) -> None:
    said, errors = end(start(world, tmp_path, TRIALS, str(seed), str(count)), seconds)
    assert len(said[0]) == count, "\n".join(errors)
    for trial in said[0]:
        stopped, acts, finite, _ = trial["seen"][0]
        assert all(seen == trial["seen"][0] for seen in trial["seen"]), trial
        assert finite, trial
        at, kind = trial["at"], trial["kind"]
        if kind == "halt":
            assert (stopped, acts) == (at + 2, [["halt", at + 2, None]]), trial
        elif kind == "halt+request":  # whichever was first
            assert stopped in range(at + 3), trial
            assert acts == [["halt", stopped, None]], trial
        elif kind == "rollback+request":
            assert stopped is not None, trial
            assert [act[0] for act in acts] in (["halt"], ["rollback", "halt"]), trial
        elif kind == "request":
            assert stopped is not None, trial
            assert acts == [["halt", stopped, None]], trial
        elif kind == "skip_step":
            assert (stopped, acts) == (None, [["skip_step", at, None]]), trial
        else:
            assert stopped is None, trial
            [[action, step, to]] = acts
            # Saved after 2, 5, 8, ...; healthy with two clean steps behind it before `at`.
            assert (action, step, to) == ("rollback", at + 2, (at - 5) // 3 * 3 + 2), trial


@pytest.mark.parametrize("world", [2, 4])
def test_all_ranks_act_at_the_same_step_whoever_is_sick_or_slow(world: int, tmp_path: Path) -> None:
    check_trials(world, tmp_path, seed=world, count=10, seconds=200)


@pytest.mark.full
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("world", [2, 4])
def test_a_hundred_trials_end(world: int, tmp_path: Path) -> None:
    check_trials(world, tmp_path, seed=100 + world, count=100, seconds=700)


LOSING = """
mode = words[0]
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), 0.05)
guard = Guard(on_nonfinite="halt", timeout=2.0 if mode == "frozen" else 60.0)
monitor = gradwarden.watch(model, optimizer, guard=guard)
for step in range(40):
    backward(model, optimizer, batch(step, bad=step == 30 and rank == 0))
    optimizer.step()
    if step == 10 and rank == world - 1:
        if mode != "early":
            os.kill(os.getpid(), signal.SIGKILL if mode == "killed" else signal.SIGSTOP)
        else:
            break  # it has less data than the others
say(steps=step + 1, stop=monitor.should_stop, status=monitor.health()["guard"])
monitor.finish()
say(finished=True)
"""


@pytest.mark.parametrize("mode", ["killed", "frozen", "early"])
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.full)])
def test_a_rank_that_is_lost_costs_the_guard_and_not_the_training(
    mode: str, world: int, tmp_path: Path
) -> None:
    ranks = start(world, tmp_path, LOSING, mode)
    lost = ranks.pop() if mode != "early" else None
    try:
        said, errors = end(ranks)
    finally:
        if lost is not None:
            lost.kill()
            lost.communicate()
    for rank in range(world - 1):
        first, last = said[rank]
        assert (first["steps"], first["stop"], last["finished"]) == (40, False, True)
        assert first["status"].startswith("off: "), first
        assert "guard: off at step 1" in errors[rank] or rank > 0, errors[rank]


SHARDS = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def sharded():
    model = mlp()
    mesh = init_device_mesh("cpu", (world,))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), 0.01)

model, optimizer = sharded()
try:
    gradwarden.watch(model, optimizer, guard=Guard(on_nonfinite="skip_step"))
except gradwarden.ConfigurationError as error:
    say(refused=str(error))

def train(steps, poisoned, monitor=None):
    for step in steps:
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(6, 4)).pow(2).mean().backward()
        if step in poisoned and rank == world - 1:  # a flipped bit in one rank's shard
            model[0].weight.grad.to_local().view(-1)[:1].fill_(float("nan"))
        optimizer.step()
    return [p.to_local().detach().flatten().tolist() for p in model.parameters()]

expected = train([s for s in range(20) if s not in (3, 12)], ())
model, optimizer = sharded()
monitor = gradwarden.watch(model, optimizer, guard=Guard(on_nonfinite="skip_step", sync=True))
say(same=train(range(20), (3, 12)) == expected, stop=monitor.should_stop)
monitor.finish()

model, optimizer = sharded()
kept = Snapshot(model, optimizer, path=folder / "kept")
monitor = gradwarden.watch(model, optimizer, guard=Guard(
    on_nonfinite="rollback", save=kept.save, restore=kept.restore,
    checkpoint_every=4, healthy_after_steps=2))
back = train(range(20), (12,), monitor)  # acts after 14: back to what was saved after 7
monitor.finish()
model, optimizer = sharded()
say(same=train([*range(8), *range(15, 20)], ()) == back)
dist.barrier()
dist.destroy_process_group()
"""


def test_shards_skip_only_by_a_declared_wait_and_then_all_at_once(tmp_path: Path) -> None:
    said, errors = end(start(2, tmp_path, SHARDS))
    for rank in range(2):
        refused, skipped, back = said[rank]
        assert "Guard(sync=True)" in refused["refused"], errors[rank]
        assert (skipped["same"], skipped["stop"]) == (True, False), errors[rank]
        assert back["same"], errors[rank]


PARTED = """
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), 0.05)
monitor = gradwarden.watch(model, optimizer, guard=Guard(on_nonfinite="skip_step"))
for step in range(20):
    backward(model, optimizer, batch(step, bad=step == 5 and rank == 1))
    optimizer.step()
    if monitor.should_stop:
        break
say(stopped=step, status=monitor.health()["guard"])
dist.barrier()
dist.destroy_process_group()
"""


def test_ranks_that_skipped_different_steps_are_halted_for_their_weights_differ(
    tmp_path: Path,
) -> None:
    said, _ = end(start(2, tmp_path, PARTED))
    assert [s[0]["stopped"] for s in said] == [9, 9]
    assert all("ranks disagreed" in s[0]["status"] for s in said)


MISSING = """
from gradwarden.guard import agreement
agreement.PATIENCE = 3.0
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), 0.05)
guard = Guard(on_nonfinite="halt", retries=rank if "other" in words else 0)
try:
    if rank == 0 or "other" in words:
        gradwarden.watch(model, optimizer, guard=guard)
except gradwarden.ConfigurationError as error:
    say(refused=str(error))
dist.barrier()
model = DistributedDataParallel(model)  # the training's own groups are untouched
backward(model, optimizer, batch(0))
say(done=True)
dist.destroy_process_group()
"""


def test_a_guard_on_some_ranks_only_is_refused_instead_of_hanging(tmp_path: Path) -> None:
    said, _ = end(start(2, tmp_path, MISSING))
    assert "on every rank, or on none" in said[0][0]["refused"]
    assert said[0][1:] == [{"rank": 0, "done": True}]
    assert said[1] == [{"rank": 1, "done": True}]


def test_different_guards_are_refused_on_all_ranks(tmp_path: Path) -> None:
    said, _ = end(start(2, tmp_path, MISSING, "other"))
    assert ["different guards" in s[0]["refused"] for s in said] == [True, True]


PAUSED = """
model = DistributedDataParallel(mlp())
optimizer = torch.optim.SGD(model.parameters(), 0.05)
monitor = gradwarden.watch(model, optimizer, guard=Guard(on_nonfinite="halt", timeout=20.0))
for step in range(20):
    if step == 5 and rank == 1:
        monitor._session._orders.obey("pause", {})  # as the service does, to one rank
    backward(model, optimizer, batch(step, bad=step == 12 and rank == 0))
    optimizer.step()
    if monitor.should_stop:
        break
say(stopped=step)
dist.barrier()
dist.destroy_process_group()
"""


def test_a_rank_whose_capture_is_paused_keeps_its_word(tmp_path: Path) -> None:
    said, errors = end(start(2, tmp_path, PAUSED))
    assert [s[0]["stopped"] for s in said] == [14, 14], errors
