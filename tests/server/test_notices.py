"""What processes on one PostgreSQL hear of each other, and that no wake-up is missed."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Connection, text

from gradwarden_server.store.database import Database
from gradwarden_server.store.notices import CHANNEL, Listener, Topic, announce
from tests.server.pager import PATIENCE
from tests.server.test_store import LAYOUT, PROJECT, Store, batch, frame

Calls = queue.SimpleQueue[Topic]


@contextmanager
def listening(database: Database) -> Iterator[Calls]:
    """What a listener that is connected hears from now on."""
    calls: Calls = queue.SimpleQueue()
    listener = Listener(database, {topic: lambda t=topic: calls.put(t) for topic in Topic})
    listener.start()
    assert {calls.get(timeout=PATIENCE) for _ in Topic} == set(Topic), "on connecting, all of them"
    try:
        yield calls
    finally:
        listener.stop()


def _frames(connection: Connection) -> None:
    announce(connection, Topic.FRAMES)


def _commands(connection: Connection) -> None:
    announce(connection, Topic.COMMANDS)


def test_a_process_hears_the_others_and_not_itself(postgres_url: str) -> None:
    here, there = Database(postgres_url), Database(postgres_url)
    with listening(here) as calls:
        here.write(_frames).result(PATIENCE)
        there.write(_commands).result(PATIENCE)
        assert calls.get(timeout=PATIENCE) is Topic.COMMANDS, "its own came first and is not heard"
        there.write(_frames).result(PATIENCE)
        assert calls.get(timeout=PATIENCE) is Topic.FRAMES
    here.close()
    there.close()


def test_one_notice_a_commit_however_many_batches_it_holds(postgres_url: str) -> None:
    store = Store(postgres_url)
    store.runs.put_layout(PROJECT, LAYOUT).result(PATIENCE)
    store.start()
    plain = postgres_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as ear:
        ear.execute(f"LISTEN {CHANNEL}")
        opened = queue.SimpleQueue[None]()
        gate = store.database.write(lambda connection: opened.get(timeout=PATIENCE))
        sent = [batch(frame(seq)) for seq in range(1, 9)]
        appends = [store.append(b) for b in sent]
        opened.put(None)
        gate.result(PATIENCE)
        assert [append.result(PATIENCE).stored for append in appends] == [1] * 8
        ear.execute(f"NOTIFY {CHANNEL}, 'end'")
        heard = []
        for notice in ear.notifies(timeout=PATIENCE):
            heard.append(notice.payload)
            if notice.payload == "end":
                break
        again = store.append(sent[0])
        assert again.result(PATIENCE).stored == 0
        ear.execute(f"NOTIFY {CHANNEL}, 'again'")
        [notice] = ear.notifies(timeout=PATIENCE, stop_after=1)
        assert notice.payload == "again", "what is stored already tells nothing"
    assert heard[-1] == "end"
    assert set(heard[:-1]) == {f"frames {store.database.origin}"}
    # What waits is one commit, but for a machine so busy that the writer divides its work.
    assert len(heard[:-1]) < len(sent) / 2
    store.database.close()


def test_after_a_cut_everybody_is_woken_once_and_hears_again(postgres_url: str) -> None:
    here, there = Database(postgres_url), Database(postgres_url)
    cut = text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE query = :listen AND datname = current_database()"
    )
    with listening(here) as calls:
        with there.read() as connection:
            assert connection.execute(cut, {"listen": f"LISTEN {CHANNEL}"}).scalars().all() == [
                True
            ]
        assert {calls.get(timeout=PATIENCE) for _ in Topic} == set(Topic)
        there.write(_frames).result(PATIENCE)
        assert calls.get(timeout=PATIENCE) is Topic.FRAMES
    here.close()
    there.close()
