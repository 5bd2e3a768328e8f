"""Run: torchrun --nproc_per_node=2 examples/03_ddp_torchrun.py; plain python starts two as well.
See: one run with two ranks, rank 0 speaking for both since their gradients are the same.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwarden

STEPS = int(os.environ.get("STEPS", "100"))

if "RANK" not in os.environ:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank = dist.get_rank()
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
torch.set_num_threads(1)

torch.manual_seed(0)  # the same data everywhere; each rank draws its own batches of it
inputs = torch.randn(4096, 32, device=device)
targets = torch.tanh(inputs @ torch.randn(32, 4, device=device) / 4)

plain = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
model = DistributedDataParallel(plain.to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# Every rank watches. The ranks agree on one run by themselves, without a collective.
monitor = gradwarden.watch(model, optimizer, name="two ranks")

draw = torch.Generator().manual_seed(rank)
for step in range(STEPS):
    batch = torch.randint(len(inputs), (64,), generator=draw).to(device)
    loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    monitor.log(loss=loss)
    if rank == 0 and step % 25 == 0:
        print(f"step {step}: loss {loss.item():.3f}", flush=True)

monitor.finish()
dist.destroy_process_group()
