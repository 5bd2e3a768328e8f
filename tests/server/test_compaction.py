"""Compaction gives back exactly what came, wherever it is cut off."""

from __future__ import annotations

import math
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.columns import rollup
from gradwarden_server.store.compacting.build import build
from gradwarden_server.store.compacting.claims import Claim
from gradwarden_server.store.compacting.compaction import Compaction, LostClaim
from gradwarden_server.store.compacting.workshop import Workshop
from gradwarden_server.store.errors import Damaged, Unavailable
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.reading.pieces import READABLE
from gradwarden_server.store.shelves.spine import unpack
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store

LAYERS = len(LAYOUT.parameters)
DAY_NS = 86_400 * 10**9


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url)
    made.runs.put_layout(PROJECT, LAYOUT).result()
    yield made
    made.database.close()


def frames(first: int, last: int, rng: np.random.Generator) -> list[wire.Frame]:
    """Frames as a trainer sends them: noisy norms, a histogram now and then, slow columns in
    turns, a NaN, steps without a matrix, scalars, events, roots."""
    made = []
    for seq in range(first, last + 1):
        values = np.full((LAYERS, len(wire.COLUMNS)), np.nan, np.float32)
        values[:, :6] = 0
        values[:, :2] = rng.lognormal(size=(LAYERS, 2))
        if seq % 10 == 0:
            values[:, 6:22] = rng.integers(0, 50, (LAYERS, 16))
        values[seq % LAYERS, 22:] = rng.lognormal(size=2)
        if seq % 37 == 0:
            values[1, :4] = math.nan, math.inf, 3, 1
        if seq % 41 == 0:
            values[2, :] = math.nan  # not observed
        made.append(
            wire.Frame(
                seq,
                seq * 3,
                NOW + seq * 10**6,
                scalars={"loss": 1.0 / seq} | ({"lr": math.inf} if seq % 5 == 0 else {}),
                events=({"kind": "mark", "text": "é"},) if seq % 50 == 0 else (),
                capture="pre_clip",
                stepped=(None, True, False)[seq % 3],
                open=seq % 11 == 0,
                values=b"" if seq % 13 == 0 else values.astype("<f4").tobytes(),
                roots=rng.bytes(8 * wire.ROOT_WORDS) if seq % 2 else b"",
            )
        )
    return made


def send(store: Store, count: int, size: int = 7, rank: int = 0) -> list[wire.Batch]:
    """``count`` frames of one rank in batches of ``size``."""
    store.start(rank=rank, world_size=2)
    key = wire.StreamKey("r", "a1", rank, f"n-a1-{rank}")
    rng = np.random.default_rng(rank)
    sent = []
    for first in range(1, count + 1, size):
        some = tuple(frames(first, min(count, first + size - 1), rng))
        batch = wire.Batch(key, some, LAYOUT.hash, LAYERS, wire.COLUMNS, sent_ns=NOW + first)
        assert store.send(batch, NOW + first * 10**6)[0] == len(some)
        sent.append(batch)
    return sent


def told(store: Store) -> list[wire.Batch]:
    """Everything of the run, in the order of the log."""
    return [entry.batch() for entry in store.log.after(PROJECT, "r", 0, 100_000)]


def compactor(store: Store, frames: int = 64) -> Compaction:
    return Compaction(store.database, store.log, frames=frames)


def compact_all(compaction: Compaction) -> int:
    """Compact all there is; how many segments that made."""
    made = 0
    while due := compaction.due(NOW + DAY_NS):
        for one in due:
            made += compaction.compact(one) is not None
    return made


def counts(store: Store) -> dict[str, int]:
    with store.database.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (t.frame_batch, t.segment, t.chunk, t.rollup)
        }


def test_segments_give_the_very_batches_back(store: Store) -> None:
    sent = send(store, 200)
    before = told(store)
    assert before == sent
    assert compact_all(compactor(store)) == 4
    assert counts(store)["frame_batch"] == 0
    assert [*map(wire.encode, told(store))] == [*map(wire.encode, sent)]


def test_ranks_are_compacted_apart_and_read_in_the_order_of_the_log(store: Store) -> None:
    send(store, 30, rank=0)
    send(store, 60, rank=1)
    before = [(e.position, e.rank, e.batch()) for e in store.log.after(PROJECT, "r", 0, 1000)]
    compaction = compactor(store, frames=32)
    due = [one for one in compaction.due(NOW) if one.rank == 1]
    assert compaction.compact(due[0]) is not None
    after = [(e.position, e.rank, e.batch()) for e in store.log.after(PROJECT, "r", 0, 1000)]
    assert after == before
    for position in range(len(before)):
        page = store.log.after(PROJECT, "r", position, 3)
        assert [(e.position, e.rank, e.batch()) for e in page] == before[position : position + 3]


