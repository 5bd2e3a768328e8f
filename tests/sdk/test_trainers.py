"""What real torch offers to loops: kinds of optimizers, compilation, recomputed activations.

Each loop is run twice, watched and not: the weights must agree to the last bit, and the norms
of each step with those that plain torch computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from tests.integrations.conftest import bits, norms, same, verdicts
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService

STEPS = 5
Row = dict[str, float]
Loop = Callable[[nn.Module, torch.optim.Optimizer], list[Row]]


def gradients(model: nn.Module) -> Row:
    """The norm of each gradient that is there, by plain torch in double precision."""
    return {
        name.replace("_orig_mod.", ""): float(p.grad.double().norm())
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def plain_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, to_none: bool = True, clip: bool = True
) -> list[Row]:
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=to_none)
        model(batch(step)).pow(2).mean().backward()
        seen.append(gradients(model))
        if clip:
            clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return seen


def compare(
    make: Callable[[], nn.Module],
    optimize: Callable[[nn.Module], torch.optim.Optimizer],
    loop: Loop,
    service: FakeService,
    watch: Watch,
    relative: float = 1e-5,
) -> None:
    """Run a loop without and with us; compare weights, norms and verdicts."""
    plain = make()
    loop(plain, optimize(plain))
    model = make()
    optimizer = optimize(model)
    monitor = watch(model, optimizer)
    expected = loop(model, optimizer)
    monitor.finish()
    assert bits(model) == bits(plain)
    assert norms(service) == same(dict(enumerate(expected)), relative)
    assert verdicts(service) == dict.fromkeys(range(len(expected)), True)
    assert monitor.health()["disabled"] == {}


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "for-loop AdamW": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, foreach=False),
    "foreach AdamW": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, foreach=True),
    "fused AdamW": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, fused=True),
    "AdamW with a tensor for a rate": lambda m: torch.optim.AdamW(
        m.parameters(), torch.tensor(1e-2), foreach=False, capturable=False
    ),
    "SGD that maximizes": lambda m: torch.optim.SGD(m.parameters(), 1e-4, maximize=True),
    "Nesterov": lambda m: torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9, nesterov=True),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 1e-2),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), 1e-2),
    "groups": lambda m: torch.optim.AdamW(
        [{"params": list(m.parameters())[:2], "lr": 1e-3}, {"params": list(m.parameters())[2:]}]
    ),
}


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_of_optimizer(
    kind: str, to_none: bool, service: FakeService, watch: Watch
) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        return plain_loop(model, optimizer, to_none)

    compare(mlp, OPTIMIZERS[kind], loop, service, watch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch wants a GPU for capturable=True")
def test_a_capturable_optimizer(service: FakeService, watch: Watch) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step).cuda()).pow(2).mean().backward()
            seen.append(gradients(model))
            clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        model.cpu()
        return seen

    def optimize(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), 1e-2, capturable=True)

    compare(lambda: mlp().cuda(), optimize, loop, service, watch)


def test_a_differentiable_optimizer_over_copies_is_no_step_of_ours(
    service: FakeService, watch: Watch
) -> None:
    """As meta-learning does it: an inner step on copies, and an outer one through it."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            names = [n for n, _ in model.named_parameters()]
            copies = [p.clone() for p in model.parameters()]
            first = torch.func.functional_call(
                model, dict(zip(names, copies, strict=True)), batch(step)
            )
            grads = torch.autograd.grad(first.pow(2).mean(), copies, create_graph=True)
            moved = [copy.clone() for copy in copies]
            inner = torch.optim.AdamW(moved, 1e-2, differentiable=True)
            for copy, grad in zip(moved, grads, strict=True):
                copy.grad = grad
            inner.step()
            after = torch.func.functional_call(
                model, dict(zip(names, moved, strict=True)), batch(step)
            )
            after.pow(2).mean().backward()
            seen.append(gradients(model))
            optimizer.step()
        return seen

    compare(mlp, lambda m: torch.optim.SGD(m.parameters(), 1e-2), loop, service, watch)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("watched", ["the compiled model", "the model itself"])
def test_a_compiled_model(
    watched: str, backend: str, service: FakeService, watch: Watch, fresh_compiler: None
) -> None:
    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend)

    plain = mlp()
    whole = compiled(plain)
    plain_loop(whole, torch.optim.AdamW(whole.parameters(), 1e-2))
    model = mlp()
    whole = compiled(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    monitor = watch(whole if watched == "the compiled model" else model, optimizer)
    expected = plain_loop(whole, optimizer)
    monitor.finish()
    assert bits(model) == bits(plain)
    assert norms(service) == same(dict(enumerate(expected)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_compiled_optimizer_step(
    clip: bool, backend: str, service: FakeService, watch: Watch, fresh_compiler: None
) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        step_of = torch.compile(optimizer.step, backend=backend)
        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step)).pow(2).mean().backward()
            seen.append(gradients(model))
            if clip:
                clip_grad_norm_(model.parameters(), 0.05)
            step_of()
        return seen

    compare(mlp, lambda m: torch.optim.AdamW(m.parameters(), 1e-2), loop, service, watch)


@pytest.mark.xfail(strict=True, reason="a traced clip is not heard; the step is taken after it")
def test_a_clip_inside_a_compiled_step_is_seen_before_it_clips(
    service: FakeService, watch: Watch, fresh_compiler: None
) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        @torch.compile(backend="eager")
        def finish() -> None:
            clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()

        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step)).pow(2).mean().backward()
            seen.append(gradients(model))
            finish()
        return seen

    compare(mlp, lambda m: torch.optim.AdamW(m.parameters(), 1e-2), loop, service, watch)


