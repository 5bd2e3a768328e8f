"""Gradients that are consumed twice are told of; every honest way to keep or clear them is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from gradwarden import kept
from gradwarden.collect import Pending
from gradwarden.kept import IN_A_ROW, Kept
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService

STEPS = 12
Loop = Callable[[nn.Module, torch.optim.Optimizer, int], None]


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    loss: torch.Tensor = model(batch(step)).pow(2).mean()
    return loss


def forgetful(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    loss_of(model, step).backward()
    optimizer.step()


def forgetful_and_clipped(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    loss_of(model, step).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()


def forgetful_over_micro_batches(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    for micro in range(3):
        loss_of(model, 3 * step + micro).backward()
    optimizer.step()


def run(watch: Watch, service: FakeService, loop: Loop, steps: int = STEPS) -> list[dict[str, Any]]:
    """The events of one training, in order."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    for step in range(steps):
        loop(model, optimizer, step)
    monitor.finish()
    return service.events("gradients_kept")


@pytest.mark.parametrize("loop", [forgetful, forgetful_and_clipped, forgetful_over_micro_batches])
def test_a_forgotten_zero_grad_is_told_once(loop: Loop, watch: Watch, service: FakeService) -> None:
    (event,) = run(watch, service, loop)
    assert event == {
        "kind": "gradients_kept",
        "optimizer": "SGD",
        "number": 0,
        "steps": IN_A_ROW,
    }
    (at,) = [
        f.step for f in service.all_frames() if any(e["kind"] == event["kind"] for e in f.events)
    ]
    assert at == IN_A_ROW, "the first step has nothing before it"


def test_it_is_over_when_they_are_cleared_again(watch: Watch, service: FakeService) -> None:
    def mended(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step > 8:
            optimizer.zero_grad()
        forgetful(model, optimizer, step)

    assert [e["steps"] for e in run(watch, service, mended)] == [IN_A_ROW, 0]


def before_the_forward(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    forgetful(model, optimizer, step)


def after_the_forward(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    loss = loss_of(model, step)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def of_the_module(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    model.zero_grad()
    forgetful(model, optimizer, step)


def to_none_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    forgetful(model, optimizer, step)
    for parameter in model.parameters():
        parameter.grad = None


def to_zero_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    forgetful(model, optimizer, step)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()


def behind_the_back_of_autograd(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    forgetful(model, optimizer, step)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.data.zero_()


def decayed_on_purpose(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    forgetful(model, optimizer, step)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(0.9)


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    for micro in range(4):
        loss_of(model, 4 * step + micro).backward()
    optimizer.step()
    optimizer.zero_grad()


def penalised(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A gradient penalty is a backward pass before zero_grad, which adds to no gradient."""
    x = batch(step).requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    loss = loss_of(model, step) + slope.pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def sharpness_aware(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    loss_of(model, step).backward()
    model.zero_grad()
    loss_of(model, step + 1).backward()
    optimizer.step()
    model.zero_grad()


@pytest.mark.parametrize(
    "loop",
    [
        before_the_forward,
        after_the_forward,
        of_the_module,
        to_none_by_hand,
        to_zero_by_hand,
        behind_the_back_of_autograd,
        decayed_on_purpose,
        accumulated,
        penalised,
        sharpness_aware,
    ],
)
def test_honest_loops_are_not_told_of(loop: Loop, watch: Watch, service: FakeService) -> None:
    assert run(watch, service, loop) == []


class Adversaries(nn.Module):
    """A generator and its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(), nn.Linear(2, 1)


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_a_generator_leaves_in_its_critic_is_no_forgotten_zero_grad(
    by_hand: bool, watch: Watch, service: FakeService
) -> None:
    model = Adversaries()
    critic = torch.optim.SGD(model.critic.parameters(), 0.01)
    generator = torch.optim.SGD(model.generator.parameters(), 0.01)
    monitor = watch(model, [critic, generator])

    def clear(optimizer: torch.optim.Optimizer, part: nn.Module) -> None:
        if not by_hand:
            optimizer.zero_grad()
            return
        for parameter in part.parameters():
            if parameter.grad is not None:
                parameter.grad.data.zero_()

    for step in range(STEPS):
        fake = model.generator(batch(step))
        clear(critic, model.critic)
        model.critic(fake.detach()).mean().backward()
        critic.step()
        clear(generator, model.generator)
        (-model.critic(fake).mean()).backward()
        generator.step()
    monitor.finish()
    assert service.events("gradients_kept") == []


def test_the_optimizer_that_forgets_is_named_beside_one_that_does_not(
    watch: Watch, service: FakeService
) -> None:
    model = mlp()
    first = torch.optim.SGD(model[0].parameters(), 0.01)
    rest = torch.optim.Adam([*model[2].parameters(), *model[4].parameters()], 0.01)
    monitor = watch(model, [first, rest])
    for step in range(STEPS):
        first.zero_grad()
        loss_of(model, step).backward()
        first.step()
        if step % 2:
            rest.step()
    monitor.finish()
    (event,) = service.events("gradients_kept")
    assert (event["optimizer"], event["number"]) == ("Adam", 1)


def test_a_closure_clears_inside_the_step(watch: Watch, service: FakeService) -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=2)
    monitor = watch(model, optimizer)
    for step in range(STEPS):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    monitor.finish()
    assert service.events("gradients_kept") == []


class Device:
    """Answers that stay on a device until it is asked to catch up."""

    def __init__(self) -> None:
        self.done = False

    def fetch(self, tensor: torch.Tensor) -> Pending:
        device = self

        class Late(Pending):
            @property
            def ready(self) -> bool:
                return device.done

            @property
            def at_hand(self) -> bool:
                return False

            def peek(self) -> torch.Tensor:
                assert device.done, "it would wait"
                return super().peek()

            def take(self) -> torch.Tensor:
                assert device.done, "it would wait"
                return super().take()

        return Late(tensor)


def test_a_device_is_never_waited_for() -> None:
    parameter, device, held = nn.Parameter(torch.ones(3)), Device(), Kept()
    parameter.grad = torch.ones(3)
    token = {0: (parameter, lambda: parameter.grad, parameter.grad._version)}
    said = []
    for step in range(8):
        device.done = step == 6
        if step:
            held.backward_begins(device.fetch)
        said.append(held.taken())
        held.consumed(token)
    assert said == [None] * 6 + [6, None]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    looks: list[int] = []
    original = kept._something

    def something(gradients: list[torch.Tensor]) -> torch.Tensor | None:
        looks.append(len(gradients))
        return original(gradients)

    monkeypatch.setattr(kept, "_something", something)
    yield looks


@pytest.mark.parametrize("loop", [before_the_forward, after_the_forward, to_zero_by_hand])
def test_usual_loops_have_no_value_looked_at(
    loop: Loop, watch: Watch, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch) as looks:
        run(watch, service, loop)
    assert looks == []
