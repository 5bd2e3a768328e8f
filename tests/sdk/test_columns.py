"""What is taken beside the statistics: histograms, weights in turn, update ratios, checksums."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gradwarden import wire
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService

Column = dict[int, list[float]]


def column(service: FakeService, name: str) -> Column:
    """One column by step, NaN where it was not measured."""
    at, width = wire.COLUMNS.index(name), len(wire.COLUMNS)
    return {
        f.step: list(struct.unpack(f"<{len(f.values) // 4}f", f.values))[at::width]
        for f in service.all_frames()
        if f.values
    }


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seen: Callable[[int], None] = lambda step: None,
    spoil: tuple[int, ...] = (),
) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(batch(step)).pow(2).mean().mul(math.nan if step in spoil else 1.0).backward()
        seen(step)
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_update_ratio_is_how_far_the_step_moved_the_weights(
    service: FakeService, watch: Watch, kind: str
) -> None:
    model = mlp()
    optimizer = OPTIMIZERS[kind](model.parameters())
    monitor = watch(model, optimizer, preset="full")
    before: list[list[torch.Tensor]] = []
    train(
        model,
        optimizer,
        33,
        lambda _: before.append([p.detach().clone() for p in model.parameters()]),
    )
    before.append([p.detach().clone() for p in model.parameters()])
    monitor.finish()
    rows = len(before[0])
    found, norms = column(service, "update_ratio"), column(service, "weight_l2")
    measured = 0
    for step in range(33):
        for row, (old, new) in enumerate(zip(before[step], before[step + 1], strict=True)):
            if step % wire.SLICES == row:
                expected = float((new - old).norm() / old.norm())
                assert found[step][row] == pytest.approx(expected, rel=1e-4), (step, row)
                measured += 1
            else:
                assert math.isnan(found[step][row])
            if step < 20 or step % wire.SLICES == row:  # at first all of them
                assert norms[step][row] == pytest.approx(float(old.norm()), rel=1e-5)
            else:
                assert math.isnan(norms[step][row])
    assert measured == 2 * rows + 1


def test_a_skipped_step_moved_nothing(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    monitor = watch(model, optimizer, preset="full")
    for step in range(4):
        optimizer.zero_grad()
        loss = model(batch(step)).pow(2).mean() * (math.inf if step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    monitor.finish()
    moved = column(service, "update_ratio")
    assert moved[0][0] > 0
    assert moved[1][1] > 0
    assert math.isnan(moved[2][2])  # the optimizer did not step, so there is nothing to compare
    assert moved[3][3] > 0


def test_a_large_weight_is_sampled(service: FakeService, watch: Watch) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(300, 200, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    monitor = watch(layer, optimizer)
    old = layer.weight.detach().clone()
    layer(torch.randn(8, 300)).pow(2).mean().backward()
    optimizer.step()
    monitor.finish()
    expected = float((layer.weight.detach() - old).norm() / old.norm())
    assert column(service, "update_ratio")[0][0] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("preset", "steps"), [("light", []), ("standard", [0, 10]), ("full", None)]
)
def test_histograms_by_preset(
    service: FakeService, watch: Watch, preset: str, steps: list[int] | None
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, preset=preset)
    train(model, optimizer, 12)
    monitor.finish()
    taken = {name: column(service, name) for name in wire.COLUMNS}
    sizes = [p.numel() for p in model.parameters()]
    for step in range(12):
        bins = [taken[name][step] for name in wire.HISTOGRAM]
        if step in (range(12) if steps is None else steps):
            zeros = taken["zero"][step]
            assert [sum(b[i] for b in bins) + zeros[i] for i in range(len(sizes))] == sizes
        else:
            assert all(math.isnan(v) for b in bins for v in b)
    assert all(math.isnan(v) for v in taken["weight_l2"][3]) == (preset == "light")
    assert all(set(b.quantities) >= set(wire.QUANTITIES) for b in service.batches if b.layout)


def test_under_a_scaler_bins_and_norms_are_of_the_true_gradient(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    monitor = watch(model, optimizer, preset="full")
    scaler.scale(model(batch(0)).pow(2).mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    monitor.finish()
    model.zero_grad()
    model(batch(0)).pow(2).mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = [float(g.norm()) for g in gradients]
    assert column(service, "l2")[0] == pytest.approx(norms, rel=1e-5)
    edges = torch.tensor(wire.histogram_edges())
    for k in range(16):
        inside = [int((torch.bucketize(g.abs(), edges, right=True) == k).sum()) for g in gradients]
        assert column(service, f"hist_{k}")[0] == inside


def test_between_captured_steps_a_nan_is_noticed_and_shown_whole(
    service: FakeService, watch: Watch
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    healthy = {k: v.clone() for k, v in model.state_dict().items()}
    monitor = watch(model, optimizer, every=10)
    for step in range(25):
        monitor.log(loss=float(step))
        train(model, optimizer, 1, spoil=(0,) if step == 7 else ())
        model.load_state_dict(healthy)
    monitor.finish()
    nans = column(service, "nan")
    assert sorted(nans) == [0, 7, 10, 20]
    assert all(v > 0 for v in nans[7])
    losses = {f.step: f.scalars["loss"] for f in service.all_frames() if "loss" in f.scalars}
    assert losses == {s: float(s) for s in range(25)}
    verdicts = {f.step for f in service.all_frames() if f.stepped}
    assert verdicts == set(range(25))


def test_capture_on_demand_by_hand(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, every=100)
    train(model, optimizer, 5)
    monitor.capture(2)
    train(model, optimizer, 5)
    monitor.finish()
    assert sorted(column(service, "l2")) == [0, 5, 6]


def test_full_checksums_when_the_service_asks(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, every=50)
    sums: list[list[int]] = []

    def words(tensors: list[torch.Tensor]) -> list[int]:
        return [int(t.view(torch.int32).sum(dtype=torch.int64)) % 2**64 for t in tensors]

    monitor._session._orders.obey("checksums", {"steps": 2})
    train(
        model,
        optimizer,
        4,
        lambda _: sums.append(
            [
                *words([p.grad for p in model.parameters() if p.grad is not None]),
                *words([p.detach() for p in model.parameters()]),
            ]
        ),
    )
    monitor.finish()
    sent = {f.step: f.wide for f in service.all_frames() if f.wide}
    assert sorted(sent) == [0, 1]
    rows = len(list(model.parameters()))
    for step, wide in sent.items():
        pairs = struct.unpack(f"<{2 * rows}Q", wide)
        assert [*pairs[::2], *pairs[1::2]] == sums[step]


def test_the_service_changes_the_schedule(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer)
    train(model, optimizer, 2)
    monitor._session._orders.obey("schedule", {"every": 4, "preset": "light"})
    train(model, optimizer, 8)
    monitor.finish()
    assert sorted(column(service, "l2")) == [0, 1, 4, 8]


def test_a_halt_without_a_guard_is_refused_and_said(
    service: FakeService, watch: Watch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer)
    monitor._session._orders.obey("halt", {"reason": "maintenance"})
    train(model, optimizer, 2)
    assert not monitor.should_stop
    monitor.finish()
    assert [e["reason"] for e in service.events("halt_refused")] == ["maintenance"]
    assert "no gradwarden.Guard" in capfd.readouterr().err


def test_a_checkpoint_is_healthy_after_enough_clean_steps_and_never_a_poisoned_one(
    watch: Watch, tmp_path: Any
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    monitor = watch(model, optimizer)
    train(model, optimizer, 3)
    with monitor.checkpoint(tmp_path / "good", 3) as draft:
        torch.save(model.state_dict(), draft)
    monitor._session.checkpoints.wait(time.monotonic() + 60)
    train(model, optimizer, 150)
    assert monitor.last_healthy_checkpoint() is None
    train(model, optimizer, 50)
    found = monitor.last_healthy_checkpoint()
    assert found is not None
    assert (found.step, found.path, found.source) == (3, tmp_path / "good", "local")
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with monitor.checkpoint(tmp_path / "bad", 203) as draft:
        torch.save(model.state_dict(), draft)
    monitor._session.checkpoints.wait(time.monotonic() + 60)
    with torch.no_grad():
        next(model.parameters())[0, 0] = 0.0
    train(model, optimizer, 250)
    found = monitor.last_healthy_checkpoint()
    assert found is not None
    assert found.path == tmp_path / "good"
    monitor.finish()
