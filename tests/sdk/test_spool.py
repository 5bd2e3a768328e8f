"""Outbox and spool: nothing lost that is not counted, order kept, torn tails survived."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gradwarden import spool as spooling
from gradwarden.outbox import Losses, Outbox, Record
from gradwarden.spool import Spool, lock, read_segment, segments


def record(number: int, size: int = 10, frames: int = 1) -> Record:
    return Record("batch", f"{number:010d}".encode() + b"x" * size, frames)


def number(found: Record) -> int:
    return int(found.body[:10])


class OutboxMachine(RuleBasedStateMachine):
    """An outbox over a small spool against a plain list: every frame is somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.losses = Losses()
        self.spool = Spool(Path(self.folder.name), "s", self.losses, 4000)
        self.spool.provide("start", Record("start", b"{}"))
        self.outbox = Outbox(self.losses, self.spool.append, 600, 5)
        self.put = 0
        self.delivered: list[int] = []

    @rule(size=st.integers(0, 300))
    def seal(self, size: int) -> None:
        self.put += 1
        self.outbox.put(record(self.put, size))

    @rule()
    def outage(self) -> None:
        for held in self.outbox.take_all():
            assert self.spool.append(held)

    @rule()
    def deliver(self) -> None:
        head = self.spool.head()
        if head is not None:
            if head.kind == "batch":
                self.delivered.append(number(head))
            self.spool.remove(head)
            return
        head = self.outbox.head()
        if head is not None:
            self.delivered.append(number(head))
            self.outbox.remove(head)

    @precondition(lambda self: self.put > 0)
    @rule(size=st.integers(0, 900))
    def overrun_while_in_flight(self, size: int) -> None:
        head = self.outbox.head() if self.spool.head() is None else None
        self.put += 1
        self.outbox.put(record(self.put, size))
        if head is not None:
            self.outbox.remove(head)
            self.delivered.append(number(head))

    @invariant()
    def order_is_kept(self) -> None:
        once = list(dict.fromkeys(self.delivered))
        assert once == sorted(once)

    @invariant()
    def every_frame_is_delivered_held_or_counted(self) -> None:
        held = self.spool.held + len(self.outbox)
        assert len(set(self.delivered)) + held + self.losses.total >= self.put
        assert self.spool.held >= 0
        assert self.outbox.bytes <= 1000 + 10

    def teardown(self) -> None:
        self.spool.close()
        self.folder.cleanup()


OutboxMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestOutbox = OutboxMachine.TestCase


def test_without_a_spool_the_oldest_goes_and_is_counted() -> None:
    losses = Losses()
    outbox = Outbox(losses, None, most_bytes=10_000, most_records=3)
    for n in range(5):
        outbox.put(record(n, frames=2))
    head = outbox.head()
    assert head is not None
    assert number(head) == 2
    assert losses.counts() == {"outbox full": 4}


def test_every_segment_begins_with_its_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooling, "SEGMENT_BYTES", 200)
    spool = Spool(tmp_path, "s", Losses())
    spool.provide("start", Record("start", b'{"attempt": "a"}'))
    spool.provide("layout", Record("layout", b"{}"))
    for n in range(20):
        assert spool.append(record(n, 50))
    found = [[r.kind for r in read_segment(p)] for p in segments(spool.directory)]
    assert len(found) > 3
    assert all(kinds[:2] == ["start", "layout"] for kinds in found)
    assert [
        number(r) for p in segments(spool.directory) for r in read_segment(p) if r.kind == "batch"
    ] == [*range(20)]
    spool.close()


def test_a_bounded_spool_drops_its_oldest_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooling, "SEGMENT_BYTES", 500)
    losses = Losses()
    spool = Spool(tmp_path, "s", losses, most_bytes=2000)
    for n in range(100):
        spool.append(record(n, 50))
    size = sum(p.stat().st_size for p in segments(spool.directory))
    assert size <= 2000
    assert losses.counts() == {"spool full": 100 - spool.held}
    left = []
    while (head := spool.head()) is not None:
        left.append(number(head))
        spool.remove(head)
    assert left == list(range(100 - len(left), 100))
    spool.close()
    assert not spool.directory.exists()


def test_a_tail_torn_at_any_byte_gives_the_whole_records(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s", Losses())
    for n in range(3):
        spool.append(record(n))
    spool.close()
    (path,) = segments(spool.directory)
    data = path.read_bytes()
    size = len(data) // 3
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert [number(r) for r in read_segment(path)] == list(range(end // size))


def test_a_flipped_byte_ends_the_segment_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s", Losses())
    for n in range(3):
        spool.append(record(n))
    spool.close()
    (path,) = segments(spool.directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert [number(r) for r in read_segment(path)] == [0]


def _write_and_hang(root: str, ready: object) -> None:
    spool = Spool(Path(root), "victim", Losses())
    for n in range(5):
        spool.append(record(n))
    ready.set()  # type: ignore[attr-defined]
    signal.pause()


def test_a_live_process_holds_its_lock_and_a_killed_one_does_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_write_and_hang, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(20)
    assert lock(tmp_path / "victim") is None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    held = lock(tmp_path / "victim")
    assert held is not None
    held.close()
    (path,) = segments(tmp_path / "victim")
    assert [number(r) for r in read_segment(path)] == list(range(5))