def test_what_is_written_while_a_segment_is_made_is_kept(store: Store) -> None:
    sent = send(store, 64)
    compaction = compactor(store)
    claim = compaction.claim(compaction.due(NOW + DAY_NS)[0])
    assert claim is not None
    made = compaction.make(claim)
    key = sent[0].stream
    late = tuple(frames(65, 70, np.random.default_rng(9)))
    more = wire.Batch(key, late, LAYOUT.hash, LAYERS, wire.COLUMNS)
    store.send(more)
    compaction.seal(claim, made, compaction.fill(claim, made))
    assert told(store) == [*sent, more]
    compaction.sweep(claim.due.stream_id)
    assert told(store) == [*sent, more]
    assert store.send(sent[3]) == (0, 7)  # a retry of what was compacted


STEPS: list[Callable[[Compaction, Claim], object]] = [
    lambda c, claim: None,
    lambda c, claim: c.fill(claim, c.make(claim)),
    lambda c, claim: c.seal(claim, c.make(claim), 0),
]


@pytest.mark.parametrize("done", range(4))
def test_a_crash_after_any_step_neither_loses_nor_doubles(store: Store, done: int) -> None:
    sent = send(store, 100)
    compaction = compactor(store)
    claim = compaction.claim(compaction.due(NOW + DAY_NS)[0])
    assert claim is not None
    for step in STEPS[:done]:
        step(compaction, claim)
    assert told(store) == sent
    successor = compactor(store)
    successor.recover(alone=True)
    assert told(store) == sent
    compact_all(successor)
    assert told(store) == sent
    assert counts(store)["frame_batch"] == 0
    with store.database.read() as connection:
        assert connection.execute(select(func.sum(t.segment.c.frames))).scalar_one() == 100
        assert connection.execute(select(t.stream.c.logged_frames)).scalar_one() == 0


def test_a_process_taken_for_dead_cannot_seal(store: Store) -> None:
    sent = send(store, 64)
    sleeper, other = compactor(store), compactor(store)
    due = sleeper.due(NOW + DAY_NS)[0]
    claim = sleeper.claim(due)
    assert claim is not None
    made = sleeper.make(claim)
    assert other.claim(due) is None  # it may still be alive
    with store.database.engine.begin() as connection:
        connection.execute(update(t.segment).values(claimed_ns=0))
    assert other.compact(due) is not None
    with pytest.raises(LostClaim):
        sleeper.seal(claim, made, 0)
    assert told(store) == sent


def test_a_damaged_chunk_is_refused_by_name_and_the_rest_is_read(store: Store) -> None:
    send(store, 64)
    compact_all(compactor(store))
    with store.database.engine.begin() as connection:
        where = (t.chunk.c.quantity == "l2", t.chunk.c.block == 0)
        body = connection.execute(select(t.chunk.c.body).where(*where)).scalar_one()
        broken = body[:20] + bytes([body[20] ^ 1]) + body[21:]
        connection.execute(update(t.chunk).where(*where).values(body=broken))
    with pytest.raises(Damaged, match=r"run 'r', rank 0, steps 3 to 192: l2 of rows 0 and on"):
        told(store)
    reader = store.log.segments
    [(segment, spine)] = reader.spines(reader.index(PROJECT, "r", 0, 1000))
    assert np.isfinite(reader.matrices(segment, spine, ["zero"])).any()


@pytest.mark.parametrize("frames_of_segment", [64, 1024])
def test_reads_say_the_same_before_and_after(store: Store, frames_of_segment: int) -> None:
    send(store, 1500, size=50)

    def read() -> dict[str, object]:
        found: dict[str, object] = {}
        for metric in READABLE:
            for first, last, cols in ((None, None, 60), (None, None, 4), (700, 3001, 2000)):
                picture = store.history.heatmap(PROJECT, "r", metric, first, last, cols)
                assert picture is not None
                found[f"{metric} {first} {cols}"] = picture.header, picture.cells
        keys = ["loss", "lr", "grad_norm", *(f"layer:{n % 3}:{q}" for n, q in enumerate(READABLE))]
        for first, last, points in ((None, None, 40), (None, None, 5000), (700, 3001, 100)):
            found[f"series {points}"] = store.history.series(
                PROJECT, "r", keys, first, last, points
            )
        found["histogram"] = store.history.histogram(PROJECT, "r", 1, 2000)
        found["ranks"] = store.history.of_ranks(PROJECT, "r", ["loss"], 100, 200)
        found["layers"] = store.history.layers(PROJECT, "r")
        found["span"] = store.log.span(PROJECT, "r")
        return found

    before = read()
    compact_all(compactor(store, frames_of_segment))
    assert counts(store)["frame_batch"] == 0
    after = read()
    for name, expected in before.items():
        assert after[name] == expected, name


