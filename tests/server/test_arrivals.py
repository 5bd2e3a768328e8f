"""What several trainers say while a commit is under way is written together, and judged apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.errors import RunAlreadyLive, UnknownLayout, UnknownStream
from gradwarden_server.store.records import Ack, Heartbeat, StartRequest
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store, batch, frame
from tests.server.test_writer import PATIENCE, Gate


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    sqlite = f"sqlite:///{tmp_path}/gw.sqlite"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made = Store(url)
    made.runs.put_layout(PROJECT, LAYOUT).result(PATIENCE)
    yield made
    made.database.close()


def logged(store: Store, rank: int = 0) -> tuple[int, int]:
    """Frames of a stream that no segment holds, and the bytes of their matrices."""
    columns = select(t.stream.c.logged_frames, t.stream.c.logged_bytes)
    with store.database.read() as connection:
        row = connection.execute(columns.where(t.stream.c.rank == rank)).one()
        return row.logged_frames, row.logged_bytes


def test_batches_of_one_stream_that_overlap_in_one_commit_are_stored_once(store: Store) -> None:
    store.start()
    gate = Gate(store.database)
    gate.wait()
    pieces = ((1, 3), (2, 5), (9, 9), (1, 5), (4, 10))
    acks = [
        store.append(batch(*(frame(seq) for seq in range(first, last + 1))))
        for first, last in pieces
    ]
    gate.open()
    assert [ack.result(PATIENCE) for ack in acks] == [
        Ack(3, 0),
        Ack(2, 2),
        Ack(1, 0),
        Ack(0, 5),
        Ack(4, 3),
    ]
    assert sorted(seq for _, _, seq, _ in store.stored_frames()) == list(range(1, 11))
    assert [e.position for e in store.log.after(PROJECT, "r", 0, 99)] == [1, 2, 3, 4, 5]
    assert logged(store) == (10, 10 * 3 * 6 * 4)
    assert store.send(batch(*(frame(seq) for seq in range(1, 12)))) == (1, 10)


def test_whatever_is_sent_at_once_is_stored_once_and_without_holes(store: Store) -> None:
    chance = random.Random(7)
    for rank in range(3):
        store.start(rank=rank)
    acks, expected = [], set()
    for _ in range(120):
        rank, first = chance.randrange(3), chance.randrange(1, 60)
        seqs = range(first, first + chance.randrange(1, 9))
        expected |= {(rank, seq) for seq in seqs}
        acks.append(store.append(batch(*(frame(seq) for seq in seqs), rank=rank)))
    stored = sum(ack.result(PATIENCE).stored for ack in acks)
    held = [(rank, seq) for _, rank, seq, _ in store.stored_frames()]
    assert stored == len(held) == len(expected)
    assert set(held) == expected
    positions = [entry.position for entry in store.log.after(PROJECT, "r", 0, 10_000)]
    assert positions == list(range(1, len(positions) + 1))
    total = sum(logged(store, rank)[0] for rank in range(3))
    assert total == len(expected)


def test_two_processes_that_write_the_same_runs_do_not_wait_for_each_other_for_ever(
    postgres_url: str,
) -> None:
    one, two = Store(postgres_url), Store(postgres_url)
    one.runs.put_layout(PROJECT, LAYOUT).result(PATIENCE)
    names = [f"run-{i}" for i in range(12)]
    for name in names:
        one.start(run=name)
    writes = []
    for seq in range(1, 16):
        for mine, order in ((one, names), (two, names[::-1])):
            for name in order:
                key = wire.StreamKey(name, "a1", 0, "n-a1-0")
                beat = Heartbeat(name, "a1", 0, "n-a1-0", seq, None, NOW)
                writes.append(mine.append(wire.Batch(key, (frame(seq),), LAYOUT.hash, 3)))
                mine.runs.heartbeat(PROJECT, beat, NOW)
    acks = [write.result(3 * PATIENCE) for write in writes]
    assert sum(ack.stored for ack in acks) == sum(ack.duplicate for ack in acks) == 12 * 15
    for name in names:
        entries = one.log.after(PROJECT, name, 0, 100)
        assert [entry.position for entry in entries] == list(range(1, 16))
    one.database.close()
    two.database.close()


def test_each_refusal_is_its_own_and_changes_nothing(store: Store) -> None:
    store.start()
    lost = wire.Batch(wire.StreamKey("r", "a1", 0, "n-a1-0"), (frame(7),), "0" * 32, 3)
    foreign = wire.Batch(wire.StreamKey("r", "a1", 0, "other"), (frame(8),), LAYOUT.hash, 3)
    gate = Gate(store.database)
    gate.wait()
    good = [store.append(batch(frame(seq))) for seq in (1, 2)]
    refused = [
        (store.append(batch(frame(1), rank=5)), UnknownStream),
        (store.append(batch(frame(1), rank=2**62)), UnknownStream),
        (store.append(lost), UnknownLayout),
        (store.append(foreign), RunAlreadyLive),
        (store.append(wire.Batch(foreign.stream, (frame(9),), "0" * 32, 3)), RunAlreadyLive),
    ]
    last = store.append(batch(frame(3)))
    gate.open()
    for append, reason in refused:
        with pytest.raises(reason):
            append.result(PATIENCE)
    assert [ack.result(PATIENCE) for ack in (*good, last)] == [Ack(1, 0)] * 3
    assert [seq for _, _, seq, _ in store.stored_frames()] == [1, 2, 3]
    assert logged(store) == (3, 3 * 3 * 6 * 4)


def test_starts_heartbeats_and_frames_share_a_commit(store: Store) -> None:
    store.start(rank=0)
    beat = Heartbeat("r", "a1", 0, "n-a1-0", 4, "train", NOW + 50)
    stranger = Heartbeat("r", "a1", 0, "other", 4, "train", NOW + 50)
    newcomer = StartRequest("r", "a1", 1, "n-a1-1", "node2", 8)
    other_run = StartRequest("another", "a1", 0, "n", "node3", 9)
    twin = StartRequest("r", "a1", 0, "twin", "node4", 10)
    gate = Gate(store.database)
    gate.wait()
    starts = [store.runs.start(PROJECT, who, NOW + 60) for who in (newcomer, other_run)]
    refused = store.runs.start(PROJECT, twin, NOW + 60)
    beats = [store.runs.heartbeat(PROJECT, who, NOW + 60) for who in (beat, stranger)]
    ack = store.append(batch(frame(1)), NOW + 55)
    gate.open()
    assert [(s.result(PATIENCE).run, s.result(PATIENCE).ordinal) for s in starts] == [
        ("r", 1),
        ("another", 1),
    ]
    assert ack.result(PATIENCE) == Ack(1, 0)
    beats[0].result(PATIENCE)
    for write in (refused, beats[1]):
        with pytest.raises(RunAlreadyLive) as refusal:
            write.result(PATIENCE)
        assert refusal.value.host == "node1"
    streams = store.runs.streams(PROJECT, "r")
    assert [(s.rank, s.host, s.heartbeat_ns, s.last_step, s.phase) for s in streams] == [
        (0, "node1", NOW + 60, 4, "train"),
        (1, "node2", None, None, None),
    ]


def test_frames_and_the_end_of_a_run_in_one_commit_end_it(store: Store) -> None:
    for rank in range(2):
        store.start(rank=rank)
    end = {"events": ({"kind": "finish", "status": "finished"},)}
    gate = Gate(store.database)
    gate.wait()
    acks = [store.append(batch(frame(1), frame(2, **end), rank=rank)) for rank in range(2)]
    gate.open()
    assert [ack.result(PATIENCE) for ack in acks] == [Ack(2, 0)] * 2
    run = store.runs.get(PROJECT, "r")
    assert run is not None
    assert (run.status, run.ended_ns, run.last_step) == ("finished", NOW + 2, 1)
    assert [(e.rank, e.kind) for e in store.runs.events(PROJECT, "r")] == [
        (0, "finish"),
        (1, "finish"),
    ]
