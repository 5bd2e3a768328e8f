"""Copies that are still on their way: never waited for, read in order, slots given back.

No accelerator is needed: a device is anything whose copies are ready only later, so the ring
is run here with events that the test fires. On a GPU it is run with real ones too.
"""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from gradwarden import collect
from gradwarden.collect import Collector, Pending, reading, to_words
from tests.needs import missing
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
    assert device.least < 495  # several were on their way at once
    assert device.free == 500


def test_superseded_copies_give_their_slots_back(
    service: FakeService, watch: Watch, device: Device
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    monitor = watch(model, optimizer)
    train(optimizer, model, 10, clips=4)
    monitor.finish()
    shown = [f.step for f in service.all_frames() if f.values]
    assert list(dict.fromkeys(shown)) == list(range(10))  # a slow step is shown as it stands too
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


# -- the ring -----------------------------------------------------------------------------


class Far(Tensor):
    """A host tensor that says that it is on a device."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]


def far(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).as_subclass(Far)


class Fired:
    """A CUDA event that is done when the test says so."""

    made: ClassVar[list[Fired]] = []

    def __init__(self) -> None:
        self.done = True
        self.made.append(self)

    def record(self, stream: object) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fired]]:
    monkeypatch.setattr(torch.cuda, "Event", Fired)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    yield Fired.made
    Fired.made.clear()


def test_slots_come_back_when_their_values_are_taken(events: list[Fired]) -> None:
    ring = Collector(2)
    first, second = ring.fetch(far(1, 2)), ring.fetch(far(3))
    assert first is not None
    assert second is not None
    assert ring.fetch(far(4)) is None
    assert ring.dropped == 1
    assert not first.ready
    assert not first.at_hand
    for event in events:
        event.done = True
    assert first.ready
    assert first.take().tolist() == [1.0, 2.0]
    third = ring.fetch(far(5))
    assert third is not None
    assert first.take().tolist() == [1.0, 2.0]  # it is memory of its own
    assert second.take().tolist() == [3.0]
    assert third.peek().tolist() == [5.0]
    assert len(events) == 2  # an event belongs to its slot


def test_a_slot_is_not_written_while_an_abandoned_copy_is_on_its_way(events: list[Fired]) -> None:
    ring = Collector(2)
    held, lost = ring.fetch(far(1)), ring.fetch(far(2))
    assert held is not None
    del lost
    gc.collect()
    assert ring.fetch(far(3)) is None  # another stream's copy might be the earlier one
    events[1].done = True
    assert ring.fetch(far(4)) is not None


def test_pinned_memory_is_bounded_and_told(events: list[Fired]) -> None:
    ring = Collector(64, limit=4096)
    assert ring.pinned_bytes == 0
    kept = [ring.fetch(far(*range(100))) for _ in range(6)]  # 800 bytes each
    assert [k is not None for k in kept] == [True] * 4 + [False] * 2
    assert ring.pinned_bytes == 4096
    larger = [ring.fetch(far(*range(1000))) for _ in range(3)]  # two slots whatever the limit
    assert [k is not None for k in larger] == [True, True, False]
    assert ring.pinned_bytes == 4096 + 2 * 8192
    assert kept[0] is not None
    assert kept[0].peek().tolist() == list(range(100))
    kept.clear()
    gc.collect()
    assert ring.pinned_bytes == 2 * 8192
    assert ring.fetch(far(1)) is None  # small samples share the larger ring


def test_a_reserved_ring_is_not_pinned_again(events: list[Fired]) -> None:
    ring = Collector(4)
    ring.reserve(1000)
    assert ring.pinned_bytes == 4096
    assert ring.fetch(far(*range(128))) is not None
    assert ring.fetch(torch.empty(0).as_subclass(Far)) is not None
    assert ring.pinned_bytes == 4096


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_words_arrive_bit_for_bit_through_pinned_memory() -> None:
    ring = Collector(2)
    words = torch.randint(-(2**62), 2**62, (5, 23), device="cuda")
    pending = ring.fetch(words)
    assert pending is not None
    torch.cuda.synchronize()
    assert pending.ready
    assert pending.peek().is_pinned()
    taken = pending.take()
    assert not taken.is_pinned()
    assert torch.equal(taken, words.cpu())


# -- what a host reads --------------------------------------------------------------------


def test_measured_words_are_read_as_numbers_and_checksums() -> None:
    numbers = torch.arange(44, dtype=torch.float64).view(2, 22) / 7
    numbers[1, 3] = torch.nan
    words = torch.cat([numbers.view(torch.int64), torch.tensor([[-5], [2**62]])], dim=1)
    found = reading(words)
    assert torch.equal(found.matrix.nan_to_num(-1.0), numbers.nan_to_num(-1.0))
    assert found.checksums is not None
    assert found.checksums.tolist() == [-5, 2**62]


def test_measured_floats_are_read_as_numbers_alone() -> None:
    found = reading(torch.full((3, 22), 0.5))
    assert found.matrix.dtype == torch.float64
    assert found.matrix.tolist() == [[0.5] * 22] * 3
    assert found.checksums is None


@pytest.mark.parametrize(
    "values", [torch.zeros(3, 5), torch.zeros(3, 22, dtype=torch.int64), torch.zeros(23)]
)
def test_anything_else_is_not_read(values: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[n, 23\] int64"):
        reading(values)


def test_words_keep_their_bits() -> None:
    raw = to_words(torch.tensor([[1, -1], [2**62, -(2**63)]]).t())
    assert struct.unpack("<4q", raw) == (1, 2**62, -1, -(2**63))
    assert to_words(torch.empty(0, dtype=torch.int64)) == b""


# -- beside a graph capture ---------------------------------------------------------------

RUNTIME = """
static int mode = 0, asked = 0;
int cudaThreadExchangeStreamCaptureMode(int *wanted) {
    int before = mode; mode = *wanted; *wanted = before; asked++; return 0;
}
int mode_now(void) { return mode; }
int times(void) { return asked; }
"""


def test_events_are_asked_in_relaxed_mode_of_the_loaded_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the CUDA runtime with its real name and signature, loaded as torch's is."""
    source, library = tmp_path / "runtime.c", tmp_path / "libcudart.so.0"
    source.write_text(RUNTIME)
    compiler = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.0"]
    try:
        subprocess.run([*compiler, "-o", library, source], check=True)
    except FileNotFoundError:
        missing("a C compiler", "apt-get install -y gcc libc6-dev")
    runtime = ctypes.CDLL(str(library), mode=os.RTLD_NOW)
    monkeypatch.setattr(torch.version, "cuda", "0.0")

    class Event:
        def query(self) -> bool:
            seen.append(runtime.mode_now())
            return True

    seen: list[int] = []
    assert collect.done(Event())
    assert seen == [2]  # cudaStreamCaptureModeRelaxed
    assert runtime.mode_now() == 0
    assert runtime.times() == 2
