"""Parameters that no gradient reached: told once, by their own optimizer's steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from gradwarden.unseen import MOMENTS, Unseen
from tests.sdk.conftest import Watch, batch
from tests.sdk.fake import FakeService

FIRST, LATER = MOMENTS


class Branched(nn.Module):
    """A trunk, and a branch that the forward leaves out unless it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch = nn.Linear(6, 2), nn.Linear(6, 2)
        self.whole = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.trunk(x)
        return found + self.branch(x) if self.whole else found


def train(model: nn.Module, optimizers: list[Optimizer], steps: int, every: int = 1) -> None:
    """Steps of the first optimizer, and of the others every so often."""
    for step in range(steps):
        model.zero_grad()
        model(batch(step)).pow(2).mean().backward()
        for number, optimizer in enumerate(optimizers):
            if number == 0 or step % every == every - 1:
                optimizer.step()


def told(service: FakeService) -> list[tuple[str, int, list[str]]]:
    events = service.events("no_gradient")
    return [(e["optimizer"], e["steps"], e["parameters"]) for e in events]


BRANCH = ["branch.weight", "branch.bias"]


def test_a_detached_branch_is_told_after_fifty_steps(watch: Watch, service: FakeService) -> None:
    model = Branched()
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, [optimizer], FIRST + 25)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, BRANCH)]
    (event,) = service.events("no_gradient")
    assert (event["count"], event["declared"], event["number"]) == (2, False, 0)


def test_that_every_parameter_had_one_is_told_too(watch: Watch, service: FakeService) -> None:
    model = Branched()
    model.whole = True
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, [optimizer], FIRST + 25)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, [])]


def test_a_branch_that_wakes_up_later_takes_it_back(watch: Watch, service: FakeService) -> None:
    model = Branched()
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, [optimizer], FIRST + 1)
    model.whole = True
    train(model, [optimizer], 15)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, BRANCH), ("SGD", FIRST + 10, [])]


def test_each_optimizer_counts_its_own_steps(watch: Watch, service: FakeService) -> None:
    model = Branched()
    optimizers: list[Optimizer] = [
        SGD(model.trunk.parameters(), 0.01),
        torch.optim.Adam(model.branch.parameters(), 0.01),
    ]
    model.whole = True
    monitor = watch(model, optimizers)
    train(model, optimizers, FIRST + 10, every=7)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, [])]


def test_what_no_optimizer_holds_is_none_of_its_business(
    watch: Watch, service: FakeService
) -> None:
    model = Branched()
    optimizer = SGD(model.trunk.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, [optimizer], FIRST + 1)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, [])]


def test_a_layer_that_thaws_has_its_own_fifty_steps(watch: Watch, service: FakeService) -> None:
    model = Branched()
    model.branch.requires_grad_(False)
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, [optimizer], FIRST + 1)
    model.branch.requires_grad_(True)
    train(model, [optimizer], FIRST + 1)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, []), ("SGD", FIRST, BRANCH)]


class Mixture(nn.Module):
    """Two experts, of which the router never asks the second."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.experts[0](x)
        return found


def test_experts_may_idle(watch: Watch, service: FakeService) -> None:
    model = Mixture()
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, [optimizer], FIRST + 1)
    monitor.finish()
    assert told(service) == [("SGD", FIRST, [])]


def test_sparse_and_unmeasurable_gradients_are_gradients(
    watch: Watch, service: FakeService
) -> None:
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(24, 2))
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    for step in range(FIRST + 1):
        optimizer.zero_grad()
        model(torch.arange(12).reshape(2, 6) + step % 30).pow(2).mean().backward()
        optimizer.step()
    monitor.finish()
    assert told(service) == [("SGD", FIRST, [])]


@pytest.mark.parametrize("unused", [True, False])
def test_a_wrapper_that_expects_unused_parameters_declares_them(
    unused: bool, watch: Watch, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapper:
        def __init__(self, module: nn.Module) -> None:
            self.module, self.find_unused_parameters = module, unused

    import torch.nn.parallel.distributed as parallel

    model = Branched()
    around = Wrapper(model)
    monkeypatch.setattr(parallel, "DistributedDataParallel", Wrapper)
    optimizer = SGD(model.parameters(), 0.01)
    monitor = watch(around.module, optimizer)
    train(model, [optimizer], FIRST + 1)
    monitor.finish()
    (event,) = service.events("no_gradient")
    assert event["declared"] is unused


def test_declared_ones_are_told_again_after_a_thousand_steps() -> None:
    parameter, unseen = nn.Parameter(torch.ones(2)), Unseen()
    unseen.assign([("idle", parameter)])
    said = {step: names for step in range(1, LATER + 5) if (names := unseen.took()) is not None}
    assert said == {FIRST: ["idle"], LATER: ["idle"]}
