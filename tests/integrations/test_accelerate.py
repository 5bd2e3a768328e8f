"""Loops over Accelerate: watched before or after ``prepare``, clipped, accumulated, scaled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from tests.integrations.conftest import (
    bits,
    captures,
    ending,
    needs_library,
    norms,
    same,
    scalars,
    verdicts,
)
from tests.sdk.conftest import batch, mlp
from tests.sdk.fake import FakeService

pytestmark = pytest.mark.full

STEPS = 6


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Accelerate keeps its state in singletons."""
    state = needs_library("accelerate.state")
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()
    yield
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()


class Loop:
    """The loop of Accelerate's documentation; the gradients are noted before it clips."""

    def __init__(self, every: int = 1, clip: str = "norm", **arguments: Any) -> None:
        accelerate = needs_library("accelerate")
        self.accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=every, **arguments
        )
        self.every, self.clip = every, clip
        self.bare = mlp()
        self.model: nn.Module = self.bare
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.before: list[dict[str, float]] = []
        self.scale = 1.0

    def prepare(self) -> None:
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)

    def train(self, bad: int = -1, log: bool = False) -> None:
        for micro in range(STEPS * self.every):
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch(micro)).float().pow(2).mean() * 10
                self.accelerator.backward(loss * (math.inf if micro == bad else 1.0))
                if self.accelerator.sync_gradients:
                    self._note()
                    if self.clip == "norm":
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 0.05)
                    elif self.clip == "value":
                        self.accelerator.clip_grad_value_(self.model.parameters(), 1e-3)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if log and self.accelerator.sync_gradients:
                    self.accelerator.log({"loss": loss.item(), "note": "text"}, step=micro)

    def _note(self) -> None:
        scaler = self.accelerator.scaler
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        self.before.append(
            {n: float(p.grad.norm()) / scale for n, p in self.bare.named_parameters()}
        )


@pytest.mark.parametrize("when", ["before prepare", "after prepare", "without optimizer"])
@pytest.mark.parametrize("clip", ["norm", "value", "no"])
@pytest.mark.parametrize("every", [1, 3])
def test_norms_are_those_before_clipping_and_training_is_untouched(
    every: int, clip: str, when: str, service: FakeService, options: dict[str, Any]
) -> None:
    plain = Loop(every, clip)
    plain.prepare()
    plain.train()
    loop = Loop(every, clip)
    if when != "before prepare":
        loop.prepare()
    optimizer = None if when == "without optimizer" else loop.optimizer
    monitor = gradwarden.watch(loop.model, optimizer, **options)
    if when == "before prepare":
        loop.prepare()
    loop.train()
    monitor.finish()
    assert bits(loop.bare) == bits(plain.bare)
    assert norms(service) == same(dict(enumerate(loop.before)))
    assert captures(service) == {"unclipped" if clip == "no" else "pre_clip"}
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)


def test_bf16_is_watched_alike(service: FakeService, options: dict[str, Any]) -> None:
    plain = Loop(mixed_precision="bf16")
    plain.prepare()
    plain.train()
    _reset()
    loop = Loop(mixed_precision="bf16")
    monitor = gradwarden.watch(loop.model, loop.optimizer, **options)
    loop.prepare()
    loop.train()
    monitor.finish()
    assert bits(loop.bare) == bits(plain.bare)
    assert norms(service) == same(dict(enumerate(loop.before)))


def _reset() -> None:
    state = needs_library("accelerate.state")
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()


@pytest.mark.parametrize("clip", ["norm", "no"])
def test_a_step_that_the_scaler_skips_is_told(
    clip: str, service: FakeService, options: dict[str, Any]
) -> None:
    loop = Loop(1, clip, mixed_precision="fp16")
    # On a CPU Accelerate leaves the scaler out; this is what it has on a GPU.
    loop.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loop.accelerator.native_amp = True
    loop.prepare()
    monitor = gradwarden.watch(loop.model, loop.optimizer, **options)
    loop.train(bad=2)
    assert loop.accelerator.optimizer_step_was_skipped is False
    monitor.finish()
    assert verdicts(service) == {step: step != 2 for step in range(STEPS)}
    assert scalars(service, "loss_scale") == {s: 256.0 if s <= 2 else 128.0 for s in range(STEPS)}
    expected = {s: row for s, row in enumerate(loop.before) if s != 2}
    assert {s: row for s, row in norms(service).items() if s != 2} == same(expected, 1e-3)


def test_the_tracker_takes_logs_and_ends_the_run(
    service: FakeService, options: dict[str, Any]
) -> None:
    needs_library("accelerate")
    from gradwarden.integrations.accelerate import GradwardenTracker

    loop = Loop(2)
    monitor = gradwarden.watch(loop.model, loop.optimizer, **options)
    loop.accelerator.log_with = [GradwardenTracker(monitor)]
    loop.accelerator.init_trackers("project")
    loop.prepare()
    loop.train(log=True)
    assert loop.accelerator.get_tracker("gradwarden", unwrap=True) is monitor
    loop.accelerator.end_training()
    losses = scalars(service, "loss")
    assert sorted(losses) == list(range(STEPS))
    assert all(math.isfinite(v) for v in losses.values())
    assert ending(service)["status"] == "finished"
