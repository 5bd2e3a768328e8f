"""Where a step's time goes, in real loops; work takes time on a clock that only work moves."""

from __future__ import annotations

import copy
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments import clock, taps
from gradwarden.instruments.anatomy import Anatomy
from gradwarden.instruments.modes import EVERY, EvalMode
from gradwarden.instruments.timeline import MOST, Step, Timeline

Seconds = Mapping[str, float | Pending]


class Time:
    """Seconds that pass only where something works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


class Model(nn.Module):
    """Its forward takes ``forward`` seconds and the backward of it ``backward``."""

    def __init__(self, time: Time, forward: float = 0.0, backward: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.time, self.forward_seconds, self.backward_seconds = time, forward, backward

    def forward(self, x: Tensor) -> Tensor:
        self.time.work(self.forward_seconds)
        y: Tensor = self.layer(x)
        if y.requires_grad:
            y.register_hook(lambda _: self.time.work(self.backward_seconds))
        return y


class Slow(torch.optim.SGD):
    """Takes its time for a step."""

    time: Time
    seconds = 0.0

    def step(self, closure: Any = None) -> Any:
        self.time.work(self.seconds)
        inner: Any = torch.optim.SGD.step
        if getattr(inner, "hooked", False):  # once anyone made an SGD, it would run hooks as well
            inner = inner.__wrapped__
        return inner(self, closure)


class Items(Dataset[Tensor]):
    def __init__(self, time: Time, seconds: float, size: int = 8) -> None:
        self.time, self.seconds, self.size = time, seconds, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.size:
            raise IndexError
        self.time.work(self.seconds)
        return torch.full((3,), float(index))


Attach = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def attach() -> Iterator[Attach]:
    """Watch a model's anatomy; the scalars of each step of its leading optimizer, in a list."""
    started: list[Anatomy] = []

    def attached(model: nn.Module, leading: Optimizer | None = None) -> list[dict[str, Any]]:
        faults = Faults()
        anatomy = Anatomy(model, FrameBook(0), faults)
        steps: list[dict[str, Any]] = []
        anatomy.start()
        if leading is not None:
            leading.register_step_post_hook(lambda *_: steps.append(dict(anatomy.step_ended())))
        started.append(anatomy)
        attached.anatomy = anatomy  # type: ignore[attr-defined]
        return steps

    yield attached
    for anatomy in started:
        anatomy.stop()
        assert anatomy.faults.counts == {}


def close(found: Mapping[str, Any], **expected: float) -> bool:
    """Whether exactly these phases took exactly these seconds."""
    seconds = {name: took for name, took in found.items() if name != "data_start"}
    return seconds == pytest.approx({f"{k}_seconds": v for k, v in expected.items()}, abs=1e-6)


def slow(model: nn.Module, time: Time, seconds: float = 0.0) -> Slow:
    optimizer = Slow(model.parameters(), lr=0.1)
    optimizer.time, optimizer.seconds = time, seconds
    return optimizer


def test_every_phase_of_a_plain_loop_gets_its_own_time(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0, backward=3.0)
    optimizer = slow(model, clockwork, 4.0)
    steps = attach(model, optimizer)
    for x in DataLoader(Items(clockwork, 0.25), batch_size=4):
        optimizer.zero_grad()
        model(x).sum().backward()
        clockwork.work(0.5)
        optimizer.step()
    assert len(steps) == 2
    assert close(steps[1], step=10.5, data=1, forward=2, backward=3, optimizer=4)


