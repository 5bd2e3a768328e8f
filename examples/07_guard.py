"""Run: python examples/07_guard.py.
See: a batch with a NaN at step 120, and the guard going back to where all was well.
"""

import os
import tempfile

import torch
from torch import nn

import gradwarden
from gradwarden.guard import Snapshot

STEPS = int(os.environ.get("STEPS", "200"))
BAD = STEPS * 3 // 5

torch.manual_seed(0)
inputs = torch.randn(4096, 32)
targets = torch.tanh(inputs @ torch.randn(32, 4) / 4)

model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
folder = tempfile.TemporaryDirectory()
snapshot = Snapshot(model, optimizer, path=folder.name)  # random state is saved with them

# "skip_step" would hold the bad gradient back instead, and "halt" set monitor.should_stop.
guard = gradwarden.Guard(
    on_nonfinite="rollback",
    save=snapshot.save,
    restore=snapshot.restore,
    checkpoint_every=20,
    healthy_after_steps=20,
)
monitor = gradwarden.watch(model, optimizer, name="guarded", guard=guard)

for turn in range(STEPS):
    batch = torch.randint(len(inputs), (64,))
    x = inputs[batch].clone()
    if turn == BAD:
        x[0, 0] = float("nan")  # as a broken file would bring it
    loss = nn.functional.mse_loss(model(x), targets[batch])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    monitor.log(loss=loss)
    if turn % 20 == 0 or turn == BAD:
        print(f"turn {turn}: loss {loss.item():.3f}")
    if monitor.should_stop:  # the guard gave up, or the service asked it to halt
        break

healthy = all(bool(p.isfinite().all()) for p in model.parameters())
print("the weights are", "finite" if healthy else "poisoned")
monitor.finish()
folder.cleanup()
