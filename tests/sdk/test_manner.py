"""What the loop says of itself by how it trains: the type under autocast, and taking turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService


def told(service: FakeService) -> list[dict[str, Any]]:
    events = (event for frame in service.all_frames() for event in frame.events)
    return [dict(event) for event in events if event.get("kind") == "manner"]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-3)


def test_a_plain_loop_is_not_told_of(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = sgd(model)
    monitor = watch(model, optimizer)
    for step in range(60):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    monitor.finish()
    assert told(service) == []


def test_the_type_under_autocast_is_told_once(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = sgd(model)
    monitor = watch(model, optimizer)
    for step in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(batch(step)).float().square().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model(batch(step))  # an evaluation says nothing of training
    monitor.finish()
    assert told(service) == [{"kind": "manner", "autocast": "float16", "alternating": False}]


def test_two_networks_that_take_turns_are_told_though_one_is_watched(
    service: FakeService, watch: Watch
) -> None:
    ours, other = mlp(), nn.Linear(2, 1)
    optimizer, second = sgd(ours), sgd(other)
    monitor = watch(ours, optimizer)
    for step in range(60):
        second.zero_grad()
        other(ours(batch(step)).detach()).square().mean().backward()
        second.step()
        optimizer.zero_grad()
        other(ours(batch(step))).mean().backward()
        optimizer.step()
    monitor.finish()
    assert told(service) == [{"kind": "manner", "autocast": "", "alternating": True}]


def test_two_optimizers_of_one_backward_take_no_turns(service: FakeService, watch: Watch) -> None:
    model = mlp()
    parameters = list(model.parameters())
    first = torch.optim.SGD(parameters[:2], 1e-3)
    second = torch.optim.SGD(parameters[2:], 1e-3)
    monitor = watch(model, [first, second])
    for step in range(60):
        for part in range(2):  # accumulated
            model(batch(2 * step + part)).square().mean().backward()
        first.step()
        second.step()
        model.zero_grad()
    monitor.finish()
    assert told(service) == []
