"""Copies that are still on their way: never waited for, read in order, slots given back.

No accelerator is needed: a device is anything whose copies are ready only later, so the ring
is run here with events that the test fires.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwarden.collect import Collector, Pending
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService


class Later:
    """An event that is done a while after it was recorded."""

    def __init__(self, seconds: float) -> None:
        self.done = time.monotonic() + seconds

    def query(self) -> bool:
        return time.monotonic() >= self.done


class Device:
    """Replaces the host's direct path by one with slots and events."""

    def __init__(self, slots: int, seconds: float) -> None:
        self.free, self.least, self.seconds = slots, slots, seconds

    def fetch(self, tensor: Tensor) -> Pending | None:
        if self.free == 0:
            return None
        self.free -= 1
        self.least = min(self.least, self.free)
        return Pending(tensor.detach().clone(), Later(self.seconds), self.give_back)

    def give_back(self) -> None:
        self.free += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device(500, 0.05)
    monkeypatch.setattr(Collector, "fetch", lambda _, tensor: found.fetch(tensor))
    return found


def train(optimizer: Any, model: nn.Module, steps: int, clips: int = 1) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(clips):  # each micro-batch is clipped: earlier captures are superseded
            model(batch(step)).pow(2).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_late_copies_arrive_whole_and_in_order(
    service: FakeService, watch: Watch, device: Device
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    monitor = watch(model, optimizer)
    began = time.monotonic()
    train(optimizer, model, 30)
    assert time.monotonic() - began < 30 * device.seconds
    monitor.finish()
    assert [f.step for f in service.all_frames() if f.values] == list(range(30))
    assert device.least < 470
    assert device.free == 500


def test_superseded_copies_give_their_slots_back(
    service: FakeService, watch: Watch, device: Device
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    monitor = watch(model, optimizer)
    train(optimizer, model, 10, clips=4)
    monitor.finish()
    assert [f.step for f in service.all_frames() if f.values] == list(range(10))
    assert device.free == 500


def test_a_full_ring_drops_samples_and_counts_them(
    service: FakeService, watch: Watch, device: Device
) -> None:
    device.free, device.seconds = 1, 0.3
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    monitor = watch(model, optimizer)
    train(optimizer, model, 20)
    monitor.finish()
    shown = [f.step for f in service.all_frames() if f.values]
    assert shown[:1] == [0]
    told = sorted({f.step for f in service.all_frames() if f.capture})
    assert told == list(range(20))
    dropped = monitor.health()["dropped"]
    assert sum(dropped.values()) == 20 - len(shown)


def test_a_bad_step_on_a_device_leaves_when_its_copy_lands(
    service: FakeService, watch: Watch, device: Device
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    watch(model, optimizer)
    (model(batch(0)).sum() * float("nan")).backward()
    optimizer.step()
    end = time.monotonic() + 0.9  # well before an open step leaves by age
    while not any(f.values for f in service.all_frames()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_host_tensors_are_taken_as_they_are() -> None:
    values = torch.ones(3)
    pending = Collector(1).fetch(values)
    assert pending is not None
    assert pending.ready
    assert pending.take().data_ptr() == values.data_ptr()
