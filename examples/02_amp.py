"""Run: python examples/02_amp.py, on a GPU where there is one, else in half precision on the CPU.
See: skipped steps while the loss scale settles, told as skipped; gradients without the scale.
"""

import os

import torch
from torch import nn

import gradwarden

STEPS = int(os.environ.get("STEPS", "200"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

torch.manual_seed(0)
inputs = torch.randn(4096, 32, device=DEVICE)
targets = torch.tanh(inputs @ torch.randn(32, 4, device=DEVICE) / 4)

model = nn.Sequential(
    nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)
).to(DEVICE)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
# A scale that is too large at first, as it often is: the scaler skips steps and halves it.
scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**24)

monitor = gradwarden.watch(model, optimizer, name="mixed precision")

for step in range(STEPS):
    batch = torch.randint(len(inputs), (64,), device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.float16):
        loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # without it the values are divided by the scale all the same
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)  # an overflow is caught here, and its layers are on the run's page
    scaler.update()
    monitor.log(loss=loss)
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.3f}, scale {scaler.get_scale():.0f}")

monitor.finish()
