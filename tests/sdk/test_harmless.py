"""Training with us is bit for bit training without us, whatever the service or we do."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from gradwarden import facts, hooks, stats, wire
from gradwarden.capture import Watcher
from gradwarden.courier import Courier
from gradwarden.frames import FrameBook
from gradwarden.gauge import Gauge
from gradwarden.identity import Resolver
from gradwarden.layout import BackwardOrder
from gradwarden.narrator import Narrator
from gradwarden.owner import Owner
from gradwarden.owners import Owners
from gradwarden.sync import sync
from gradwarden.tripwires import Tripwires
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService, problem

STEPS = 8
Digest = list[list[float]]


def train(
    monitor: Any = None, model: nn.Module | None = None, optimizer: Any = None
) -> list[bytes]:
    """Weights and gradients of every step, as bytes."""
    model = model or mlp()
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), 1e-2)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(step)).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        if monitor is not None:
            monitor.log(loss=loss, lr=1e-2)
            with monitor.phase("data"):
                monitor.mark("x", 1)
        for parameter in model.parameters():
            for tensor in (parameter.detach(), parameter.grad):
                seen.append(json.dumps([v.hex() for v in tensor.flatten().tolist()]).encode())
    return seen


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp()
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def test_weights_and_gradients_are_bit_identical(service: FakeService, watch: Watch) -> None:
    plain = train()
    model, optimizer = pair()
    monitor = watch(model, optimizer)
    assert train(monitor, model, optimizer) == plain
    monitor.finish()
    assert sum(bool(f.values) for f in service.all_frames()) == STEPS


ANSWERS: dict[str, Any] = {
    "500 at every step": lambda path, n: (500, {}, {}),
    "503 and come back later": lambda path, n: (503, {}, {"Retry-After": "1"}),
    "not what we speak": lambda path, n: (200, {"commands": "boo"}, {}),
    "no such page": lambda path, n: problem(404, "not-found"),
    "forbidden": lambda path, n: problem(403, "forbidden-project"),
    "slow": lambda path, n: time.sleep(0.2),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_a_service_that_misbehaves_changes_nothing(how: str, tmp_path: Path) -> None:
    plain = train()
    with FakeService(ANSWERS[how]) as service:
        model, optimizer = pair()
        options: dict[str, Any] = {"url": service.url, "spool": tmp_path, "exit_seconds": 1}
        monitor = gradwarden.watch(model, optimizer, run="r", **options)
        assert train(monitor, model, optimizer) == plain
        monitor.finish()
    assert monitor.health()["dropped"] == {}


def test_frames_of_an_outage_come_later_in_order_and_once(tmp_path: Path) -> None:
    service = FakeService()
    model, optimizer = pair()
    monitor = gradwarden.watch(
        model, optimizer, run="r", url=service.url, spool=tmp_path, exit_seconds=1
    )
    train(monitor, model, optimizer)
    until(lambda: len(service.all_frames()) >= STEPS - 1)
    service.stop()
    train(monitor, model, optimizer)
    until(lambda: monitor.health()["spooled"] > 0)
    service.restart()
    train(monitor, model, optimizer)
    monitor.finish()
    left = list(tmp_path.glob("*/*.spool"))
    if left:  # the backoff had not ended at exit: the spool has the rest
        assert sync(tmp_path, service.url).ok
    (held,) = service.frames.values()
    assert sorted(held) == list(range(1, max(held) + 1))
    assert [f.step for _, f in sorted(held.items()) if f.values] == list(range(3 * STEPS))
    assert service.events("finish") == [{"kind": "finish", "status": "finished"}]
    firsts = [b.first_seq for b in service.batches]
    assert firsts == sorted(firsts)
    service.stop()


def test_the_page_of_the_run_is_said_once(
    service: FakeService, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = pair()
    monitor = gradwarden.watch(model, optimizer, url=service.url, spool=tmp_path, run="r")
    train(monitor, model, optimizer)
    monitor.finish()
    assert capfd.readouterr().err.count(f"gradwarden: this run's page: {service.url}/runs/r\n") == 1


def test_without_a_service_the_run_is_spooled_and_synced(
    service: FakeService, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = pair()
    monitor = gradwarden.watch(model, optimizer, spool=tmp_path / "a", config={"depth": 3})
    train(monitor, model, optimizer)
    monitor.finish()
    assert f"gradwarden sync {tmp_path / 'a'}" in capfd.readouterr().err
    seen: list[tuple[int, int]] = []
    report = sync(
        tmp_path / "a", service.url, progress=lambda _, done, size: seen.append((done, size))
    )
    assert report.ok
    assert report.acked == len(service.all_frames())
    assert sum(bool(f.values) for f in service.all_frames()) == STEPS
    assert service.starts[0]["config"] == {"depth": 3}
    assert list((tmp_path / "a").iterdir()) == []
    assert all(done <= size for done, size in seen)


FAULTS: list[tuple[Any, str, str]] = [
    (stats, "measure", "capture at clipping"),
    (Gauge, "take", "capture at clipping"),
    (Gauge, "after_step", "capture at the step"),
    (Watcher, "_settle", "capture at the step"),
    (Owners, "cleared_by", "skipped steps"),
    (FrameBook, "capture", "capture at clipping"),
    (FrameBook, "scalar", "log"),
    (FrameBook, "event", "mark"),
    (Narrator, "enter_phase", "phase"),
    (BackwardOrder, "finish", "capture at clipping"),
    (Owner, "fresh", "skipped steps"),
]


@pytest.mark.parametrize(("owner", "name", "feature"), FAULTS, ids=lambda v: str(v)[:40])
def test_our_own_bugs_stay_ours_and_are_counted(
    owner: Any,
    name: str,
    feature: str,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain = train()
    model, optimizer = pair()
    monitor = watch(model, optimizer)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("our bug")

    monkeypatch.setattr(owner, name, broken)
    assert train(monitor, model, optimizer) == plain
    monkeypatch.undo()
    missed = monitor.health()["disabled"]
    assert missed.get(feature, 0) >= STEPS - 1, missed
    monitor.finish()
    told = capfd.readouterr().err
    assert told.count(f"{feature} failed (RuntimeError: our bug)") == 1
    assert f"missed {missed[feature]} times: {feature}" in told


THREADS: list[tuple[Any, str]] = [
    (wire, "encode"),
    (Tripwires, "advance"),
    (Courier, "deliver"),
    (Resolver, "look"),
    (facts, "start_record"),
]


@pytest.mark.parametrize(("owner", "name"), THREADS, ids=lambda v: str(v)[-30:])
def test_bugs_in_our_threads_cost_frames_that_are_counted(
    owner: Any, name: str, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train()
    model, optimizer = pair()
    monitor = watch(model, optimizer, exit_seconds=2)
    broken_until = time.monotonic() + 0.5

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("our bug")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        assert train(monitor, model, optimizer) == plain
        until(lambda: time.monotonic() > broken_until)
    monitor.finish()
    health = monitor.health()
    assert health["disabled"], health
    assert health["dropped"] or owner in (Tripwires, Resolver, facts)


def test_numbers_that_are_none_never_raise(service: FakeService, watch: Watch) -> None:
    model, optimizer = pair()
    monitor = watch(model, optimizer)
    monitor.log(a=object(), b=torch.ones(2), c=torch.tensor(2.0, requires_grad=True))  # type: ignore[arg-type]
    monitor.log(**{"x" * 200: 1.0}, d=math.nan, e=True, f=10**400, g=torch.tensor(7))
    monitor.mark("", object())
    monitor.log(h=torch.ones((), dtype=torch.complex64), i=torch.ones((), device="meta"))
    monitor.step(-3)
    monitor.step("four")  # type: ignore[arg-type]
    monitor.log(c=torch.tensor(2.0))
    monitor.finish("bogus")
    (frame,) = [f for f in service.all_frames() if f.scalars]
    assert {k: v for k, v in frame.scalars.items() if k != "d"} == {"c": 2.0, "e": 1.0, "g": 7.0}
    assert math.isnan(frame.scalars["d"])
    (finish,) = service.events("finish")
    assert finish["status"] == "finished"


def test_disabled_means_not_there(
    service: FakeService,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GRADWARDEN_DISABLED", "1")
    plain = train()
    model, optimizer = pair()
    monitor = watch(model, optimizer)
    assert hooks.found == ()
    assert train(monitor, model, optimizer) == plain
    with monitor.checkpoint(tmp_path / "c", 1) as draft:
        draft.write_text("kept")
    monitor.finish()
    assert (tmp_path / "c").read_text() == "kept"
    assert service.requests == []
    assert monitor.health()["off"] is True
    assert capfd.readouterr().err == ""


def test_after_the_end_nothing_is_on_and_a_checkpoint_is_saved_and_not_looked_at(
    service: FakeService, watch: Watch, tmp_path: Path
) -> None:
    monitor = watch(*pair())
    assert monitor.health()["instruments"]["anatomy"] == "on"
    monitor.finish()
    assert set(monitor.health()["instruments"].values()) == {"off: the watch is over"}
    with monitor.checkpoint(tmp_path / "c", 1) as draft:
        draft.write_text("kept")
    assert (tmp_path / "c").read_text() == "kept"
    assert not any(t.name == "gradwarden-checksum" for t in threading.enumerate())
    assert monitor.last_healthy_checkpoint() is None


def test_a_spool_that_cannot_be_written_is_counted_loss(tmp_path: Path) -> None:
    blocker = tmp_path / "spool"
    model, optimizer = pair()
    monitor = gradwarden.watch(model, optimizer, spool=blocker, run="r")
    blocker.write_text("a file in the way, made after the arguments were checked")
    plain = train()
    assert train(monitor, model, optimizer) == plain
    monitor.finish()
    assert sum(monitor.health()["dropped"].values()) >= STEPS


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
