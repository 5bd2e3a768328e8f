"""Where gradients are taken and what is told of each step, over the shapes that loops have."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_  # before any watch, on purpose

from gradwarden import wire
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService

EARLIER_CLIP, EARLIER_VALUE = clip_grad_norm_, clip_grad_value_


@pytest.fixture(autouse=True)
def whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no step is so slow that it leaves in pieces."""
    monkeypatch.setattr("gradwarden.frames.STALE", 3600.0)


def rows(frame: wire.Frame) -> list[tuple[float, ...]]:
    """The statistics of every row, without the columns that are taken in turn."""
    return [r[:6] for r in struct.iter_unpack(f"<{len(wire.COLUMNS)}f", frame.values)]


def captured(service: FakeService) -> dict[int, wire.Frame]:
    """The frame with the matrix of each step; a step with two matrices fails."""
    found: dict[int, wire.Frame] = {}
    for step, frames in service.steps().items():
        matrices = [f for f in frames if f.values]
        assert len(matrices) <= 1, f"step {step} has {len(matrices)} matrices"
        if matrices:
            found[step] = matrices[0]
    return found


def verdicts(service: FakeService) -> dict[int, bool | None]:
    """The last word on each step with a capture."""
    return {
        step: [f.stepped for f in frames if f.stepped is not None or not f.open][-1]
        for step, frames in service.steps().items()
        if any(f.values for f in frames)
    }


def norm(frame: wire.Frame) -> float:
    return math.sqrt(sum(r[0] ** 2 for r in rows(frame)))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    return model(batch(step)).pow(2).mean() * 100


def test_without_clipping_the_step_is_the_moment(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    norms = []
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()]) * 0))
        optimizer.step()
    monitor.finish()
    assert sorted(captured(service)) == [0, 1, 2, 3, 4]
    assert verdicts(service) == dict.fromkeys(range(5), True)


def test_the_unclipped_gradient_is_called_so(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    optimizer.zero_grad()
    loss_of(model, 0).backward()
    expected = [(float(p.grad.norm()), float(p.grad.abs().max())) for p in model.parameters()]
    optimizer.step()
    monitor.finish()
    frame = captured(service)[0]
    assert frame.capture == "unclipped"
    assert [r[:2] for r in rows(frame)] == [pytest.approx(e, rel=1e-5) for e in expected]
    (layout,) = service.layouts.values()
    assert [p.name for p in layout.parameters] == [n for n, _ in model.named_parameters()]
    assert layout.backward == (5, 4, 3, 2, 1, 0)


CLIPS: dict[str, Callable[[nn.Module], object]] = {
    "by norm, imported before": lambda m: EARLIER_CLIP(m.parameters(), 0.01),
    "by value, imported before": lambda m: EARLIER_VALUE(m.parameters(), 1e-4),
    "by norm, looked up late": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01),
    "parameter by parameter": lambda m: [EARLIER_CLIP(p, 0.01) for p in m.parameters()],
    "in two halves": lambda m: (
        EARLIER_CLIP(m[0].parameters(), 0.01),
        EARLIER_CLIP([*m[2].parameters(), *m[4].parameters()], 0.01),
    ),
    "twice": lambda m: (
        EARLIER_CLIP(m.parameters(), math.inf),
        EARLIER_CLIP(m.parameters(), 0.01),
    ),
    "not foreach": lambda m: EARLIER_CLIP(m.parameters(), 0.01, foreach=False),
    "in two calls": lambda m: nn.utils.clip_grads_with_norm_(
        m.parameters(), 0.01, nn.utils.get_total_norm([p.grad for p in m.parameters()])
    ),
}


