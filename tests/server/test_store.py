"""The store over both databases: exactly once, identity, order, fencing, migrations."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden import wire
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import (
    DatabaseInUse,
    Fenced,
    RunAlreadyLive,
    UnknownLayout,
    UnknownStream,
)
from gradwarden_server.store.judging.evaluation import Cursor, EvaluationStore, Snapshot
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.log.frames import FrameLog
from gradwarden_server.store.log.placing import FUTURE_NS
from gradwarden_server.store.log.recorded import RecordedSeries
from gradwarden_server.store.reading.history import History
from gradwarden_server.store.records import LIVE_NS, Ack, Heartbeat, StartRequest
from gradwarden_server.store.runs import RunStore

NOW = 1_800_000_000_000_000_000
PROJECT = "vision"
LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{i}.weight", (4, 4), "float32", f"blocks.{i}", "matrix")
        for i in range(3)
    ),
    (2, 1, 0),
)


class Store:
    """Every room of the store over one database."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.migrate()
        self.runs = RunStore(self.database)
        self.frames = FrameLog(self.database)
        self.log = LogReader(self.database)
        self.history = History(self.log, self.runs)
        self.evaluation = EvaluationStore(self.database)
        self.recorded = RecordedSeries(self.database)

    def start(
        self, run: str = "r", attempt: str = "a1", rank: int = 0, at: int = NOW, **facts: object
    ) -> int:
        values = {"nonce": f"n-{attempt}-{rank}", "host": "node1", "pid": 7, "started_ns": at}
        request = StartRequest(run, attempt, rank, **{**values, **facts})  # type: ignore[arg-type]
        return self.runs.start(PROJECT, request, at).result().ordinal

    def append(self, batch: wire.Batch, at: int = NOW) -> Future[Ack]:
        raw = wire.encode(batch)
        return self.frames.append(PROJECT, wire.check(raw).header, raw, at)

    def send(self, batch: wire.Batch, at: int = NOW) -> tuple[int, int]:
        ack = self.append(batch, at).result()
        return ack.stored, ack.duplicate

    def beat(self, attempt: str, at: int, sent: int | None = None, rank: int = 0) -> None:
        nonce = f"n-{attempt}-{rank}"
        beat = Heartbeat("r", attempt, rank, nonce, 0, None, at if sent is None else sent)
        self.runs.heartbeat(PROJECT, beat, at).result()

    def stored_frames(self, run: str = "r") -> list[tuple[int, int, int, bytes]]:
        """(attempt ordinal, rank, seq, values) of every frame in the log, in log order."""
        return [
            (entry.ordinal, entry.rank, frame.seq, frame.values)
            for entry in self.log.after(PROJECT, run, 0, 100_000)
            for frame in entry.batch().frames
        ]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url)
    yield made
    made.database.close()


def frame(seq: int, step: int | None = None, value: float = 1.0, **facts: object) -> wire.Frame:
    values = struct.pack("<18f", *([value, value, 0, 0, 0, 0] * 3))
    step = seq - 1 if step is None else step
    return wire.Frame(seq, step, NOW + seq, values=values, **facts)  # type: ignore[arg-type]


def batch(*frames: wire.Frame, attempt: str = "a1", rank: int = 0) -> wire.Batch:
    key = wire.StreamKey("r", attempt, rank, f"n-{attempt}-{rank}")
    return wire.Batch(key, frames, LAYOUT.hash, 3)


