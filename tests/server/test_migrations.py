"""The schema goes up and down on databases that hold something, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import inspect, select, text

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.compacting.compaction import Compaction
from gradwarden_server.store.database import Database
from tests.server.populate import contents, fill
from tests.server.test_compaction import send
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store

VERSIONS = Path(__file__).parents[2] / "migrations" / "versions"
REVISIONS = sorted(path.name[:4] for path in VERSIONS.glob("[0-9]*.py"))
# Columns that came with a revision, by it.
CAME: dict[str, dict[str, set[str]]] = {
    "0002": {"stream": {"shard", "shards"}},
    "0003": {"stream": {"logged_frames", "logged_bytes"}, "run": {"latest", "deleted_ns"}},
    "0005": {"alert": {"muted", "muted_until_ns", "told", "acked_ns", "acked_by"}},
    "0007": {"alert": {"rule_group"}, "series": {"ruled"}},
    "0011": {"outbox": {"replaces"}},
}
NEW_TABLES = {"segment", "chunk", "rollup", "retention", "promotion", "silence", "link_secret"}
NEW_TABLES |= {"rule_group", "receiver_thread"}
NEW_TABLES |= {"outcome", "price", "report_sent"}
NEW_TABLES |= {"maintenance"}
NEW_TABLES |= {"notification_group", "group_member", "telling"}


def new_columns(before: str) -> dict[str, set[str]]:
    """What came after a revision, by its table."""
    found: dict[str, set[str]] = {}
    for revision, tables in CAME.items():
        for table, columns in tables.items() if revision > before else ():
            found[table] = found.get(table, set()) | columns
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gw.sqlite"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    yield made
    made.close()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    made.runs.put_layout(PROJECT, LAYOUT).result()
    yield made
    made.database.close()


def held(database: Database, before: str) -> dict[str, list[str]]:
    """What was there before the revisions that came after ``before``."""
    with database.read() as connection:
        found: dict[str, list[str]] = contents(connection, new_columns(before))
    return {name: rows for name, rows in found.items() if name not in NEW_TABLES}


def upgrade(database: Database, revision: str) -> None:
    command.upgrade(database._alembic(), revision)


@pytest.mark.parametrize(
    "first",
    [
        REVISIONS[0],
        *(pytest.param(one, marks=pytest.mark.full) for one in REVISIONS[1:-2]),
        REVISIONS[-2],
    ],
)
def test_rows_of_every_table_survive_the_way_up_and_down(database: Database, first: str) -> None:
    upgrade(database, first)
    database.write(lambda connection: fill(connection, 9)).result()
    before = held(database, first)
    assert all(before.values()), "every table holds something"
    for revision in REVISIONS:
        if revision > first:
            upgrade(database, revision)
            assert held(database, first) == before
    for revision in reversed(REVISIONS[:-1]):
        if revision >= first:
            database.downgrade(revision)
            assert held(database, first) == before
    database.migrate()
    assert held(database, first) == before


def test_streams_of_an_older_schema_say_what_their_log_holds(database: Database) -> None:
    upgrade(database, "0002")
    database.write(lambda connection: fill(connection, 3)).result()
    database.write(
        lambda c: c.execute(text("UPDATE frame_batch SET first_seq = id, last_seq = id + 7"))
    ).result()
    database.migrate()
    with database.read() as connection:
        assert connection.execute(select(t.stream.c.logged_frames)).scalars().all() == [8, 8, 8]


def test_what_came_with_the_newest_schema_is_gone_with_it(database: Database) -> None:
    database.migrate()
    with database.read() as connection:
        newest = _schema(connection)
    database.downgrade("0002")
    with database.read() as connection:
        assert not NEW_TABLES & set(_schema(connection))
    database.migrate()
    with database.read() as connection:
        assert _schema(connection) == newest


def _schema(connection: Any) -> dict[str, Any]:
    found = inspect(connection)
    return {
        name: (
            sorted(column["name"] for column in found.get_columns(name)),
            sorted(str(index["name"]) for index in found.get_indexes(name)),
        )
        for name in found.get_table_names()
    }


def frames_of(store: Store, run: str = "r") -> list[tuple[int, int, wire.Frame]]:
    """(position, rank, frame) of everything, in the order of the log."""
    return [
        (entry.position, entry.rank, frame)
        for entry in store.log.after(PROJECT, run, 0, 100_000)
        for frame in entry.batch().frames
    ]


def compact(store: Store) -> None:
    compaction = Compaction(store.database, store.log, frames=256)
    for due in compaction.due(NOW + 10**15):
        while compaction.compact(due):
            pass


def count(database: Database, name: str) -> int:
    with database.read() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one())


def test_the_older_schema_gets_back_into_its_log_what_was_compacted(store: Store) -> None:
    for rank in (0, 1):
        send(store, 600, rank=rank)
    before = frames_of(store)
    batches = count(store.database, "frame_batch")
    assert batches == 2 * -(-600 // 7)
    compact(store)
    assert count(store.database, "frame_batch") == 0
    assert count(store.database, "segment") == 6
    store.database.downgrade("0002")
    assert count(store.database, "frame_batch") == batches
    store.database.migrate()
    assert frames_of(store) == before
    with store.database.read() as connection:
        assert connection.execute(select(t.stream.c.logged_frames)).scalars().all() == [600, 600]
    compact(store)
    assert count(store.database, "frame_batch") == 0
    assert frames_of(store) == before


def test_rows_are_those_that_ingest_wrote(store: Store) -> None:
    send(store, 100)
    columns = [c.name for c in t.frame_batch.c if c.name not in ("id", "body")]
    query = f"SELECT {', '.join(columns)} FROM frame_batch ORDER BY position"
    with store.database.read() as connection:
        before = connection.execute(text(query)).all()
    compact(store)
    store.database.downgrade("0002")
    with store.database.read() as connection:
        assert connection.execute(text(query)).all() == before


def test_values_that_retention_dropped_stay_dropped(store: Store) -> None:
    send(store, 100)
    before = frames_of(store)
    compact(store)
    store.database.write(lambda c: c.execute(t.segment.update().values(held="rollup"))).result()
    store.database.write(lambda c: c.execute(t.chunk.delete())).result()
    store.database.downgrade("0002")
    store.database.migrate()
    bare = [(at, rank, replace(f, values=b"", roots=b"")) for at, rank, f in before]
    assert [(a, r, replace(f, roots=b"")) for a, r, f in frames_of(store)] == bare


def test_a_deleted_run_does_not_come_back_with_the_older_schema(database: Database) -> None:
    upgrade(database, "0002")
    database.write(lambda connection: fill(connection, 4)).result()
    database.migrate()
    database.write(
        lambda c: c.execute(t.run.update().where(t.run.c.id == 2).values(deleted_ns=1))
    ).result()
    database.downgrade("0002")
    for name in ("run", "attempt", "stream", "alert", "alert_transition", "series"):
        assert count(database, name) == 3, name
    database.migrate()
    if database.kind == "sqlite":
        with database.read() as connection:
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
