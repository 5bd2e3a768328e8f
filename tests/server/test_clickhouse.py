"""ClickHouse as the series engine: all that compaction promises, over the embedded engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, func, select

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.compacting import compaction as steps
from gradwarden_server.store.compacting.compaction import LostClaim
from gradwarden_server.store.compacting.compactor import Compactor
from gradwarden_server.store.errors import Damaged, Unavailable
from gradwarden_server.store.keeping.maintenance import Janitor
from gradwarden_server.store.keeping.removal import RunRemoval
from gradwarden_server.store.keeping.retention import Policy, RetentionStore
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.reading.history import History
from gradwarden_server.store.shelves import clickhouse_schema as schema
from gradwarden_server.store.shelves.clickhouse import ClickHouseShelf
from gradwarden_server.store.shelves.clickhouse_engines import Engine, connect
from gradwarden_server.store.shelves.filing import filed
from gradwarden_server.store.shelves.shelf import Filed, Shelves
from gradwarden_server.store.shelves.shelf_tables import TableShelf
from tests.needs import needs_package
from tests.server.clickhouse_http import PASSWORD, USER, http_door
from tests.server.test_compaction import (  # noqa: F401  (the same tests, over this store)
    DAY_NS,
    LAYERS,
    compact_all,
    compactor,
    counts,
    frames,
    send,
    test_a_crash_after_any_step_neither_loses_nor_doubles,
    test_a_process_taken_for_dead_cannot_seal,
    test_ranks_are_compacted_apart_and_read_in_the_order_of_the_log,
    test_reads_say_the_same_before_and_after,
    test_roots_of_replicas_that_agreed_are_not_kept,
    test_segments_give_the_very_batches_back,
    test_two_replicas_that_told_the_same_steps_count_once_after_compaction,
    test_what_is_written_while_a_segment_is_made_is_kept,
    told,
)
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store

# Of a small part all columns lie in the one, of a large part values in the other.
_DATA = ("data.bin", "values.bin")


class Fickle:
    """ClickHouse that can be away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.away = False

    def execute(self, statement: str) -> None:
        self._check()
        self._engine.execute(statement)

    def insert(self, table: str, columns: Sequence[str], body: bytes) -> None:
        self._check()
        self._engine.insert(table, columns, body)

    def query(self, statement: str) -> bytes:
        self._check()
        return self._engine.query(statement)

    def close(self) -> None:
        self._engine.close()

    def _check(self) -> None:
        if self.away:
            raise Unavailable("ClickHouse at nowhere cannot be used now: connection refused")