class Recomputed(nn.Module):
    """Blocks whose activations are computed again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.use_reentrant = use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return x


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_activations(use_reentrant: bool, service: FakeService, watch: Watch) -> None:
    compare(
        lambda: Recomputed(use_reentrant),
        lambda m: torch.optim.AdamW(m.parameters(), 1e-2),
        plain_loop,
        service,
        watch,
    )
    (layout,) = service.layouts.values()
    names = [p.name for p in layout.parameters]
    order = [names[i] for i in layout.backward]
    assert [n for n in order if n.endswith("0.weight")] == [
        f"blocks.{i}.0.weight" for i in (2, 1, 0)
    ]
    assert set(order[-2:]) == {"first.weight", "first.bias"}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_half_precision_on_a_cpu_with_a_scaler(
    clip: bool, fused: bool, service: FakeService, watch: Watch
) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(batch(step)).float().pow(2).mean()
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            seen.append({n: v / scale for n, v in gradients(model).items()})
            if clip:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
        return seen

    compare(
        mlp, lambda m: torch.optim.AdamW(m.parameters(), 1e-2, fused=fused), loop, service, watch
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precision(dtype: torch.dtype, service: FakeService, watch: Watch) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step).to(dtype)).pow(2).mean().backward()
            seen.append(gradients(model))
            optimizer.step()
        return seen

    compare(
        lambda: mlp().to(dtype),
        lambda m: torch.optim.SGD(m.parameters(), 1e-2),
        loop,
        service,
        watch,
    )


def test_another_default_dtype(service: FakeService, watch: Watch) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        seen = []
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step).double()).pow(2).mean().backward()
            seen.append(gradients(model))
            optimizer.step()
        return seen

    torch.set_default_dtype(torch.float64)
    try:
        compare(
            lambda: mlp().double(),
            lambda m: torch.optim.SGD(m.parameters(), 1e-2),
            loop,
            service,
            watch,
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_default_device(service: FakeService, watch: Watch) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        with torch.device("meta"):  # what the loop makes without a device has no values
            return plain_loop_on(model, optimizer)

    compare(mlp, lambda m: torch.optim.SGD(m.parameters(), 1e-2), loop, service, watch)


def plain_loop_on(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
    seen = []
    for step in range(STEPS):
        generator = torch.Generator("cpu").manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 6, generator=generator, device="cpu")).pow(2).mean().backward()
        seen.append(gradients(model))
        clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return seen


def test_tied_and_frozen_parameters_together(service: FakeService, watch: Watch) -> None:
    def make() -> nn.Module:
        model = mlp()
        model[2].weight.requires_grad_(False)
        model.add_module("5", nn.Linear(2, 2))
        model.add_module("6", nn.Linear(2, 2))
        model[6].weight = model[5].weight
        return model

    compare(make, lambda m: torch.optim.AdamW(m.parameters(), 1e-2), plain_loop, service, watch)
    assert "2.weight" not in norms(service)[0]
    assert "6.weight" not in norms(service)[0]


def test_two_optimizers_over_halves(service: FakeService, watch: Watch) -> None:
    def train(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Row]:
        seen = []
        for step in range(STEPS):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model(batch(step)).pow(2).mean().backward()
            seen.append(gradients(model))
            clip_grad_norm_(model.parameters(), 0.05)
            for optimizer in optimizers:
                optimizer.step()
        return seen

    def halves(model: nn.Module) -> list[torch.optim.Optimizer]:
        parameters = list(model.parameters())
        return [
            torch.optim.AdamW(parameters[:3], 1e-2),
            torch.optim.SGD(parameters[3:], 1e-2, momentum=0.9),
        ]

    plain = mlp()
    train(plain, halves(plain))
    model = mlp()
    both = halves(model)
    monitor = watch(model, both)
    expected = train(model, both)
    monitor.finish()
    assert bits(model) == bits(plain)
    assert norms(service) == same(dict(enumerate(expected)))
    assert set(verdicts(service).values()) == {True}


def test_an_lbfgs_closure_is_left_as_it_was(service: FakeService, watch: Watch) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        seen = []
        for step in range(STEPS):

            def closure(step: int = step) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(batch(step)).pow(2).mean()
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
            seen.append(gradients(model))
        return seen

    compare(
        mlp,
        lambda m: torch.optim.LBFGS(m.parameters(), 1e-2, max_iter=3),
        loop,
        service,
        watch,
    )
    assert math.isfinite(norms(service)[0]["0.weight"])