@pytest.mark.parametrize("how", CLIPS)
def test_clipped_gradients_are_taken_before_the_clip(
    how: str, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    expected = []
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        expected.append(math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters())))
        CLIPS[how](model)
        optimizer.step()
    monitor.finish()
    frames = captured(service)
    assert {s: norm(f) for s, f in frames.items()} == pytest.approx(dict(enumerate(expected)))
    assert {f.capture for f in frames.values()} == {"pre_clip"}
    assert verdicts(service) == dict.fromkeys(range(4), True)
    whole = how in ("by norm, imported before", "by norm, looked up late", "not foreach")
    if whole:
        assert [f.scalars["clip_norm"] for f in frames.values()] == pytest.approx(expected)
        assert {f.scalars["clip_max_norm"] for f in frames.values()} == {0.01}


def test_accumulation_makes_no_extra_steps(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    monitor = watch(model, optimizer)
    optimizer.zero_grad()
    for micro in range(12):
        loss_of(model, micro).backward()
        clip_grad_norm_(model.parameters(), 1e9)  # a habit of some loops: at every micro-batch
        if micro % 4 == 3:
            expected = norm_of(model)
            optimizer.step()
            optimizer.zero_grad()
    monitor.finish()
    frames = captured(service)
    assert sorted(frames) == [0, 1, 2]
    assert norm(frames[2]) == pytest.approx(expected, rel=1e-5)
    assert set(verdicts(service).values()) == {True}


def norm_of(model: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters()))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clearing", ["optimizer", "model"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_loop_that_skips_by_hand_tells_a_skipped_step(
    clip: bool, clearing: str, set_to_none: bool, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    who = optimizer if clearing == "optimizer" else model
    for step in range(6):
        who.zero_grad(set_to_none=set_to_none)
        who.zero_grad(set_to_none=set_to_none)  # twice is no skipped step
        loss = loss_of(model, step) * (math.nan if step == 3 else 1.0)
        loss.backward()
        if clip:
            bad = not torch.isfinite(clip_grad_norm_(model.parameters(), 1.0))
        else:
            bad = not all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        if bad:
            continue
        optimizer.step()
    monitor.finish()
    assert verdicts(service) == {s: s != 3 for s in range(6)}
    assert all(r[2] > 0 for r in rows(captured(service)[3]))
    assert all(r[2] == 0 for r in rows(captured(service)[4]))