class Shelved(Store):
    """A store whose values lie in ClickHouse."""

    def __init__(self, url: str, engine: Engine) -> None:
        super().__init__(url)
        self.engine = Fickle(engine)
        self.shelf = ClickHouseShelf(self.engine)
        shelves = Shelves(TableShelf(self.database), self.shelf)
        self.log = LogReader(self.database, shelves=shelves)
        self.history = History(self.log, self.runs)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One for all: a process opens one folder."""
    needs_package("chdb")
    made = connect(f"chdb://{tmp_path_factory.mktemp('clickhouse')}")
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> Iterator[Shelved]:
    url = (
        f"sqlite:///{tmp_path}/gw.sqlite"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    for table in schema.TABLES:
        engine.execute(f"DROP TABLE IF EXISTS {table}")
    made = Shelved(url, engine)
    made.runs.put_layout(PROJECT, LAYOUT).result()
    yield made
    made.database.close()


def rows(store: Shelved) -> dict[str, int]:
    """Rows of each table in ClickHouse."""
    found = {}
    for table in schema.TABLES:
        answer = store.engine.query(f"SELECT count() FROM {table}")
        found[table] = int.from_bytes(answer, "little")
    return found


def filed_segments(store: Shelved) -> list[Filed]:
    """Every segment."""
    with store.database.read() as connection:
        return filed(connection, t.segment.c.sealed)


def test_the_database_holds_no_values(store: Shelved) -> None:
    send(store, 64)
    compact_all(compactor(store))
    held = counts(store)
    assert (held["segment"], held["chunk"], held["rollup"]) == (1, 0, 0)
    assert all(rows(store).values())
    with store.database.read() as connection:
        body = func.length(t.segment.c.body)
        assert connection.execute(select(t.segment.c.bytes - body)).scalar_one() == 0


def test_people_can_ask_clickhouse(store: Shelved) -> None:
    sent = send(store, 64)
    compact_all(compactor(store))
    answer = store.engine.query(
        f"SELECT step, value FROM {schema.VALUES} ARRAY JOIN steps AS step, values AS value "
        f"WHERE project = '{PROJECT}' AND run = 'r' AND attempt = 'a1' AND rank = 0 "
        "AND quantity = 'l2' AND row = 1 ORDER BY step"
    )
    found = np.frombuffer(answer, np.dtype([("step", "<i8"), ("value", "<f4")]))
    frames = [f for batch in sent for f in batch.frames if f.values]
    assert found["step"].tolist() == [f.step for f in frames]
    expected = [
        np.frombuffer(f.values, "<f4").reshape(LAYERS, -1)[1, wire.COLUMNS.index("l2")]
        for f in frames
    ]
    np.testing.assert_array_equal(found["value"], np.array(expected, np.float32))


@pytest.mark.filterwarnings("ignore:invalid value")  # in the norm over all layers
def test_every_nan_is_the_one_that_was_sent(store: Shelved) -> None:
    words = np.array([0x7FC00000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0x80000000])
    values = np.zeros((LAYERS, len(wire.COLUMNS)), np.uint32)
    sent = []
    store.start(rank=0)
    for seq, word in enumerate(words.tolist(), 1):
        values[:, wire.COLUMNS.index("l2")] = word
        frame = wire.Frame(seq, seq, NOW + seq, values=values.astype("<u4").tobytes())
        key = wire.StreamKey("r", "a1", 0, "n-a1-0")
        sent.append(wire.Batch(key, (frame,), LAYOUT.hash, LAYERS, wire.COLUMNS))
        store.send(sent[-1])
    compact_all(compactor(store))
    assert counts(store)["frame_batch"] == 0
    assert [b.frames[0].values for b in told(store)] == [b.frames[0].values for b in sent]


def test_while_it_is_away_the_log_grows_and_the_rest_is_read(store: Shelved) -> None:
    first = send(store, 64)
    thread = Compactor(compactor(store))
    made = compactor(store)
    compact_all(made)
    store.engine.away = True
    late = send(store, 64, rank=1)
    with pytest.raises(Unavailable, match="connection refused"):
        thread.round()
    with pytest.raises(Unavailable):
        made.compact(made.due(NOW + DAY_NS)[0])
    with pytest.raises(Unavailable):
        store.history.series(PROJECT, "r", ["layer:0:l2"], None, None, 100)
    series = store.history.series(PROJECT, "r", ["loss"], None, None, 100)
    assert series is not None
    made.recover(alone=True)  # a restart meanwhile
    assert counts(store)["frame_batch"] == len(late)
    store.engine.away = False
    made.recover(alone=True)
    compact_all(made)
    assert counts(store)["frame_batch"] == 0
    assert told(store) == [*first, *late]
    fresh = Shelved(store.database.url, store.engine)
    assert told(fresh) == [*first, *late]
    fresh.database.close()


def test_what_an_abandoned_claim_put_there_is_dropped(
    store: Shelved, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = send(store, 64)
    compaction = compactor(store)
    claim = compaction.claim(compaction.due(NOW + DAY_NS)[0])
    assert claim is not None
    compaction.fill(claim, compaction.make(claim))
    assert rows(store)[schema.VALUES]
    monkeypatch.setattr(steps, "ABANDONED_NS", -1)
    compact_all(compactor(store))
    assert told(store) == sent
    with store.database.read() as connection:
        number, made = connection.execute(select(t.segment.c.id, t.segment.c.claimed_ns)).one()
    assert store.shelf.holding("rollup", (0, 0)) == [(number, made)]


def test_what_is_put_for_a_run_that_is_being_deleted_is_dropped(store: Shelved) -> None:
    send(store, 64)
    compaction = compactor(store)
    claim = compaction.claim(compaction.due(NOW + DAY_NS)[0])
    assert claim is not None
    made = compaction.make(claim)
    with store.database.engine.begin() as connection:
        connection.execute(delete(t.segment))
    weight = compaction.fill(claim, made)
    with pytest.raises(LostClaim):
        compaction.seal(claim, made, weight)
    compaction.abandon(claim)
    assert not any(rows(store).values())


def test_a_sealed_segment_is_not_abandoned(store: Shelved) -> None:
    sent = send(store, 64)
    compaction = compactor(store)
    claim = compaction.claim(compaction.due(NOW + DAY_NS)[0])
    assert claim is not None
    made = compaction.make(claim)
    compaction.seal(claim, made, compaction.fill(claim, made))
    compaction.abandon(claim)  # its commit was durable, and the answer was lost
    assert told(store) == sent


def test_segments_of_before_are_read_from_the_database(store: Shelved) -> None:
    plain = Store(store.database.url)
    sent = send(plain, 64)
    compact_all(compactor(plain))
    sent += send(store, 64, rank=1)
    compact_all(compactor(store))
    assert told(store) == sent
    with pytest.raises(Unavailable, match="set GRADWARDEN_SERIES"):
        told(plain)
    plain.database.close()


def test_a_missing_row_is_refused_by_name(store: Shelved) -> None:
    send(store, 64)
    compact_all(compactor(store))
    store.engine.execute(f"DELETE FROM {schema.VALUES} WHERE quantity = 'l2' AND row = 1")
    with pytest.raises(Damaged, match=r"rank 0, steps 3 to 192: l2 .*2 of 3 rows are there"):
        told(store)


def test_a_damaged_file_of_clickhouse_is_refused_by_name(store: Shelved) -> None:
    send(store, 64)
    compact_all(compactor(store))
    answer = store.engine.query(
        f"SELECT path FROM system.parts WHERE active AND table = '{schema.VALUES}'"
    )
    # One string in RowBinary: its length, then itself.
    (file,) = [p for p in Path(answer[1:].decode()).iterdir() if p.name in _DATA]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2 :] = bytes(255 - byte for byte in raw[len(raw) // 2 :])
    file.write_bytes(raw)
    with pytest.raises(Damaged, match=r"run 'r', rank 0, steps 3 to 192: .* cannot be read"):
        told(store)
    series = store.history.series(PROJECT, "r", ["loss"], None, None, 100)
    assert series is not None


def test_retention_and_deletion_reach_it(store: Shelved) -> None:
    store.start(rank=0)
    dense = tuple(replace(f, step=f.seq) for f in frames(1, 200, np.random.default_rng(0)))
    key = wire.StreamKey("r", "a1", 0, "n-a1-0")
    store.send(wire.Batch(key, dense, LAYOUT.hash, LAYERS, wire.COLUMNS))
    compact_all(compactor(store))
    assert store.shelf.holding("coarse", (0, 0)) == store.shelf.holding("rollup", (0, 0))
    janitor = Janitor(store.database, "test", series=store.shelf)
    RetentionStore(store.database).put(
        PROJECT, Policy(raw_days=1, rollup_days=3, run_days=None), NOW, "test"
    ).result()
    before = rows(store)
    assert janitor.round(NOW + 2 * DAY_NS) is not None
    assert rows(store) == {**before, schema.VALUES: 0, schema.WORDS: 0}
    assert janitor.round(NOW + 4 * DAY_NS) is not None
    assert 0 < rows(store)[schema.ROLLUPS] < before[schema.ROLLUPS]
    assert not store.shelf.holding("coarse", (0, 0))
    RunRemoval(store.database).delete(PROJECT, "r", NOW, "test").result()
    store.engine.away = True
    with pytest.raises(Unavailable):
        janitor.round(NOW + 4 * DAY_NS)
    store.engine.away = False
    assert janitor.round(NOW + 4 * DAY_NS) is not None
    assert not any(rows(store).values())
    assert counts(store)["segment"] == 0


def test_a_server_is_reached_over_http(engine: Engine, tmp_path: Path) -> None:
    needs_package("clickhouse_connect")
    for table in schema.TABLES:
        engine.execute(f"DROP TABLE IF EXISTS {table}")
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    with http_door(engine) as port:
        place = f"{USER}@127.0.0.1:{port}/default"
        server = connect(f"clickhouse://{place}?password_file={secret}")
        store = Shelved(f"sqlite:///{tmp_path}/gw.sqlite", server)
        store.runs.put_layout(PROJECT, LAYOUT).result()
        sent = send(store, 64)
        compact_all(compactor(store))
        assert told(store) == sent
        store.shelf.drop(filed_segments(store), "rollup")
        assert rows(store)[schema.VALUES] == 0
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port} cannot be used.*Authentication"):
            connect(f"clickhouse://{place}").query("SELECT 1")
    with pytest.raises(Unavailable, match=f"ClickHouse at 127.0.0.1:{port} cannot be used now"):
        store.shelf.ready()
    store.database.close()
    server.close()


@pytest.mark.parametrize(
    "url", ["http://host/db", "clickhouse://", "chdb://", "clickhouse://host/db?password_file=/no"]
)
def test_a_url_that_cannot_be_used_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="series: "):
        connect(url)


@pytest.mark.full
def test_the_benchmark_measures_both_shelves(tmp_path: Path) -> None:
    needs_package("chdb")
    benchmark = Path(__file__).parents[2] / "benchmarks" / "clickhouse.py"
    command = [sys.executable, str(benchmark), "--layers", "5", "--steps", "600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tables"].keys() == told["clickhouse"].keys()
    assert all(value > 0 for value in told["clickhouse"].values())
