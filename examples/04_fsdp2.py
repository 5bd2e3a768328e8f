"""Run: torchrun --nproc_per_node=2 examples/04_fsdp2.py; plain python starts two as well.
See: whole parameters with their true norms, though each rank only ever held half of each.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradwarden

STEPS = int(os.environ.get("STEPS", "100"))

if "RANK" not in os.environ:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])

kind = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if kind == "cuda" else "gloo")
if kind == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
torch.set_num_threads(1)

torch.manual_seed(0)
inputs = torch.randn(4096, 32, device=kind)
targets = torch.tanh(inputs @ torch.randn(32, 4, device=kind) / 4)

blocks = [nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(4)]
model = nn.Sequential(nn.Linear(32, 64), *blocks, nn.Linear(64, 4)).to(kind)
mesh = init_device_mesh(kind, (dist.get_world_size(),))
for block in blocks:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # after sharding, as always

# Each rank sends the numbers of its shards; the service joins them. No rank waits for another.
monitor = gradwarden.watch(model, optimizer, name="fully sharded")

draw = torch.Generator().manual_seed(dist.get_rank())
for step in range(STEPS):
    batch = torch.randint(len(inputs), (64,), generator=draw).to(kind)
    loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    monitor.log(loss=loss)
    if dist.get_rank() == 0 and step % 25 == 0:
        print(f"step {step}: loss {loss.item():.3f}", flush=True)

monitor.finish()
dist.destroy_process_group()
