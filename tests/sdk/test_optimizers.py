"""Optimizers that change, sit out, nest or share: each step is told once, with its true verdict."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from gradwarden.owners import IDLE
from tests.sdk.conftest import Watch, mlp
from tests.sdk.fake import FakeService
from tests.sdk.test_capture import captured, loss_of, rows, verdicts

STEPS = 8


def sick(service: FakeService) -> list[int]:
    """Steps of which a matrix tells of NaN or Inf."""
    frames = [f for f in service.all_frames() if any(r[2] > 0 or r[3] > 0 for r in rows(f))]
    return sorted({f.step for f in frames})


def spoilt(loss: torch.Tensor, bad: bool) -> torch.Tensor:
    return loss * math.nan if bad else loss


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_made_anew_goes_on_in_the_place_of_the_old(
    kept: bool, named: bool, clip: bool, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model[2].parameters(), 1e-3)
    monitor = watch(model, optimizer if named else None)
    held = []
    for step in range(STEPS):
        if step == 3:
            held += [optimizer] if kept else []
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        model.zero_grad()
        spoilt(loss_of(model, step), step == 6).backward()
        if clip:
            clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)
    assert sick(service) == [6, 7]
    assert len(rows(captured(service)[5])) == 6


def test_an_optimizer_that_took_over_may_give_back(service: FakeService, watch: Watch) -> None:
    model = mlp()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    newton = torch.optim.LBFGS(model.parameters(), max_iter=2)
    monitor = watch(model, adam)

    for step in range(STEPS):

        def closure(step: int = step) -> torch.Tensor:
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        (newton if 3 <= step < 6 else adam).step(closure)
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)


@pytest.mark.parametrize("gone", [False, True])
def test_who_sits_a_step_out_skips_nothing(gone: bool, service: FakeService, watch: Watch) -> None:
    model = mlp()
    first: Any = torch.optim.SGD(model[0].parameters(), 1e-3)
    rest = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 1e-3)
    monitor = watch(model, [first, rest] if gone else [rest, first])
    for step in range(STEPS):
        model.zero_grad()
        spoilt(loss_of(model, step), step == 6).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        if step >= 3 and gone:
            first = None
        if first is not None and (gone or step % 3 == 0):
            first.step()
        rest.step()
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)
    assert sick(service) == [6, 7]


class Sharp(torch.optim.Optimizer):
    """As sharpness-aware optimizers are written: one that steps another inside its own."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.zero_grad()
        with torch.enable_grad():
            closure()
        self.base.step()


@pytest.mark.parametrize("named", [False, True])
def test_a_step_inside_a_step_is_one(named: bool, service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = Sharp(model.parameters(), 1e-3)
    monitor = watch(model, optimizer if named else None)
    for step in range(STEPS):
        loss_of(model, step).backward()
        optimizer.step(lambda step=step: spoilt(loss_of(model, step), step == 6).backward())
        optimizer.zero_grad()
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)
    assert sick(service) == [6, 7]


def test_tasks_that_share_a_trunk_are_one_frame_a_step(service: FakeService, watch: Watch) -> None:
    model = mlp()
    parameters = list(model.parameters())
    tasks = [parameters[:4], parameters[2:]]
    optimizers = [torch.optim.SGD(t, 1e-3) for t in tasks]
    monitor = watch(model, optimizers)
    for step in range(STEPS):
        for task, optimizer in zip(tasks, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            clip_grad_norm_(task, 1.0)
            optimizer.step()
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)


@pytest.mark.parametrize("leader", ["d", "g"])
@pytest.mark.parametrize("goes_first", ["d", "g"])
@pytest.mark.parametrize("clip", [False, True])
def test_whoever_leads_a_bad_step_keeps_its_number(
    clip: bool, goes_first: str, leader: str, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    parts = {"d": list(model[0].parameters()), "g": list(model[4].parameters())}
    optimizers = {n: torch.optim.SGD(p, 1e-3) for n, p in parts.items()}
    other = {"d": "g", "g": "d"}
    monitor = watch(model, [optimizers[leader], optimizers[other[leader]]])
    clean = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(STEPS):
        for name in (goes_first, other[goes_first]):
            optimizers[name].zero_grad()
            spoilt(loss_of(model, step), step == 5 and name == "d").backward()
            if clip:
                clip_grad_norm_(parts[name], 1.0)
            optimizers[name].step()
            model.load_state_dict(clean)
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)
    assert sick(service) == [5]


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_on_gradients_zeroed_for_being_bad_is_no_step_of_its_own(
    to_none: bool, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        spoilt(loss_of(model, step), step in (3, 4)).backward()
        if not clip_grad_norm_(model.parameters(), 1.0).isfinite():
            optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
    monitor.finish()
    assert verdicts(service) == {s: s not in (3, 4) for s in range(STEPS)}
    assert sick(service) == [3, 4]


def test_two_optimizers_and_one_clip_skip_together(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), 1e-3),
        torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 1e-3),
    ]
    monitor = watch(model, optimizers)
    for step in range(STEPS):
        for parameter in model.parameters():
            parameter.grad = None
        spoilt(loss_of(model, step), step in (5, 6)).backward()
        if clip_grad_norm_(model.parameters(), 1.0).isfinite():
            for optimizer in optimizers:
                optimizer.step()
    monitor.finish()
    assert verdicts(service) == {s: s not in (5, 6) for s in range(STEPS)}


@pytest.mark.parametrize("named", [False, True])
def test_what_thaws_is_seen_though_its_optimizer_stepped_while_frozen(
    named: bool, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    model[:4].requires_grad_(False)
    body = torch.optim.SGD(model[:4].parameters(), 1e-3)
    head = torch.optim.SGD(model[4].parameters(), 1e-3)
    monitor = watch(model, [body, head] if named else None)
    for step in range(STEPS):
        model[:4].requires_grad_(step >= 3)
        model.zero_grad()
        loss_of(model, step).backward()
        body.step()
        head.step()
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)
    assert len(service.layouts[service.batches[-1].layout].parameters) == 6
    assert all(r[2] == 0 for r in rows(captured(service)[STEPS - 1]))


@pytest.mark.parametrize("named", [False, True])
def test_a_new_head_is_seen_while_a_scheduler_holds_the_old_optimizer(
    named: bool, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    old = optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer if named else None)
    for step in range(STEPS):
        if step == 3:
            model[4] = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    assert old.param_groups
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)
    last = rows(captured(service)[STEPS - 1])
    assert len(last) == 8
    assert all(r[2] == 0 for r in last)


def test_parameters_that_a_loaded_checkpoint_replaced_are_seen(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    held = []
    for step in range(STEPS):
        if step == 3:
            held.append(optimizer)
            state = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(state, assign=True)
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    monitor.finish()
    assert verdicts(service) == dict.fromkeys(range(STEPS), True)


def test_steps_are_counted_by_another_when_the_first_optimizer_is_done(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    first = torch.optim.SGD(model[:2].parameters(), 1e-3)
    second = torch.optim.SGD(model[2:].parameters(), 1e-3)
    monitor = watch(model, [first, second])
    for step in range(STEPS + IDLE + STEPS):
        model.zero_grad()
        loss_of(model, step).backward()
        (first if step < STEPS else second).step()
    monitor.finish()
    assert max(captured(service)) == 2 * STEPS