def test_gradients_dropped_by_hand_are_seen_at_the_next_clip(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(5):
        (loss_of(model, step) * (math.inf if step == 2 else 1.0)).backward()
        if torch.isfinite(clip_grad_norm_(model.parameters(), 1.0)):
            optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None
    monitor.finish()
    assert verdicts(service) == {s: s != 2 for s in range(5)}


def test_a_scaler_that_skips_is_told_and_values_are_unscaled(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monitor = watch(model, optimizer)
    expected = {}
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        expected[step] = math.sqrt(sum(float(g.norm()) ** 2 for g in grads))
        scaler.scale(loss * (math.inf if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    monitor.finish()
    frames = captured(service)
    assert verdicts(service) == {0: True, 1: False, 2: True, 3: True}
    assert norm(frames[0]) == pytest.approx(expected[0], rel=1e-4)
    assert norm(frames[3]) == pytest.approx(expected[3], rel=1e-4)
    assert frames[0].scalars["loss_scale"] == 1024.0
    assert frames[2].scalars["loss_scale"] == 512.0
    assert any(r[2] + r[3] > 0 for r in rows(frames[1]))


@pytest.mark.parametrize("unscale", [True, False])
def test_a_fused_optimizer_skips_inside_and_the_scaler_knows(
    unscale: bool, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    monitor = watch(model, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step) * (math.nan if step == 1 else 1.0)).backward()
        expected = norm_of(model) / float(scaler.get_scale())
        if unscale:
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
    monitor.finish()
    frames = captured(service)
    assert verdicts(service) == {0: True, 1: False, 2: True}
    assert norm(frames[2]) == pytest.approx(expected, rel=1e-5)
    assert frames[2].capture == ("pre_clip" if unscale else "unclipped")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_a_gan_is_one_frame_a_step(
    detach: bool, named: bool, service: FakeService, watch: Watch
) -> None:
    torch.manual_seed(0)
    pair = nn.ModuleDict({"d": nn.Linear(4, 1), "g": nn.Linear(3, 4)})
    d = torch.optim.Adam(pair["d"].parameters())
    g = torch.optim.Adam(pair["g"].parameters())
    monitor = watch(pair, [d, g] if named else None)
    for _ in range(5):
        fake = pair["g"](torch.randn(8, 3))
        d.zero_grad()
        shown = fake.detach() if detach else fake
        pair["d"](shown).mean().backward(retain_graph=not detach)
        d.step()
        g.zero_grad()
        pair["d"](pair["g"](torch.randn(8, 3))).mean().backward()
        g.step()
        monitor.log(loss=1.0)
    monitor.finish()
    frames = captured(service)
    assert sorted(frames) == [0, 1, 2, 3, 4]
    assert all(r[2] == 0 for f in frames.values() for r in rows(f))
    assert set(verdicts(service).values()) == {True}


def test_a_closure_shows_its_last_gradients(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    monitor = watch(model, optimizer)
    last = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        last.append(norm_of(model))
        return loss

    for _ in range(3):
        optimizer.step(closure)
    monitor.finish()
    frames = captured(service)
    assert sorted(frames) == [0, 1, 2]
    assert norm(frames[2]) == pytest.approx(last[-1], rel=1e-5)
    assert set(verdicts(service).values()) == {True}


def test_frozen_parameters_have_no_row_until_they_thaw(service: FakeService, watch: Watch) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(6):
        if step == 3:
            model[0].requires_grad_(True)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    monitor.finish()
    sizes = [len(rows(f)) for _, f in sorted(captured(service).items())]
    assert sizes == [4, 4, 4, 6, 6, 6]
    orders = {len(layout.parameters): layout.backward for layout in service.layouts.values()}
    assert orders[4] == (3, 2, 1, 0)
    assert orders[6] == (5, 4, 3, 2, 1, 0)


def test_a_parameter_without_gradient_is_not_observed(service: FakeService, watch: Watch) -> None:
    model = mlp()
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    loss_of(model, 0).backward()
    optimizer.step()
    monitor.finish()
    (layout,) = service.layouts.values()
    names = [p.name for p in layout.parameters]
    counts = [r[2] for r in rows(captured(service)[0])]
    assert math.isnan(counts[names.index("idle")])
    assert all(c == 0 for n, c in zip(names, counts, strict=True) if n != "idle")


def test_a_shared_parameter_has_one_row(service: FakeService, watch: Watch) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    optimizer = torch.optim.SGD(tied.parameters(), 0.1)
    monitor = watch(tied, optimizer)
    tied["b"](tied["a"](torch.ones(1, 3))).sum().backward()
    optimizer.step()
    monitor.finish()
    (layout,) = service.layouts.values()
    assert [p.name for p in layout.parameters] == ["a.weight", "a.bias", "b.bias"]


def test_a_sparse_embedding_counts_what_it_does_not_store(
    service: FakeService, watch: Watch
) -> None:
    table = nn.Embedding(50, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    monitor = watch(table, optimizer)
    table(torch.tensor([1, 1, 7])).sum().backward()
    optimizer.step()
    monitor.finish()
    (row,) = rows(captured(service)[0])
    assert row == (pytest.approx(math.sqrt(4 * 4 + 4)), 2.0, 0, 0, 192, 192)


class Stacked(torch.optim.SGD):
    """Calls super().step(), so that torch runs its hooks twice; raises when told to."""

    fail = False

    def step(self, closure: object = None) -> None:
        if self.fail:
            raise RuntimeError("out of luck")
        super().step()


def test_a_subclass_and_a_raising_step_keep_the_count(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = Stacked(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.fail = step == 2
        if optimizer.fail:
            with pytest.raises(RuntimeError, match="out of luck"):
                optimizer.step()
        else:
            optimizer.step()
    monitor.finish()
    assert verdicts(service) == {s: s != 2 for s in range(5)}


def test_only_optimizers_that_own_watched_parameters_count(
    service: FakeService, watch: Watch
) -> None:
    model, other = mlp(), mlp()
    ours = torch.optim.SGD(model.parameters(), 1e-3)
    theirs = torch.optim.SGD(other.parameters(), 1e-3)
    monitor = watch(model)
    for step in range(3):
        for m, o in ((model, ours), (other, theirs), (other, theirs)):
            o.zero_grad()
            loss_of(m, step).backward()
            clip_grad_norm_(m.parameters(), 1.0)
            o.step()
    monitor.finish()
    assert sorted(captured(service)) == [0, 1, 2]


def test_unwatch_restores_torch_and_two_monitors_live_side_by_side(
    service: FakeService, watch: Watch
) -> None:
    from torch.nn.utils import clip_grad

    originals = (
        clip_grad._group_tensors_by_device_and_dtype,
        clip_grad._get_total_norm,
        torch.optim.Optimizer.zero_grad,
        nn.Module.zero_grad,
        torch.amp.GradScaler.step,
    )
    models = [mlp(), mlp()]
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in models]
    pair = [
        watch(m, o, run=f"twin-{i}")
        for i, (m, o) in enumerate(zip(models, optimizers, strict=True))
    ]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if step == 1:
            pair[0].unwatch()
    for monitor in pair:
        monitor.finish()
    counts = {
        key[0]: sum(bool(f.values) for f in held.values()) for key, held in service.frames.items()
    }
    assert counts == {"twin-0": 2, "twin-1": 4}
    assert originals == (
        clip_grad._group_tensors_by_device_and_dtype,
        clip_grad._get_total_norm,
        torch.optim.Optimizer.zero_grad,
        nn.Module.zero_grad,
        torch.amp.GradScaler.step,
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_log_belongs_to_its_step_wherever_the_loop_calls_it(
    when: str, service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(5):
        loss = loss_of(model, step)
        if when == "before":
            monitor.log(loss=torch.tensor(float(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if when == "after":
            monitor.log(loss=torch.tensor(float(step)))
    monitor.finish()
    told = {
        s: f.scalars["loss"] for s, fs in service.steps().items() for f in fs if "loss" in f.scalars
    }
    assert told == {s: float(s) for s in range(5)}


def test_steps_are_the_callers_and_a_rollback_opens_an_attempt(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer, start_step=100)
    for number in (100, 101, 102, 103, 101, 102):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()
        monitor.step(number)
    monitor.finish()
    first, second = sorted(service.frames, key=lambda key: len(key[1]))
    assert second[1] == f"{first[1]}.1"
    steps = [
        [f.step for _, f in sorted(service.frames[k].items()) if f.values] for k in (first, second)
    ]
    assert steps == [[100, 101, 102, 103], [101, 102]]
    assert [sorted(service.frames[k])[0] for k in (first, second)] == [1, 1]
    assert [s["first_step"] for s in service.starts] == [100, 101]
    assert [s["parent"] for s in service.starts] == [None, first[1]]


def test_the_first_bad_frame_leaves_at_once(service: FakeService, watch: Watch) -> None:
    import time

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        (loss_of(model, step) * (math.nan if step == 2 else 1)).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    until = time.monotonic() + 5
    while not any(f.step == 2 for f in service.all_frames()) and time.monotonic() < until:
        time.sleep(0.01)
    bad = [f for f in service.all_frames() if f.step == 2]
    assert [f.open for f in bad] == [True]
    monitor.log(loss=1.0)
    monitor.finish()
    rest = [f for f in service.all_frames() if f.step == 2][1:]
    assert [(f.open, f.stepped, f.scalars.get("loss"), f.values) for f in rest] == [
        (False, True, 1.0, b"")
    ]
