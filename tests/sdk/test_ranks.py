"""Four gloo ranks under torchrun are one run, one attempt, and one speaker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.sdk.fake import FakeService

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import gradwarden

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
if "lopsided" in sys.argv and rank == 3:
    model = torch.nn.Linear(4, 2)
before = "before" in sys.argv
optimizer = torch.optim.SGD(model.parameters(), 0.1)
if before:
    monitor = gradwarden.watch(model, optimizer)
wrapped = model if "lopsided" in sys.argv else DistributedDataParallel(model)
if not before:
    monitor = gradwarden.watch(wrapped, optimizer)
for step in range(30):
    optimizer.zero_grad()
    x = torch.randn(3, 4) + rank
    if step == 20 and rank == 2 and "sick" in sys.argv:
        x = x * float("nan")
    loss = wrapped(x).pow(2).mean()
    loss.backward()
    optimizer.step()
    monitor.log(loss=loss)
dist.barrier()
monitor.finish()
dist.destroy_process_group()
"""


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import gradwarden

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
monitor = gradwarden.watch(model)
fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(10):
    optimizer.zero_grad()
    model(torch.ones(3, 4) * (dist.get_rank() + 1)).pow(2).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
dist.barrier()
monitor.finish()
dist.destroy_process_group()
"""


def launch(service: FakeService, tmp_path: Path, *words: str, script: str = SCRIPT) -> None:
    file = tmp_path / "train.py"
    file.write_text(script)
    env = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    env |= {"PYTHONPATH": str(ROOT / "client_sdk"), "OMP_NUM_THREADS": "1"}
    env |= {"GRADWARDEN_URL": service.url, "GRADWARDEN_SPOOL": str(tmp_path / "spool")}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=4"]
    command += [f"--master-port={free_port()}", str(file), *words]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("when", ["before", "after"])
def test_four_ranks_are_one_run_with_one_speaker(
    when: str, service: FakeService, tmp_path: Path
) -> None:
    launch(service, tmp_path, when)
    assert len({(s["run"], s["attempt"]) for s in service.starts}) == 1
    assert sorted(s["rank"] for s in service.starts) == [0, 1, 2, 3]
    assert {(s["group"], s["world_size"]) for s in service.starts} == {(0, 4)}
    assert {(s["shard"], s["shards"]) for s in service.starts} == {(0, 1)}
    assert len(service.layouts) == 1
    for (_, _, rank), held in service.frames.items():
        steps = [f.step for _, f in sorted(held.items()) if f.capture]
        assert sorted(set(steps)) == list(range(30))
        assert any(f.values for f in held.values()) == (rank == 0)
        assert sum("loss" in f.scalars for f in held.values()) == 30
        assert not [e for f in held.values() for e in f.events if e["kind"] == "dropped"]


def test_other_ranks_show_their_matrix_for_three_bad_steps(
    service: FakeService, tmp_path: Path
) -> None:
    launch(service, tmp_path, "sick")
    for (_, _, rank), held in service.frames.items():
        shown = [f.step for _, f in sorted(held.items()) if f.values]
        assert shown == (list(range(30)) if rank == 0 else [20, 21, 22])


def test_a_rank_with_another_model_speaks_for_itself(service: FakeService, tmp_path: Path) -> None:
    launch(service, tmp_path, "lopsided")
    assert {s["rank"]: s["group"] for s in service.starts} == {0: 0, 1: 0, 2: 0, 3: 3}
    speakers = {k[2] for k, held in service.frames.items() if any(f.values for f in held.values())}
    assert speakers == {0, 3}
    assert len(service.layouts) == 2


def test_sharded_ranks_each_speak_for_their_shard(service: FakeService, tmp_path: Path) -> None:
    launch(service, tmp_path, script=SHARDED)
    said = {s["rank"]: (s["group"], s["shard"], s["shards"]) for s in service.starts}
    assert said == {rank: (0, rank, 4) for rank in range(4)}
    assert len({(s["run"], s["attempt"]) for s in service.starts}) == 1
    for layout in service.layouts.values():
        assert [p.name for p in layout.parameters] == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert [p.shape for p in layout.parameters] == [(7, 4), (7,), (2, 7), (2,)]
        assert all(p.sharded for p in layout.parameters)
    orders = {layout.backward for layout in service.layouts.values()}
    assert sorted(max(orders)) == [0, 1, 2, 3]
    assert min(orders) == () or len(orders) == 1
    for held in service.frames.values():
        assert [f.step for _, f in sorted(held.items()) if f.values] == list(range(10))
        assert {f.capture for f in held.values() if f.values} == {"pre_clip"}