def test_two_replicas_that_told_the_same_steps_count_once_after_compaction(store: Store) -> None:
    for rank in (0, 1):
        send(store, 200, size=20, rank=rank)
    before = store.history.heatmap(PROJECT, "r", "l2", None, None, 20)
    compact_all(compactor(store, 1024))
    assert store.history.heatmap(PROJECT, "r", "l2", None, None, 20) == before


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_roll_ups_are_what_the_steps_say(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 80))
    gaps = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    steps = np.cumsum(np.array(gaps)) + data.draw(st.integers(0, 3000))
    special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, 3e38, -2.5])
    numbers = st.one_of(st.floats(width=32), special)
    plain = data.draw(st.booleans())
    drawn = data.draw(
        st.lists(st.floats(-1, 1, width=32) if plain else numbers, min_size=count, max_size=count)
    )
    values = np.array(drawn, np.float32)[None, :]
    for width, rolled in rollup.roll(steps.astype(np.int64), values.view(np.uint32), None):
        numbers_of, starts = rollup.buckets(steps, width)
        ends = [*starts[1:].tolist(), count]
        for i, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
            assert (steps[start:end] // width == numbers_of[i]).all()
            part = values[0, start:end]
            finite = part[np.isfinite(part)].astype(np.float64)
            found = {name: rolled.values[name][0, i] for name in rollup.AGGREGATES}
            assert found["count"] == finite.size
            assert found["nonfinite"] == np.isinf(part).sum()
            if finite.size:
                assert (found["min"], found["max"]) == (finite.min(), finite.max())
                assert found["last"] == finite[-1]
                most = float(np.abs(finite).max())  # sums of opposite signs cancel
                bound = max(1e-6 * most, 2e-45)
                assert abs(float(found["mean"]) - finite.mean()) <= bound
                assert found["min"] <= found["mean"] <= found["max"]
            else:
                assert all(np.isnan(found[name]) for name in ("min", "max", "mean", "last"))


@pytest.mark.parametrize("bits", [0, 12])
def test_precision_rounds_norms_and_nothing_else(bits: int) -> None:
    rng = np.random.default_rng(3)
    batch = wire.Batch(
        wire.StreamKey("r", "a1", 0, "n"),
        tuple(frames(1, 50, rng)),
        LAYOUT.hash,
        LAYERS,
        wire.COLUMNS,
    )
    entry = LogEntry(1, 1, 0, 0, NOW, wire.encode(batch), 0, 0, 1, 3, 150, LAYOUT.hash)
    made = build([entry], bits)
    spine = unpack(made.body)
    np.testing.assert_array_equal(spine.scalars["loss"][1], [1.0 / n for n in range(1, 51)])
    exact = build([entry])
    rounded = {q for q, block, body in made.chunks if body not in {c[2] for c in exact.chunks}}
    assert rounded == ({"l2", "absmax", "weight_l2", "update_ratio"} if bits else set())


def test_roots_of_replicas_that_agreed_are_not_kept(store: Store) -> None:
    sent = send(store, 64)
    compaction = compactor(store)
    claim = compaction.claim(compaction.due(NOW + DAY_NS)[0])
    assert claim is not None
    assert compaction.make(claim).spine.rooted.any()  # nobody compared them yet
    store.evaluation.resume(PROJECT, claim.due.run_id, 1)
    with store.database.engine.begin() as connection:
        connection.execute(t.cursor.update().values(position=10**6))
    made = compaction.make(claim)
    compaction.seal(claim, made, compaction.fill(claim, made))
    compaction.sweep(claim.due.stream_id)
    bare = [replace(b, frames=tuple(replace(f, roots=b"") for f in b.frames)) for b in sent]
    assert told(store) == bare


def test_segments_made_in_another_process_are_the_same(store: Store) -> None:
    sent = send(store, 200)
    workshop = Workshop(store.database.url)
    try:
        elsewhere = Compaction(store.database, store.log, frames=64, workshop=workshop)
        claim = elsewhere.claim(elsewhere.due(NOW + DAY_NS)[0])
        assert claim is not None
        here = compactor(store).make(claim)
        made = elsewhere.make(claim)
        assert (made.body, made.chunks, made.rollups) == (here.body, here.chunks, here.rollups)
        elsewhere.abandon(claim)
        assert compact_all(elsewhere) == 4
        assert told(store) == sent
    finally:
        workshop.rest()


def test_a_process_that_dies_over_a_segment_costs_nothing(store: Store) -> None:
    sent = send(store, 64)
    workshop = Workshop(store.database.url)
    try:
        elsewhere = Compaction(store.database, store.log, frames=64, workshop=workshop)
        due = elsewhere.due(NOW + DAY_NS)[0]
        claim = elsewhere.claim(due)
        assert claim is not None
        elsewhere.make(claim)
        elsewhere.abandon(claim)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        with pytest.raises(Unavailable, match="died"):
            elsewhere.compact(due)
        assert told(store) == sent
        assert elsewhere.compact(due) is not None
        assert told(store) == sent
    finally:
        workshop.rest()


_KILLED = """\
import os, signal, sys
from gradwarden_server.store.compacting.workshop import Workshop

if __name__ == "__main__":
    print(Workshop(sys.argv[1])._open().submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_make_segments_end_with_a_killed_service(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    command = [sys.executable, str(script), f"sqlite:///{tmp_path}/gw.sqlite"]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while Path(f"/proc/{killed.stdout.strip()}").exists():
        assert time.monotonic() < deadline, "it outlives the service that it worked for"
        time.sleep(0.05)
