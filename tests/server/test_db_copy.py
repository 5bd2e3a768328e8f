"""A database copied into another of either kind, cut off anywhere, and refused where it must."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.keeping import transfer
from tests.conftest import PostgresServer
from tests.server.populate import contents, fill
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, clean_environment, gradwarden

KINDS = ("sqlite", "postgresql")
Make = Callable[[str], Database]


@pytest.fixture
def make(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Make]:
    """Makes an empty, migrated database of a kind."""
    made: list[Database] = []

    def one(kind: str) -> Database:
        url = f"sqlite:///{tmp_path}/db{len(made)}.sqlite"
        if kind == "postgresql":
            # With a language of its own, so that text is ordered otherwise than by bytes.
            language = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"
            url = postgres_server.create(f"TEMPLATE template0 {language}")
        database = Database(url)
        database.migrate()
        made.append(database)
        return database

    yield one
    for database in made:
        database.close()


def filled(make: Make, kind: str, rows: int = 200) -> Database:
    database = make(kind)
    database.write(lambda connection: fill(connection, rows, spread=3)).result()
    database.write(lambda c: c.execute(update(t.lease).values(expires_ns=0))).result()
    # A value that is JSON's null, and one that is none.
    for words in ("latest = NULL", "latest = 'null' WHERE id = 4"):
        database.write(lambda c, words=words: c.execute(text(f"UPDATE run SET {words}"))).result()
    return database


def everything(database: Database) -> object:
    with database.read() as connection:
        return contents(connection)


def run_id(database: Database) -> int:
    """The row number that a new run gets."""
    row = {c.name: None for c in t.run.c if c.name != "id"} | {
        "project": "Zug0",
        "run": "the next",
        "name": "",
        "environment": "",
        "config": {},
        "world_size": 1,
        "status": "running",
        "page": False,
        "started_ns": 0,
        "last_seen_ns": 0,
        "position": 0,
    }
    return int(
        database.write(
            lambda c: c.execute(insert(t.run).values(row).returning(t.run.c.id)).scalar_one()
        ).result()
    )


@pytest.mark.parametrize(("kind", "to"), list(itertools.product(KINDS, KINDS)))
def test_every_row_of_every_table_arrives_as_it_is(make: Make, kind: str, to: str) -> None:
    source, target = filled(make, kind), make(to)
    told: list[tuple[str, int, int]] = []
    counts = transfer.copy(source, target, lambda *news: told.append(news))
    assert counts == {table.name: 200 for table in t.metadata.sorted_tables}
    assert everything(target) == everything(source)
    nulls = "SELECT id FROM run WHERE CAST(latest AS TEXT) = 'null'"
    with target.read() as connection:
        assert connection.execute(text(nulls)).scalars().all() == [4]
    assert run_id(target) == 599
    done = {what: (n, total) for what, n, total in told}
    assert {done[table.name] for table in t.metadata.sorted_tables} == {(200, 200)}
    assert done["verify chunk"] == (200, 200)


@pytest.mark.parametrize(("kind", "to"), [("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_a_copy_that_was_cut_off_anywhere_goes_on(
    make: Make, kind: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = filled(make, kind, 40), make(to)
    monkeypatch.setattr(transfer, "_PAGE_KEYS", 11)
    monkeypatch.setattr(transfer, "_TEXT_ROWS", 11)

    class Cut(Exception):
        pass

    for stop in itertools.count(1, 17):
        heard = itertools.count(1)

        def progress(what: str, done: int, total: int) -> None:
            if next(heard) == stop:  # noqa: B023
                raise Cut

        try:
            transfer.copy(source, target, progress)
        except Cut:
            continue
        break
    assert stop > 50
    assert everything(target) == everything(source)


def test_a_copy_killed_in_the_middle_is_finished_by_the_same_command(
    make: Make, tmp_path: Path
) -> None:
    source, target = make("sqlite"), make("postgresql")
    source.write(lambda c: fill(c, 3)).result()
    source.write(lambda c: c.execute(update(t.lease).values(expires_ns=0))).result()

    def grow(connection: transfer.Connection) -> None:
        body = os.urandom(20_000)
        connection.execute(
            insert(t.chunk),
            [
                {"segment_id": 1, "quantity": f"q{n}", "block": 1, "crc32": 0, "body": body}
                for n in range(500)
            ],
        )
        connection.execute(
            insert(t.event),
            [
                {
                    "run_id": 1,
                    "attempt_id": 1,
                    "rank": 0,
                    "step": n,
                    "time_ns": n,
                    "kind": "mark",
                    "data": {},
                }
                for n in range(20_000)
            ],
        )

    source.write(grow).result()
    source.close()
    command = [sys.executable, "-m", "gradwarden_server.cli", "db", "copy"]
    command += ["--from", source.url, "--to", target.url]
    process = subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    some = select(t.event.c.id).limit(1)
    while process.poll() is None:
        with target.read() as connection:
            if connection.execute(some).first():
                break
    process.send_signal(signal.SIGKILL)
    process.wait()
    with target.read() as connection:
        held = connection.execute(select(transfer.func.count()).select_from(t.event)).scalar_one()
    assert 0 < held < 20_003, "it was killed in the middle of a table"
    done = gradwarden("db", "copy", "--from", source.url, "--to", target.url)
    assert done.returncode == 0, done.stderr
    assert "20003" in done.stdout
    opened = Database(source.url)
    assert everything(target) == everything(opened)
    opened.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_holds_other_data_is_refused(make: Make, kind: str) -> None:
    source, target = filled(make, "sqlite", 20), filled(make, kind, 20)
    target.write(lambda c: c.execute(text("UPDATE project SET created_ns = 1"))).result()
    before = everything(target)
    with pytest.raises(transfer.NotCopied, match="holds other data: its table project"):
        transfer.copy(source, target)
    assert everything(target) == before


def test_a_source_that_changed_behind_the_resume_point_is_found(make: Make) -> None:
    source, target = filled(make, "sqlite", 20), make("postgresql")
    transfer.copy(source, target)
    source.write(lambda c: c.execute(text("UPDATE run SET name = 'new' WHERE id = 1"))).result()
    with pytest.raises(transfer.NotCopied, match="table run has 20 rows with checksum"):
        transfer.copy(source, target)


def test_a_database_in_use_is_refused(make: Make, tmp_path: Path) -> None:
    for kind in KINDS:
        source = make(kind)
        service = Service(tmp_path / kind, db=source.url)
        try:
            begin(service, "r")
            assert send(service, batch("r", [frame(1)])).status_code == 200
            other = f"sqlite:///{tmp_path}/other-{kind}.sqlite"
            for one, two in ((source.url, other), (other, source.url)):
                done = gradwarden("db", "copy", "--from", one, "--to", two)
                assert done.returncode == 3, done.stdout
                assert "service" in done.stderr
        finally:
            service.close()
        done = gradwarden("db", "copy", "--from", source.url, "--to", other)
        assert done.returncode == 0, done.stderr


def test_a_script_reads_the_counts(make: Make, tmp_path: Path) -> None:
    import json

    source = filled(make, "sqlite", 5)
    source.close()
    target = f"sqlite:///{tmp_path}/target.sqlite"
    done = gradwarden("db", "copy", "--from", source.url, "--to", target, "--json")
    assert json.loads(done.stdout)["rows"]["chunk"] == 5
    assert textwrap.dedent(done.stderr) == ""