def test_micro_batches_add_up_to_their_step(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0, backward=3.0)
    optimizer = slow(model, clockwork, 4.0)
    steps = attach(model, optimizer)
    loader = iter(DataLoader(Items(clockwork, 0.25, 64), batch_size=4))
    for _ in range(2):
        for _ in range(4):
            model(next(loader)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert close(steps[1], step=28, data=4, forward=8, backward=12, optimizer=4)


def test_mixed_precision_with_a_scaler_is_split_the_same(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0, backward=3.0)
    optimizer = slow(model, clockwork, 4.0)
    scaler = torch.amp.GradScaler("cpu")
    steps = attach(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.ones(4, 3)).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert close(steps[1], step=9, forward=2, backward=3, optimizer=4)


def test_a_closure_inside_the_optimizers_step_is_not_counted_twice(
    clockwork: Time, attach: Attach
) -> None:
    model = Model(clockwork, forward=2.0, backward=3.0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=1)
    steps = attach(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().sum()
        loss.backward()
        clockwork.work(1.0)
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert close(steps[1], step=6, forward=2, backward=3, optimizer=1)


def test_a_gans_two_optimizers_share_the_step_of_the_leading_one(
    clockwork: Time, attach: Attach
) -> None:
    whole = nn.ModuleDict({"g": Model(clockwork, 2.0), "d": nn.Linear(2, 1)})
    first, second = slow(whole["d"], clockwork, 4.0), slow(whole["g"], clockwork, 5.0)
    steps = attach(whole["g"], first)
    for _ in range(2):
        whole["d"](whole["g"](torch.ones(4, 3)).detach()).sum().backward()
        first.step()
        whole["d"](whole["g"](torch.ones(4, 3))).sum().backward()
        second.step()
    first.step()
    assert close(steps[1], step=13, forward=4, backward=0, optimizer=9)


def test_two_monitors_in_one_process_each_see_their_own_forward(
    clockwork: Time, attach: Attach
) -> None:
    one, two = Model(clockwork, 1.0), Model(clockwork, 2.0)
    of_one = attach(one, first := slow(one, clockwork))
    of_two = attach(two, second := slow(two, clockwork))
    for _ in range(2):
        one(torch.ones(4, 3)).sum().backward()
        first.step()
        two(torch.ones(4, 3)).sum().backward()
        second.step()
    assert close(of_one[1], step=3, forward=1, backward=0, optimizer=0)
    assert close(of_two[1], step=3, forward=2, backward=0, optimizer=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_run_again_in_backward_is_backward(
    clockwork: Time, attach: Attach, reentrant: bool
) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    for _ in range(2):
        x = torch.ones(4, 3, requires_grad=True)
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        optimizer.step()
    found = steps[1]
    assert found["backward_seconds"] == pytest.approx(2)
    # The reentrant kind runs first without gradients, as an evaluation does.
    first = "evaluation_seconds" if reentrant else "forward_seconds"
    assert found[first] == pytest.approx(2)
    assert found["step_seconds"] == pytest.approx(4)


def test_an_exception_in_forward_ends_the_forward(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model(torch.ones(4, 7))
        clockwork.work(5.0)  # emptying caches, choosing a smaller batch
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert close(steps[1], step=9, forward=4, backward=0, optimizer=0)


def test_an_exception_in_a_loader_or_backward_or_step_ends_it_too(
    clockwork: Time, attach: Attach
) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)

    def fails(_: Tensor) -> None:
        raise OSError("in backward")

    for _ in range(2):
        loader = iter(DataLoader(Items(clockwork, 1.0), batch_size=4, sampler=[0, 1, 2, 99]))
        with pytest.raises(IndexError):
            next(loader)
        y = model(torch.ones(4, 3))
        y.register_hook(fails)
        with pytest.raises(OSError, match="in backward"):
            y.sum().backward()
        clockwork.work(5.0)
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert close(steps[1], step=12, data=3, forward=4, backward=0, optimizer=0)


def test_a_loader_in_another_thread_is_not_charged(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()

    def loads() -> None:
        for _ in DataLoader(Items(clockwork, 1.0)):
            pass

    thread = threading.Thread(target=loads)
    thread.start()
    thread.join()
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert close(steps[1], step=10, forward=2, backward=0, optimizer=0)


def test_training_may_go_on_in_another_thread(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)

    def trains() -> None:
        for _ in range(3):
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()

    thread = threading.Thread(target=trains)
    thread.start()
    thread.join()
    assert steps[0] == {}, "what the other thread did before is not known"
    assert close(steps[2], step=2, forward=2, backward=0, optimizer=0)


def test_evaluation_is_not_forward(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    for _ in range(2):
        model.eval()
        with torch.no_grad():
            model(torch.ones(4, 3))
        model(torch.ones(4, 3))  # forgotten no_grad
        model.train()
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert close(steps[1], step=6, forward=2, backward=0, optimizer=0, evaluation=4)


def test_a_forward_in_eval_mode_that_leads_to_a_backward_is_training(
    clockwork: Time, attach: Attach
) -> None:
    model = Model(clockwork, forward=2.0).eval()
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    for _ in range(2):
        for _ in range(2):
            model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert close(steps[1], step=4, forward=4, backward=0, optimizer=0)


def test_phases_that_the_loop_names_count_where_they_have_a_scalar(
    clockwork: Time, attach: Attach, tmp_path: Path
) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    anatomy: Anatomy = attach.anatomy  # type: ignore[attr-defined]

    class Payload:
        def __reduce__(self) -> Any:
            clockwork.work(0.5)
            return (str, ())

    for _ in range(2):
        anatomy.enter("data")
        clockwork.work(1.0)
        anatomy.leave("data")
        anatomy.enter("warming up")
        clockwork.work(7.0)
        model(torch.ones(4, 3)).sum().backward()
        anatomy.leave("warming up")
        anatomy.enter("checkpoint")
        clockwork.work(3.0)
        anatomy.leave("checkpoint")
        torch.save(Payload(), tmp_path / "a.pt")
        anatomy.enter("evaluate")
        clockwork.work(4.0)
        assert anatomy.current == "evaluation"
        anatomy.leave("evaluate")
        anatomy.leave("never entered")
        optimizer.step()
    assert close(
        steps[1],
        step=17.5, data=1, forward=2, backward=0, checkpoint=3.5, evaluation=4, optimizer=0,
    )  # fmt: skip


def test_a_heartbeat_is_told_the_phase(clockwork: Time, attach: Attach) -> None:
    model = Model(clockwork)
    optimizer = slow(model, clockwork)
    attach(model, optimizer)
    anatomy: Anatomy = attach.anatomy  # type: ignore[attr-defined]
    assert anatomy.current is None
    seen: list[str | None] = []
    model.layer.register_forward_hook(lambda *_: seen.append(anatomy.current))
    with torch.no_grad():
        model(torch.ones(4, 3))
    seen.append(anatomy.current)  # between two batches of an evaluation
    y = model(torch.ones(4, 3))
    seen.append(anatomy.current)
    y.register_hook(lambda _: seen.append(anatomy.current))
    y.sum().backward()
    assert seen == ["evaluation", "evaluation", "forward", None, "backward"]


def test_a_long_evaluation_inside_one_step_takes_bounded_memory(
    clockwork: Time, attach: Attach
) -> None:
    model = Model(clockwork, forward=2.0)
    optimizer = slow(model, clockwork)
    steps = attach(model, optimizer)
    anatomy: Anatomy = attach.anatomy  # type: ignore[attr-defined]
    whole: list[Step] = []
    anatomy.on_step = whole.append
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for x in DataLoader(Items(clockwork, 0.5, 2 * MOST)):
            model(x)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert close(
        steps[1], step=5 * MOST + 2, data=MOST, evaluation=4 * MOST, forward=2, backward=0,
        optimizer=0,
    )  # fmt: skip
    assert len(whole[1].cuts) <= MOST
    assert whole[1].merged


def test_random_nests_agree_with_a_slow_twin(clockwork: Time) -> None:
    """The twin walks tick by tick and charges each to what was entered last and not left."""
    names = ["data", "forward", "backward", "optimizer", "checkpoint", "own"]
    dice = random.Random(5)
    for _ in range(200):
        timeline, stack = Timeline(), []
        timeline.close()
        twin = dict.fromkeys(names, 0)
        ticks = 0
        for _ in range(dice.randrange(60)):
            act = dice.random()
            if act < 0.4:
                stack.append(dice.choice(names))
                timeline.enter(stack[-1])
            elif act < 0.7 and stack:
                timeline.leave(stack.pop())
            else:
                clockwork.work(1.0)
                ticks += 1
                if stack:
                    twin[stack[-1]] += 1
        step = timeline.close()
        assert step is not None
        found = step.seconds()
        assert found.pop("step") == pytest.approx(ticks)
        assert {k: v for k, v in found.items() if v} == pytest.approx(
            {k: v for k, v in twin.items() if v and k != "own"}
        )


class Nets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("how", ["wrapped", "wrapped first", "in place", "sequential"])
def test_a_compiled_model_is_timed_from_outside_its_graph(attach: Attach, how: str) -> None:
    torch._dynamo.reset()
    model: nn.Module = nn.Sequential(Nets()) if how == "sequential" else Nets()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    called: Any = model
    if how == "wrapped first":
        called = torch.compile(model, backend="eager", fullgraph=True)
    steps = attach(model, optimizer)
    if how == "in place":
        model.compile(backend="eager", fullgraph=True)
    elif how != "wrapped first":
        called = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(3):
        called(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    names = {"step_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds"}
    assert set(steps[2]) == names
    if how == "wrapped first":
        assert steps[0]["compile_seconds"] > 0, "what the first call waited for"
    assert sum(steps[2].values()) <= 2 * steps[2]["step_seconds"]


def test_a_step_that_is_compiled_whole_still_hears_its_backward(attach: Attach) -> None:
    torch._dynamo.reset()
    model = Nets()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = attach(model, optimizer)

    @torch.compile(backend="eager")
    def train(x: Tensor) -> None:
        model(x).sum().backward()

    for _ in range(3):
        train(torch.ones(4, 3))
        optimizer.step()
    assert {"backward_seconds", "optimizer_seconds"} <= set(steps[2])
    fullgraph = torch.compile(lambda x: model(x).sum(), backend="eager", fullgraph=True)
    assert fullgraph(torch.ones(4, 3)).requires_grad


def test_a_wrapper_of_distribution_is_timed(attach: Attach, tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = Nets()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steps = attach(model, optimizer)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            wrapped(torch.ones(4, 3)).sum().backward()
            optimizer.step()
        assert {"forward_seconds", "backward_seconds"} <= set(steps[1])
    finally:
        torch.distributed.destroy_process_group()


class Ears(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return len(taps._listeners)


def test_loader_workers_do_not_listen_and_their_waits_are_data(attach: Attach) -> None:
    model = Nets()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = attach(model, optimizer)
    heard: list[int] = []
    for x in DataLoader(Ears(), batch_size=4, num_workers=2):
        heard += x.tolist()
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert heard == [0] * 8
    for found in steps:
        assert found["data_seconds"] > 0
        phases = {k: v for k, v in found.items() if k not in ("step_seconds", "data_start")}
        assert sum(phases.values()) <= found["step_seconds"]


def test_a_copy_or_a_pickle_of_the_model_is_not_the_model(
    clockwork: Time, attach: Attach, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = attach(model, optimizer)
    average = copy.deepcopy(model)
    average.register_forward_hook(lambda *_: clockwork.work(9.0))
    for _ in range(2):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        average(torch.ones(4, 3))
    assert close(steps[1], step=9, forward=0, backward=0, optimizer=0)
    torch.save(model, tmp_path / "whole.pt")
    load = (
        "import sys, torch; sys.modules['gradwarden'] = None\n"
        f"print(torch.load({str(tmp_path / 'whole.pt')!r}, weights_only=False)(torch.ones(1, 3)))"
    )
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tensor" in done.stdout


def test_a_watched_model_and_its_copy_can_be_scripted(clockwork: Time, attach: Attach) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = attach(model, optimizer)
    model.register_forward_hook(lambda *_: clockwork.work(2.0))
    rows = torch.ones(4, 3)
    with pytest.raises(Exception, match=r"lambda|test_anatomy\.py"):
        torch.jit.script(model)  # the user's own hook is still looked at
    model._forward_hooks.popitem()
    for module in (model, copy.deepcopy(model)):
        assert torch.equal(torch.jit.script(module)(rows), module(rows))
    model.register_forward_hook(lambda *_: clockwork.work(2.0))
    for _ in range(2):
        model(rows).sum().backward()
        optimizer.step()
    assert close(steps[1], step=2, forward=0, backward=0, optimizer=0)


def test_everything_is_undone_with_the_last_monitor() -> None:
    names: list[tuple[Any, str]] = [
        (torch.autograd, "_engine_run_backward"), (torch, "save"), (torch.serialization, "save"),
        (torch.jit._recursive, "create_script_module"),
        (torch.utils.data.dataloader._BaseDataLoaderIter, "__next__"), (DataLoader, "__iter__"),
        (torch._dynamo.eval_frame.OptimizedModule, "__call__"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name in names]
    one, two = (Anatomy(nn.Linear(2, 2), FrameBook(0), Faults()) for _ in range(2))
    model = one.root()
    assert model is None, "an instrument does not keep a model alive"
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    one, two = (Anatomy(m, FrameBook(0), Faults()) for m in models)
    for anatomy in (one, two):
        anatomy.start()
    assert all(getattr(o, n) is not was for (o, n), was in zip(names, before, strict=True))
    torch._dynamo.callback.callback_handler.clear()
    one.stop()
    assert one.status() == "on", "the taps are still there for the other"
    assert torch.save is not before[1]
    two.stop()
    assert all(getattr(o, n) is was for (o, n), was in zip(names, before, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in models)
    buffer = io.BytesIO()
    torch.save({}, buffer)
    assert buffer.tell()


def train(model: nn.Module, variant: str, begun: Callable[[Optimizer], None]) -> bytes:
    """A few steps in one of the ways that people train; the bits of what came out."""
    kind = torch.optim.LBFGS if variant == "lbfgs" else torch.optim.AdamW
    optimizer: Optimizer = kind(model.parameters(), lr=0.01)  # type: ignore[operator]
    begun(optimizer)
    called = torch.compile(model, backend="eager") if variant == "compiled" else model
    scaler = torch.amp.GradScaler("cpu", enabled=variant == "amp")
    data = [torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(24)]
    for at, x in enumerate(DataLoader(data, batch_size=2, num_workers=2 * (variant == "workers"))):
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "amp"):
            run = called(x) if variant != "checkpointed" else checkpoint(
                called, x, use_reentrant=False
            )  # fmt: skip
            loss = run.float().square().mean()
        if variant == "penalty":
            (slope,) = torch.autograd.grad(loss, list(model.parameters())[:1], create_graph=True)
            loss = loss + slope.square().sum()
        if variant == "lbfgs":

            def closure(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                found: Tensor = model(x).square().mean()
                found.backward()
                return found

            optimizer.step(closure)
            continue
        scaler.scale(loss).backward()
        if variant == "accumulated" and at % 3:
            continue
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


@pytest.mark.parametrize(
    "variant",
    ["plain", "accumulated", "amp", "lbfgs", "compiled", "checkpointed", "penalty", "workers"],
)
def test_training_is_the_same_to_the_bit(variant: str, attach: Attach) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(3)
        torch._dynamo.reset()
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))

    alone = train(fresh(), variant, lambda _: None)
    model = fresh()
    steps: list[list[dict[str, Any]]] = []
    watched = train(model, variant, lambda optimizer: steps.append(attach(model, optimizer)))
    assert watched == alone
    assert len(steps[0]) > 3


def test_a_failure_of_ours_turns_it_off_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Timeline, *_: Any) -> None:
        raise RuntimeError("broken clock")

    monkeypatch.setattr(Timeline, "_cut", fails)
    model = nn.Linear(3, 2)
    faults = Faults()
    anatomy = Anatomy(model, FrameBook(0), faults)
    anatomy.start()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    anatomy.stop()
    assert not torch.equal(before, model.weight)
    assert faults.counts["anatomy"] == 1
    assert "broken clock" in capfd.readouterr().err


def test_an_unknown_torch_is_told_from_a_known_one(
    monkeypatch: pytest.MonkeyPatch, attach: Attach
) -> None:
    monkeypatch.delattr(torch.utils.data.dataloader, "_BaseDataLoaderIter")
    attach(nn.Linear(2, 2))
    anatomy: Anatomy = attach.anatomy  # type: ignore[attr-defined]
    assert anatomy.status() == "on, without data"


# -- eval mode ----------------------------------------------------------------------------


def said(model: nn.Module, changes: Mapping[int, Callable[[], Any]], steps: int) -> list[Any]:
    book = FrameBook(0)
    modes = EvalMode(model, book)
    found = []
    for step in range(steps):
        changes.get(step, lambda: None)()
        modes.step_ended()
        book.close()
        for piece in book.drain(0.0):
            found += [(step, e["modules"]) for e in piece.events if e["kind"] == "eval_mode"]
    return found


def dropout_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Dropout(0.1))


def test_training_in_eval_mode_is_said_once_when_it_begins_and_ends() -> None:
    model = dropout_net()
    changes = {10: model.eval, 3 * EVERY + 1: model.train}
    assert said(model, changes, 5 * EVERY) == [(EVERY, ["Sequential"]), (4 * EVERY, [])]


def test_every_dropout_and_batch_norm_in_eval_mode_under_a_training_root() -> None:
    model = dropout_net()
    model[1].eval()
    assert said(model, {}, 1) == [], "dropout still works"
    model[3].eval()
    assert said(model, {}, 1) == [(0, ["1", "3"])]


def test_a_frozen_batch_norm_and_a_teacher_may_be_in_eval_mode() -> None:
    student, teacher = dropout_net(), dropout_net().eval().requires_grad_(False)
    student[1].eval().requires_grad_(False)
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    assert said(model, {}, 1) == []
    student[3].eval()
    assert said(model, {}, 1) == [(0, ["student.3"])]
    alone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).requires_grad_(False).eval())
    assert said(alone, {}, 1) == []


def test_a_fork_does_not_measure(attach: Attach) -> None:
    model = Nets()
    attach(model)
    anatomy: Anatomy = attach.anatomy  # type: ignore[attr-defined]
    child = os.fork()
    if child == 0:
        anatomy.enter("data")
        os._exit(0 if anatomy.current is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    anatomy.enter("data")
    assert anatomy.current == "data"
    anatomy.leave("data")