def test_a_retried_batch_is_stored_once(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start()
    assert store.send(batch(frame(1), frame(2))) == (2, 0)
    assert store.send(batch(frame(1), frame(2))) == (0, 2)
    assert [row[2] for row in store.stored_frames()] == [1, 2]


def test_what_cannot_be_read_later_is_refused_and_changes_nothing(store: Store) -> None:
    with pytest.raises(UnknownStream):
        store.send(batch(frame(1)))
    store.start()
    with pytest.raises(UnknownLayout):
        store.send(batch(frame(1)))
    assert store.stored_frames() == []
    assert store.runs.get(PROJECT, "r").position == 0  # type: ignore[union-attr]


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Batches as (attempt, first seq, last seq): cut anew, reordered and repeated at will."""
    sent: list[tuple[str, int, int]] = []
    for attempt, length in (("a1", draw(st.integers(1, 12))), ("a2", draw(st.integers(1, 12)))):
        for _ in range(draw(st.integers(1, 3))):
            cuts = draw(st.sets(st.integers(2, length), max_size=4)) if length > 1 else set()
            edges = [1, *sorted(cuts), length + 1]
            sent += [(attempt, a, b - 1) for a, b in itertools.pairwise(edges)]
    return draw(st.permutations(sent))


@given(sent=deliveries())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rebatched_reordered_and_replayed_frames_are_each_stored_once(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[str, int, int]]
) -> None:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('log')}/gw.sqlite")
    try:
        store.runs.put_layout(PROJECT, LAYOUT).result()
        store.start(attempt="a1")
        # The second attempt is a rollback: its steps begin again at 3.
        store.start(attempt="a2", first_step=3, takeover=True)
        offset = {"a1": 0, "a2": 3}
        for attempt, first, last in sent:
            frames = [frame(s, s - 1 + offset[attempt], float(s)) for s in range(first, last + 1)]
            store.send(batch(*frames, attempt=attempt))
        length = {a: max(last for b, _, last in sent if b == a) for a in ("a1", "a2")}
        expected = sorted(
            (ordinal, 0, s, frame(s, 0, float(s)).values)
            for ordinal, a in ((1, "a1"), (2, "a2"))
            for s in range(1, length[a] + 1)
        )
        assert sorted(store.stored_frames()) == expected
    finally:
        store.database.close()


def test_positions_are_dense_and_in_commit_order(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    for rank in range(4):
        store.start(rank=rank)
    acks = [
        store.append(b)
        for seq in range(1, 11)
        for b in [batch(frame(seq), rank=rank) for rank in range(4)]
    ]
    for ack in acks:
        ack.result()
    positions = [entry.position for entry in store.log.after(PROJECT, "r", 0, 1000)]
    assert positions == list(range(1, 41))


def test_a_resumed_run_is_the_same_run_with_its_next_attempt(store: Store) -> None:
    assert store.start(attempt="a1", at=NOW) == 1
    assert store.start(attempt="a1", at=NOW) == 1
    assert store.start(attempt="a2", at=NOW + 1, first_step=40) == 2
    attempts = store.runs.attempts(PROJECT, "r")
    assert [(a.ordinal, a.first_step, a.parent) for a in attempts] == [
        (1, 0, None),
        (2, 40, "a1"),
    ]


def test_a_second_live_process_is_refused_with_the_first_ones_host(store: Store) -> None:
    store.start(attempt="a1")
    store.beat("a1", NOW)
    with pytest.raises(RunAlreadyLive) as refusal:
        store.start(attempt="a2", at=NOW + LIVE_NS - 1, host="node2")
    assert (refusal.value.host, refusal.value.pid) == ("node1", 7)
    # Three missed heartbeats later the first one counts as gone.
    assert store.start(attempt="a2", at=NOW + LIVE_NS + 1, host="node2") == 2


def test_a_takeover_on_the_same_host_needs_no_waiting(store: Store) -> None:
    store.start(attempt="a1")
    store.beat("a1", NOW)
    assert store.start(attempt="a2", at=NOW + 1, takeover=True) == 2
    assert [s.ended for s in store.runs.streams(PROJECT, "r")] == [True, False]


def test_frames_of_a_process_that_does_not_hold_the_stream_are_refused(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start()
    key = wire.StreamKey("r", "a1", 0, "another")
    with pytest.raises(RunAlreadyLive):
        store.send(wire.Batch(key, (frame(1),), LAYOUT.hash, 3))


def test_an_old_spool_does_not_reopen_an_ended_run(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start(attempt="a2", at=NOW)
    end = wire.Frame(1, 9, NOW, events=({"kind": "finish", "status": "finished"},))
    store.send(batch(end, attempt="a2"))
    store.start(attempt="a1", at=NOW - 10**12)
    store.send(batch(frame(1), attempt="a1"))
    assert store.runs.get(PROJECT, "r").status == "finished"  # type: ignore[union-attr]


def test_the_failure_of_one_rank_is_the_runs(store: Store) -> None:
    for rank in range(2):
        store.start(rank=rank)
    for rank, status in ((1, "failed"), (0, "cancelled")):
        end = wire.Frame(1, 9, NOW, events=({"kind": "finish", "status": status},))
        store.send(batch(end, rank=rank))
    assert store.runs.get(PROJECT, "r").status == "failed"  # type: ignore[union-attr]


def test_a_host_clock_far_ahead_is_stored_at_receipt_and_flagged(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start()
    ahead = wire.Frame(1, 0, NOW + FUTURE_NS + 10**9, values=frame(1).values)
    store.send(batch(ahead), at=NOW)
    assert [e.kind for e in store.runs.events(PROJECT, "r")] == ["clock"]
    series = store.history.series(PROJECT, "r", ["grad_norm"], None, None, 10)
    assert series.time_ns == [NOW]


def test_a_skewed_host_clock_is_corrected_by_its_heartbeats(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start()
    hour = 3600 * 10**9
    store.beat("a1", NOW, sent=NOW - hour)
    store.send(batch(wire.Frame(1, 0, NOW - hour + 5, values=frame(1).values)), at=NOW + 10)
    series = store.history.series(PROJECT, "r", ["grad_norm"], None, None, 10)
    assert series.time_ns == [NOW + 5]


def test_projects_do_not_see_each_other(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start()
    store.send(batch(frame(1)))
    assert store.runs.get("speech", "r") is None
    assert store.runs.layout("speech", LAYOUT.hash) is None
    assert store.log.after("speech", "r", 0, 10) == []
    assert store.history.heatmap("speech", "r", "l2", None, None, 10) is None


def test_superseded_steps_give_way_to_the_newest_attempt(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start(attempt="a1")
    store.send(batch(*(frame(s, value=1.0) for s in range(1, 11))))
    store.start(attempt="a2", at=NOW + 1, first_step=6)
    store.send(batch(*(frame(s, s + 5, value=2.0) for s in range(1, 8)), attempt="a2"))
    series = store.history.series(PROJECT, "r", ["layer:0:l2"], None, None, 100)
    assert series.step == list(range(13))
    assert series.keys["layer:0:l2"]["last"] == [1.0] * 6 + [2.0] * 7


def test_a_single_nan_and_a_single_spike_are_visible_at_every_zoom(store: Store) -> None:
    store.runs.put_layout(PROJECT, LAYOUT).result()
    store.start()
    frames = [frame(s) for s in range(1, 201)]
    rows = [1.0, 1.0, 0, 0, 0, 0] * 3
    frames[120] = wire.Frame(
        121, 120, NOW, values=struct.pack("<18f", *rows[:6], 500, 500, 0, 0, 0, 0, *rows[:6])
    )
    nan = float("nan")
    bad = struct.pack("<18f", *rows[:12], nan, nan, 3, 0, 0, 0)
    frames[77] = wire.Frame(78, 77, NOW, values=bad)
    store.send(batch(*frames))
    for cols in (200, 64, 16, 2, 1):
        drawn = store.history.heatmap(PROJECT, "r", "l2", None, None, cols)
        assert drawn is not None
        width = drawn.header["bucket"]
        assert drawn.header["cols"] <= cols
        assert drawn.header["nonfinite"] == [[2, 77 // width, 3, 0]]
        row = drawn.cells[drawn.header["cols"] : 2 * drawn.header["cols"]]
        assert row[120 // width] == 254
        line = store.history.series(PROJECT, "r", ["layer:1:l2", "layer:2:l2"], None, None, cols)
        assert max(v or 0 for v in line.keys["layer:1:l2"]["max"]) == 500
        assert sum(v or 0 for v in line.keys["layer:2:l2"]["nonfinite"]) == 1


def test_recorded_series_come_back_in_time_order(store: Store) -> None:
    store.start()
    row = store.runs.get(PROJECT, "r").id  # type: ignore[union-attr]
    for piece in ([(1, 1.0), (2, float("nan"))], [(3, 3.0)]):
        store.database.write(
            lambda c, p=piece: store.recorded.append(
                PROJECT, c, row, "gradwarden_loss", {"attempt": "1"}, p
            )
        ).result()
    (loss,) = store.recorded.newest(PROJECT, row, ["gradwarden_loss"], 10)
    assert [t for t, _ in loss.points] == [1, 2, 3]
    (loss,) = store.recorded.newest(PROJECT, row, ["gradwarden_loss"], 2)
    assert loss.points[0][0] == 2
    (loss,) = store.recorded.newest(PROJECT, row, ["gradwarden_loss"], 10)
    assert loss.points[2][1] == 3.0


def test_only_the_holder_of_the_newest_epoch_moves_the_cursor(store: Store) -> None:
    store.start()
    row = store.runs.get(PROJECT, "r").id  # type: ignore[union-attr]
    evaluation = store.evaluation
    first = evaluation.acquire(PROJECT, "run:r", "one", 60 * 10**9)
    assert first is not None
    assert evaluation.acquire(PROJECT, "run:r", "two", 60 * 10**9) is None
    cursor, snapshot = evaluation.resume(PROJECT, row, first.epoch)
    assert (cursor, snapshot) == (Cursor(0, {}), None)
    evaluation.release(PROJECT, "one")
    second = evaluation.acquire(PROJECT, "run:r", "two", 60 * 10**9)
    assert second is not None
    assert second.epoch == first.epoch + 1
    evaluation.resume(PROJECT, row, second.epoch)
    with pytest.raises(Fenced):
        store.database.write(
            lambda c: evaluation.move(PROJECT, c, row, first.epoch, cursor, Cursor(5, {1: 4}))
        ).result()

    def commit(connection: object) -> None:
        evaluation.move(PROJECT, connection, row, second.epoch, cursor, Cursor(5, {1: 4}))  # type: ignore[arg-type]
        evaluation.snapshot(PROJECT, connection, row, Snapshot(3, b"state"))  # type: ignore[arg-type]

    store.database.write(commit).result()
    assert evaluation.resume(PROJECT, row, second.epoch) == (
        Cursor(5, {1: 4}),
        Snapshot(3, b"state"),
    )


def test_a_holder_that_slept_past_its_lease_can_commit_nothing(
    store: Store, tmp_path: Path
) -> None:
    """The holder is stopped by SIGSTOP, another takes over, and SIGCONT wakes the first."""
    store.start()
    row = store.runs.get(PROJECT, "r").id  # type: ignore[union-attr]
    sleeper = textwrap.dedent(
        f"""
        import sys
        from gradwarden_server.store.database import Database
        from gradwarden_server.store.errors import Fenced
        from gradwarden_server.store.judging.evaluation import Cursor, EvaluationStore
        database = Database({store.database.url!r})
        evaluation = EvaluationStore(database)
        lease = evaluation.acquire({PROJECT!r}, "run:r", "sleeper", 200_000_000)
        cursor, _ = evaluation.resume({PROJECT!r}, {row}, lease.epoch)
        print("held", flush=True)
        sys.stdin.readline()
        try:
            database.write(lambda c: evaluation.move(
                {PROJECT!r}, c, {row}, lease.epoch, cursor, Cursor(9, {{}}))).result()
            print("moved", flush=True)
        except Fenced:
            print("fenced", flush=True)
        database.close()
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", sleeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    lease = None
    while lease is None and time.monotonic() < deadline:
        lease = store.evaluation.acquire(PROJECT, "run:r", "heir", 60 * 10**9)
    assert lease is not None
    cursor, _ = store.evaluation.resume(PROJECT, row, lease.epoch)
    store.database.write(
        lambda c: store.evaluation.move(PROJECT, c, row, lease.epoch, cursor, Cursor(4, {}))
    ).result()
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate("go\n", timeout=60)
    assert out == "fenced\n"
    assert store.evaluation.resume(PROJECT, row, lease.epoch)[0].position == 4


def test_one_failing_write_undoes_itself_alone(store: Store) -> None:
    store.start(run="kept")

    def fails(connection: object) -> None:
        raise RuntimeError("this write alone")

    futures = [store.database.write(fails) for _ in range(3)]
    request = StartRequest("other", "a1", 0, "n", "h", 1)
    other = store.runs.start(PROJECT, request, NOW)
    for future in futures:
        with pytest.raises(RuntimeError, match="this write alone"):
            future.result()
    assert other.result().ordinal == 1


def test_the_schema_goes_up_and_down_and_matches_the_tables(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from gradwarden_server.store.tables import metadata

    store.start()
    with store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []
    store.database.downgrade("base")
    store.database.migrate()
    assert store.runs.projects() == []


def test_a_second_server_on_one_sqlite_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gw.sqlite"
    first, second = Database(url), Database(url)
    first.hold_lock("serving http://127.0.0.1:1")
    with pytest.raises(DatabaseInUse, match=r"pid \d+: serving http"):
        second.hold_lock("too late")
    first.close()
    second.hold_lock("now it may")
    second.close()
