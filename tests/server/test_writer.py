"""The one thread that writes: it outlives its callers, its connection, and a crowd of runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from gradwarden import wire
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.errors import Unavailable
from tests.server.test_store import LAYOUT, PROJECT, Store, batch, frame

PATIENCE = 20.0


class Gate:
    """A write that holds the writer until it is opened."""

    def __init__(self, database: Database, key: str = "") -> None:
        self._entered = threading.Event()
        self._opened = threading.Event()
        self._write = database.write(self._pass, Priority.ACK, key)

    def _pass(self, connection: Connection) -> None:
        self._entered.set()
        assert self._opened.wait(PATIENCE)

    def wait(self) -> None:
        """Until the writer stands here."""
        assert self._entered.wait(PATIENCE)

    def open(self) -> None:
        """Let the writer go on."""
        self._opened.set()
        self._write.result(PATIENCE)


def _scalar(database: Database, statement: Any) -> Any:
    with database.read() as connection:
        return connection.execute(statement).scalar_one()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/gw.sqlite")
    made.migrate()
    yield made
    made.close()


def test_a_caller_that_gives_up_neither_undoes_its_write_nor_ends_the_writer(
    database: Database,
) -> None:
    gate = Gate(database)
    gate.wait()
    done: list[str] = []
    given_up = database.write(lambda connection: done.append("first"))
    assert not given_up.cancel()
    gate.open()
    database.write(lambda connection: done.append("second")).result(PATIENCE)
    assert done == ["first", "second"]


def test_no_run_starves_behind_a_crowd_of_others(database: Database) -> None:
    gate = Gate(database)
    gate.wait()
    order: list[str] = []
    last = database.write(lambda connection: order.append("z"), key="z")
    crowd = [database.write(lambda connection: order.append("a"), key="a") for _ in range(600)]
    gate.open()
    for write in (last, *crowd):
        write.result(PATIENCE)
    assert order.index("z") == 511, "the oldest 512 make one commit, ordered by key"


def test_a_connection_that_dies_fails_its_whole_commit_as_unavailable(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.write(lambda c: c.execute(text("CREATE TABLE note (n int)"))).result(PATIENCE)

    def insert(number: int) -> Future[Any]:
        statement = text("INSERT INTO note VALUES (:n)")
        return database.write(lambda c: c.execute(statement, {"n": number}).rowcount)

    def die(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.read() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        connection.execute(text("SELECT 1"))

    gate = Gate(database)
    gate.wait()
    before, deadly, after = insert(1), database.write(die), insert(2)
    gate.open()
    for write in (before, deadly, after):
        with pytest.raises(Unavailable):
            write.result(PATIENCE)
    assert insert(3).result(PATIENCE) == 1, "the next commit has a connection of its own"
    with database.read() as connection:
        assert connection.execute(text("SELECT n FROM note")).scalars().all() == [3]
    database.close()


def test_a_reader_does_not_notice_that_its_idle_connection_died(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    cut = text("SELECT pg_terminate_backend(:pid, 5000)")
    database.write(lambda c: c.execute(cut, {"pid": pid})).result(PATIENCE)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid
    database.close()


def test_two_processes_that_store_one_stream_at_once_keep_the_seqs_of_both(
    postgres_url: str,
) -> None:
    one, two = Store(postgres_url), Store(postgres_url)
    one.runs.put_layout(PROJECT, LAYOUT).result(PATIENCE)
    one.start()
    early, late = batch(frame(1), frame(2)), batch(frame(3), frame(4))
    gate = Gate(one.database)
    gate.wait()
    first = one.append(early)
    held = Gate(one.database, key="z")  # in the same commit, after the batch
    gate.open()
    held.wait()
    second = two.append(late)
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    deadline = time.monotonic() + PATIENCE
    while not _scalar(one.database, waiting):
        assert time.monotonic() < deadline
    held.open()
    assert first.result(PATIENCE).stored == second.result(PATIENCE).stored == 2
    assert two.send(batch(*(frame(seq) for seq in range(1, 5)))) == (0, 4)
    assert [seq for _, _, seq, _ in one.stored_frames()] == [1, 2, 3, 4]
    one.database.close()
    two.database.close()


def test_a_stream_full_of_holes_is_refused_before_it_costs(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/gw.sqlite")
    store.runs.put_layout(PROJECT, LAYOUT).result(PATIENCE)
    store.start()
    holes = ",".join(f"[{seq},{seq}]" for seq in range(2, 20_001, 2))
    statement = text("UPDATE stream SET seqs = :seqs")
    store.database.write(lambda c: c.execute(statement, {"seqs": f"[{holes}]"})).result(PATIENCE)
    with pytest.raises(wire.Malformed, match="gaps"):
        store.send(batch(frame(30_000)))
    assert store.send(batch(frame(3))) == (1, 0), "what fills a hole is welcome"
    store.database.close()


def test_after_a_crowd_a_single_write_is_not_kept_waiting_for_another(database: Database) -> None:
    done: list[int] = []
    for crowd in (3, 1, 2, 1):
        gate = Gate(database)
        gate.wait()
        writes = [database.write(lambda c, n=n: done.append(n)) for n in range(crowd)]
        gate.open()
        for write in writes:
            write.result(PATIENCE)
    assert done == [0, 1, 2, 0, 0, 1, 0]


def test_writes_of_each_priority_are_committed_apart_where_others_lock_rows_too(
    postgres_url: str,
) -> None:
    """A lock taken for an alert is let go before an ack waits for one."""
    database = Database(postgres_url)
    transaction = text("SELECT pg_current_xact_id()::text")
    gate = Gate(database)
    gate.wait()
    ack, alert, other = (
        database.write(lambda c: c.execute(transaction).scalar_one(), priority)
        for priority in (Priority.ACK, Priority.ALERT, Priority.ACK)
    )
    gate.open()
    assert ack.result(PATIENCE) == other.result(PATIENCE) != alert.result(PATIENCE)
    database.close()


def test_items_that_wait_together_are_taken_in_one_call_and_refused_one_by_one(
    database: Database,
) -> None:
    calls: list[list[int]] = []

    def take(connection: Connection, items: Sequence[int]) -> list[int | Exception]:
        calls.append(list(items))
        return [10 * n if n else LookupError("nothing") for n in items]

    gate = Gate(database)
    gate.wait()
    writes = [database.write_together(take, n) for n in (3, 0, 5)]
    gate.open()
    assert [writes[0].result(PATIENCE), writes[2].result(PATIENCE)] == [30, 50]
    with pytest.raises(LookupError, match="nothing"):
        writes[1].result(PATIENCE)
    assert calls == [[3, 0, 5]]


def test_an_item_that_breaks_its_call_fails_alone(database: Database) -> None:
    database.write(lambda c: c.execute(text("CREATE TABLE note (n int UNIQUE)"))).result(PATIENCE)

    def take(connection: Connection, items: Sequence[int]) -> list[int]:
        for n in items:
            connection.execute(text("INSERT INTO note VALUES (:n)"), {"n": n})
        return list(items)

    gate = Gate(database)
    gate.wait()
    first, twin, last = (database.write_together(take, n) for n in (1, 1, 2))
    gate.open()
    assert [first.result(PATIENCE), last.result(PATIENCE)] == [1, 2]
    with pytest.raises(IntegrityError):
        twin.result(PATIENCE)
    assert _scalar(database, text("SELECT count(*) FROM note")) == 2
