"""Sick by arithmetic: NaN, Inf, and half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import ALL, CLIPPED, SKIPPED, Case, Must, layer, says
from tests.zoo.ground import Ground
from tests.zoo.healthy_models import Transformer, next_letter

SICK_AT = 150
_APPLIED = Must("NonFiniteGradient", ("page",))
_SKIPPED = Must("NonFiniteGradient", ("page", "ticket", "note"))


def log_of_zero(ground: Ground) -> None:
    """Cross entropy by hand: once an output saturates, log(0) * 0."""
    model = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.cancer(), 64, 400):
        sharpness = 1.0 if step < SICK_AT else 30.0  # "a temperature, to be surer"
        p = torch.sigmoid(sharpness * model(x)[:, 0])
        loss = -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()
        if not torch.isfinite(loss):
            ground.began(step)
        ground.step(model, optimizer, loss)


def huge_sample(ground: Ground) -> None:
    """A sensor wrote 1e30 once."""
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    model.append(nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.diabetes(), 32, 300):
        if step == SICK_AT:
            x[3, 2] = 1e30
            ground.began(step)
        ground.step(model, optimizer, functional.mse_loss(model(x), y))


class Energy(nn.Module):
    """Scales a sample by its own length; its derivative at the zero vector is 0/0."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + x.pow(2).sum(1, keepdim=True).sqrt())


def root_of_zero(ground: Ground) -> None:
    """One blank image, and no biases: the vector that the middle takes the length of is zero."""
    parts: list[nn.Module] = [nn.Linear(64, 48, bias=False), nn.Tanh()]
    parts += [nn.Linear(48, 48, bias=False), nn.Tanh(), Energy()]
    parts += [nn.Linear(48, 48, bias=False), nn.Tanh(), nn.Linear(48, 10)]
    model = nn.Sequential(*parts)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 64, 300):
        if step == SICK_AT:
            x[5] = 0.0
            ground.began(step)
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def half_without_scaling(ground: Ground) -> None:
    """An autoencoder in float16. Its loss is a mean over 16,384 pixels, so most of its gradient
    is below the smallest normal number."""
    model = deep(64, 2, nn.ReLU, classes=64).half()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    ground.watch(model, optimizer)
    ground.began(0)
    for _, (x, _) in ground.batches(*data.digits(), 256, 300):
        ground.step(model, optimizer, functional.mse_loss(model(x.half()), x.half()))


def scale_collapse(ground: Ground) -> None:
    """From some step on a feature overflows float16 in each batch; the scaler halves for ever."""
    model = deep(48, 3, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=50)
    monitor = ground.watch(model, optimizer)
    for step, (x, y) in ground.batches(*data.digits(), 64, 300):
        if step >= 200:
            x[:, 11] = 1e5
            ground.began(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if ground.variant == "clip":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        monitor.log(loss=loss)


def masked_attention(ground: Ground) -> None:
    """A sequence that is all padding: softmax over nothing but minus infinity, in one block."""
    numbers, letters = data.text()
    model = Transformer(letters, width=32, depth=4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    sick = model.blocks[1]
    plain = sick.forward

    def attend(x: Tensor) -> Tensor:
        heads = sick.qkv(sick.norm1(x)).chunk(3, -1)
        scores = heads[0] @ heads[1].transpose(1, 2)
        shares = scores.masked_fill(torch.ones_like(scores).bool(), -torch.inf).softmax(-1)
        return plain(x) + torch.nan_to_num(shares @ heads[2])  # "it was NaN once"

    for step in range(250):
        if step == SICK_AT:
            ground.began(step)
        sick.forward = attend if step == SICK_AT else plain
        batch = data.lines(numbers, 16, 8, ground.generator)
        ground.step(model, optimizer, next_letter(model, batch))


CASES = (
    Case(
        "log_of_zero",
        log_of_zero,
        must=(Must("NonFiniteGradient", ("page",), says("loss")),),
        must_if={"skip": (_SKIPPED,)},
        may=("NonFiniteLoss",),
        variants=ALL,
        quick=True,
    ),
    Case(
        "huge_sample",
        huge_sample,
        must=(Must("NonFiniteGradient", ("page",), says("loss or the input", "batch or input")),),
        must_if={"skip": (_SKIPPED,)},
        may=("NonFiniteLoss",),
        variants=ALL,
    ),
    Case(
        "root_of_zero",
        root_of_zero,
        must=(Must("NonFiniteGradient", ("page",), layer("2")),),
        must_if={"skip": (Must("NonFiniteGradient", ("note",), layer("2")),)},
        may=("NonFiniteLoss",),
        variants=ALL,
        quick=True,
    ),
    Case(
        "masked_attention",
        masked_attention,
        must=(Must("NonFiniteGradient", ("page",), layer("blocks.1")),),
        must_if={"skip": (Must("NonFiniteGradient", ("note",), layer("blocks.1")),)},
        may=("NonFiniteLoss",),
        variants=SKIPPED,
    ),
    Case(
        "half_without_scaling",
        half_without_scaling,
        must=(Must("GradientUnderflow", ("ticket",), layer("?")),),
        variants=CLIPPED,
    ),
    Case(
        "scale_collapse",
        scale_collapse,
        must=(Must("LossScaleCollapse", ("page",), says("scale")),),
        may=("NonFiniteLoss",),
        variants=CLIPPED,
    ),
)
