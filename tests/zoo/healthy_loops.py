"""Healthy: loops and schedules that look odd from afar and are how people train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import CLIPPED, Case
from tests.zoo.ground import Ground
from tests.zoo.healthy_models import Transformer, next_letter


def accumulation(ground: Ground) -> None:
    """Four backwards for one step."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    monitor = ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 16, 1600):
        loss = functional.cross_entropy(model(x), y) / 4
        loss.backward()
        if step % 4 == 3:
            ground.apply(model, optimizer)
            optimizer.zero_grad()
            monitor.log(loss=4 * loss)


def gan(ground: Ground) -> None:
    """Two losses that are not minimised together."""
    real, _ = data.digits()
    generate = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
    judge = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    model = nn.ModuleDict({"generator": generate, "discriminator": judge})
    forger = torch.optim.Adam(generate.parameters(), 2e-4, betas=(0.5, 0.999))
    critic = torch.optim.Adam(judge.parameters(), 2e-4, betas=(0.5, 0.999))
    monitor = ground.watch(model, [forger, critic])
    for _, (x, _) in ground.batches(real, real, 32, 800):
        noise = torch.randn(32, 16, generator=ground.generator)
        fake = generate(noise)
        critic.zero_grad()
        said = torch.cat([judge(x), judge(fake.detach())])[:, 0]
        truth = torch.cat([torch.ones(32), torch.zeros(32)])
        judged = functional.binary_cross_entropy_with_logits(said, truth)
        judged.backward()
        critic.step()
        forger.zero_grad()
        forged = functional.binary_cross_entropy_with_logits(judge(fake)[:, 0], torch.ones(32))
        forged.backward()
        forger.step()
        monitor.log(loss_d=judged, loss_g=forged)


def policy_gradient(ground: Ground) -> None:
    """Rewards with heavy tails, a surrogate loss around zero, always clipped."""
    x, y = data.digits()
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    monitor = ground.watch(model, optimizer)
    tail = torch.distributions.StudentT(2.0)
    for _, (some, target) in ground.batches(x, y, 32, 800):
        with torch.no_grad():
            acted = Categorical(logits=model(some)).sample()
            before = Categorical(logits=model(some)).log_prob(acted)
            gained = (acted == target).float() * (1 + tail.sample((32,)).abs())
        ratio = (Categorical(logits=model(some)).log_prob(acted) - before).exp()
        worth = gained - gained.mean()
        loss = -torch.min(ratio * worth, ratio.clamp(0.8, 1.2) * worth).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        monitor.log(loss=loss, reward=gained.mean())


def spikes_that_heal(ground: Ground) -> None:
    """Now and then one odd batch, 10 to 100 times as steep; the loop clips and goes on."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    monitor = ground.watch(model, optimizer)
    odd = {210: 10.0, 333: 30.0, 334: 20.0, 520: 100.0, 700: 50.0}
    for step, (x, y) in ground.batches(*data.digits(), 64, 900):
        loss = functional.cross_entropy(model(x * odd.get(step, 1.0) ** 0.5), y)
        loss = loss * odd.get(step, 1.0) ** 0.5
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        monitor.log(loss=loss)


def longer_sequences(ground: Ground) -> None:
    """Undeclared: the sequence length doubles twice."""
    numbers, letters = data.text()
    model = Transformer(letters, width=32, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    ground.watch(model, optimizer)
    for step in range(600):
        length = 8 if step < 200 else 16 if step < 400 else 32
        batch = data.lines(numbers, length, 8, ground.generator)
        ground.step(model, optimizer, next_letter(model, batch), tokens=8 * length)


def larger_batches(ground: Ground) -> None:
    """Undeclared, and no tokens logged."""
    x, y = data.digits()
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    ground.watch(model, optimizer)
    for step in range(900):
        size = 16 if step < 300 else 64 if step < 600 else 8
        at = torch.randint(len(x), (size,), generator=ground.generator)
        ground.step(model, optimizer, functional.cross_entropy(model(x[at]), y[at]))


def another_mix(ground: Ground) -> None:
    """Undeclared: half of the samples come from a worse scanner from some step on."""
    x, y = data.digits()
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step in range(1000):
        at = torch.randint(len(x), (64,), generator=ground.generator)
        some = x[at]
        if step >= 500:
            some[:32] = some[:32] * 0.8 + 0.1 * torch.randn(32, 64, generator=ground.generator)
        ground.step(model, optimizer, functional.cross_entropy(model(some), y[at]))


def gradual_unfreezing(ground: Ground) -> None:
    model = deep(64, 3, nn.ReLU)
    layers = [part for part in model if isinstance(part, nn.Linear)]
    for part in layers[:-1]:
        part.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 64, 900):
        if step and step % 200 == 0 and step <= 600:
            layers[-1 - step // 200].requires_grad_(True)
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def warm_restarts(ground: Ground) -> None:
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 200, eta_min=1e-4)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 1000):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))
        schedule.step()


def skipped_by_hand(ground: Ground) -> None:
    """One bad batch, which the loop noticed itself and left out."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    monitor = ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 64, 500):
        if step == 260:
            x[0, 0] = float("nan")
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if not torch.isfinite(norm):
            continue
        optimizer.step()
        monitor.log(loss=loss)


def throttled(ground: Ground) -> None:
    """Every eighth step is captured."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer, every=8)
    for _, (x, y) in ground.batches(*data.digits(), 64, 1200):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder turned round; the loss is a likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 16)
        self.spread = nn.Parameter(torch.zeros(64))
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.tanh(self.encoder(x)) @ self.encoder.weight + self.bias
        narrow = self.spread.clamp(min=-2.5)
        return ((made - x).pow(2) * (-2 * narrow).exp() / 2 + narrow).mean()


def negative_loss(ground: Ground) -> None:
    """A negative log-likelihood of a density: it passes zero and goes on."""
    x, y = data.digits()
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    ground.watch(model, optimizer)
    for _, (some, _) in ground.batches(x, y, 64, 800):
        ground.step(model, optimizer, model(some))


CASES = (
    Case("healthy_accumulation", accumulation, variants=CLIPPED, quick=True),
    Case("healthy_gan", gan),
    Case("healthy_policy_gradient", policy_gradient),
    Case("healthy_spikes_that_heal", spikes_that_heal),
    Case("healthy_longer_sequences", longer_sequences),
    Case("healthy_larger_batches", larger_batches),
    Case("healthy_another_mix", another_mix),
    Case("healthy_gradual_unfreezing", gradual_unfreezing),
    Case("healthy_warm_restarts", warm_restarts, variants=CLIPPED),
    Case("healthy_skipped_by_hand", skipped_by_hand, quick=True),
    Case("healthy_throttled", throttled),
    Case("healthy_negative_loss", negative_loss),
)
