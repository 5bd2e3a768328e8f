"""Where the training thread is while no step ends, the place of a rank, and what led to an end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gradwarden import lifecycle
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.clock import Clock
from gradwarden.instruments.communication import Communication
from gradwarden.instruments.communication.passages import Passage
from gradwarden.standstill import FIRST, MOST_LOOKS, Standstill
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService


class Stuck:
    """A thread that waits for us, and what was said of it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.step = 5
        self.collective = ""
        self._inside, self._over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.waits_for_storage, daemon=True)
        self.thread.start()
        assert self._inside.wait(60)
        self.standstill = Standstill(
            lambda: self.step,
            lambda: self.thread.ident or 0,
            lambda: "data",
            lambda: self.collective,
            self.events.append,
        )

    def waits_for_storage(self) -> None:
        self._inside.set()
        self._over.wait()

    def end(self) -> None:
        self._over.set()
        self.thread.join()


@pytest.fixture
def stuck() -> Any:
    made = Stuck()
    yield made
    made.end()


def test_the_stack_is_told_after_two_minutes_without_a_step(stuck: Stuck) -> None:
    for now in (0.0, 60.0, FIRST - 1):
        stuck.standstill.look(now)
    assert stuck.events == []
    stuck.collective = "all-reduce 2 of 400 bytes"
    stuck.standstill.look(FIRST)
    (event,) = stuck.events
    assert (event["kind"], event["seconds"], event["phase"]) == ("stack", FIRST, "data")
    assert event["collective"] == stuck.collective
    assert any(line.endswith("waits_for_storage") for line in event["stack"])
    assert event["stack"][-1].endswith(" wait")


def test_it_is_told_again_whenever_the_time_doubled_and_not_for_ever(stuck: Stuck) -> None:
    for now in range(0, 100_000, 10):
        stuck.standstill.look(float(now))
    assert [e["seconds"] for e in stuck.events] == [FIRST * 2**n for n in range(MOST_LOOKS)]


def test_a_step_ends_the_standstill(stuck: Stuck) -> None:
    for now in range(0, 10_000, 100):
        stuck.step += 1
        stuck.standstill.look(float(now))
    assert stuck.events == []


def test_a_call_into_a_collective_is_named_where_nothing_else_hears_it(stuck: Stuck) -> None:
    source = compile("def barrier():\n    wait()", "torch/distributed/distributed_c10d.py", "exec")
    inside, over = threading.Event(), threading.Event()
    space: dict[str, Any] = {"wait": lambda: (inside.set(), over.wait())}
    exec(source, space)
    thread = threading.Thread(target=space["barrier"], daemon=True)
    thread.start()
    assert inside.wait(60)
    told: list[dict[str, Any]] = []
    standstill = Standstill(
        lambda: 1, lambda: thread.ident or 0, lambda: None, lambda: "", told.append
    )
    standstill.look(0.0)
    standstill.look(FIRST)
    over.set()
    thread.join()
    assert told[0]["collective"] == "barrier"


def test_a_run_that_stands_sends_its_stack(watch: Watch, service: FakeService) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer)
    model(batch(0)).sum().backward()
    optimizer.step()
    session = monitor._session
    session._pump.chores = lambda: None  # from here on the clock is ours
    later = time.monotonic() + 3600
    session._standstill.look(later)
    session._standstill.look(later + FIRST)
    monitor.finish()
    event = service.events("stack")[-1]
    assert any("test_a_run_that_stands_sends_its_stack" in line for line in event["stack"])


def test_the_reduction_that_did_not_return_is_named() -> None:
    listener = Communication(mlp(), "auto", FrameBook(), Faults())
    assert listener.pending() == ""
    clock = Clock()
    bucket, shard = Passage(2, 400, clock), Passage(0, 800, clock)
    listener._held(listener._passages, 1).append(bucket)
    listener._held(listener._exchanges, "all_gather").append(shard)
    assert listener.pending() == "all-reduce 2 of 400 bytes"
    bucket.end()
    assert listener.pending() == "all_gather 0 of 800 bytes"
    shard.end()
    assert listener.pending() == ""


def test_a_start_tells_its_place(
    watch: Watch, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWARDEN_NODE", "rack3-node7")
    monkeypatch.setenv("GRADWARDEN_ROLE", "stage0")
    model = mlp()
    watch(model, torch.optim.SGD(model.parameters(), 0.1)).finish()
    place = service.events("start")[0]["place"]
    assert (place["node"], place["role"], place["local_rank"]) == ("rack3-node7", "stage0", 0)


def test_a_loader_that_begins_marks_its_step(watch: Watch, service: FakeService) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer)
    loader = DataLoader(TensorDataset(torch.randn(12, 6)), batch_size=4)
    for _ in range(3):
        for (x,) in loader:
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    monitor.finish()
    marked = [f.step for f in service.all_frames() if "data_start" in f.scalars]
    assert marked == [0, 3, 6]


def test_an_end_tells_what_led_to_it() -> None:
    try:
        try:
            raise KeyError("weights")
        except KeyError as inner:
            raise ValueError("bad config") from inner
    except ValueError as error:
        told = lifecycle.failure(type(error), error, error.__traceback__)
    assert told["error"] == "ValueError: bad config"
    assert told["causes"] == ["KeyError: 'weights'"]
    assert told["memory_bytes"] > 0
