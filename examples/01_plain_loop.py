"""Run: python examples/01_plain_loop.py, beside a running `gradwarden serve` or without one.
See: the address of the run's page, what is watched at step 20, and every layer on the page.
"""

import os

import torch
from torch import nn

import gradwarden

STEPS = int(os.environ.get("STEPS", "300"))

torch.manual_seed(0)
inputs = torch.randn(4096, 32)
labels = (torch.randn(10, 32) @ inputs.T).argmax(0)  # ten classes that a hidden matrix decides

model = nn.Sequential(
    nn.Linear(32, 64),
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# The service is found by GRADWARDEN_URL, as in GRADWARDEN_URL=http://127.0.0.1:8321. Without it
# the numbers go to a spool on disk, and the last line says how to deliver them later.
monitor = gradwarden.watch(model, optimizer, name="plain loop", config={"lr": 1e-3})

for step in range(STEPS):
    batch = torch.randint(len(inputs), (64,))
    loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    # Gradients are read where clipping begins: before it hides what it was needed for.
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    monitor.log(loss=loss)  # optional; the tensor is welcome as it is
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

with torch.no_grad():
    right = (model(inputs).argmax(1) == labels).float().mean().item()
print(f"{right:.0%} right after {STEPS} steps")
monitor.finish()
