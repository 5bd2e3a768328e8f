"""Backups taken while a service writes, restores of them, and what is refused."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.keeping import backup as backups
from tests.server.populate import contents, fill
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, gradwarden

KINDS = ("sqlite", "postgresql")


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/first.sqlite"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def filled(url: str) -> Iterator[Database]:
    database = Database(url)
    database.migrate()
    database.write(lambda connection: fill(connection, 60)).result()
    database.write(lambda c: c.execute(update(t.lease).values(expires_ns=0))).result()
    yield database
    database.close()


def everything(database: Database) -> object:
    with database.read() as connection:
        return contents(connection)


def test_what_was_backed_up_comes_back(filled: Database, tmp_path: Path) -> None:
    before = everything(filled)
    file = tmp_path / "backup.sqlite"
    done = gradwarden("db", "backup", str(file), "--db", filled.url, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == {table.name: 60 for table in t.metadata.sorted_tables}
    assert told["bytes"] == file.stat().st_size
    assert sorted(p.name for p in tmp_path.glob("backup*")) == ["backup.sqlite"]
    filled.write(lambda c: c.execute(update(t.project).values(created_ns=1))).result()
    filled.close()
    refused = gradwarden("db", "restore", str(file), "--db", filled.url)
    assert refused.returncode == 3, refused.stdout
    assert "exists; give --force" in refused.stderr or "holds other data" in refused.stderr
    done = gradwarden("db", "restore", str(file), "--db", filled.url, "--force")
    assert done.returncode == 0, done.stderr
    again = Database(filled.url)
    assert everything(again) == before
    again.close()
    assert not list(tmp_path.glob("*.part*"))


def test_a_backup_moves_to_the_other_kind(
    filled: Database, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "backup.sqlite"
    backups.backup(filled, file)
    other = f"sqlite:///{tmp_path}/other.sqlite"
    if filled.kind == "sqlite":
        other = request.getfixturevalue("postgres_url")
    target = Database(other)
    backups.restore(file, target)
    assert everything(target) == everything(filled)
    target.close()


def test_a_backup_beside_ingest_is_of_one_moment(url: str, tmp_path: Path) -> None:
    service = Service(tmp_path / "service", db=url)
    stop = threading.Event()
    acked: list[int] = []

    def train() -> None:
        for seq in range(1, 100_000):
            if stop.is_set():
                return
            answer = send(service, batch("r", [frame(seq)]))
            assert answer.status_code == 200, answer.text
            acked.append(seq)

    try:
        begin(service, "r")
        trainer = threading.Thread(target=train)
        trainer.start()
        files = []
        while len(acked) < 20:
            pass_on = threading.Event()
            pass_on.wait(0.01)
        for n in range(3):
            sent = len(acked)
            files.append((tmp_path / f"backup{n}.sqlite", sent))
            done = gradwarden("db", "backup", str(files[-1][0]), "--db", url)
            assert done.returncode == 0, done.stderr
        stop.set()
        trainer.join()
        refused = gradwarden("db", "restore", str(files[0][0]), "--db", url, "--force")
        assert refused.returncode == 3
        assert "stop" in refused.stderr
        assert service.get("/v1/runs/r")["steps"] == [0, len(acked) - 1]
    finally:
        stop.set()
        service.close()
    for file, sent in files:
        opened = sqlite3.connect(file)
        rows = opened.execute(
            "SELECT run.position, stream.seqs, (SELECT count(*) FROM frame_batch), "
            "(SELECT max(last_seq) FROM frame_batch) FROM run, stream"
        ).fetchone()
        opened.close()
        position, seqs, batches, last = rows
        assert position == batches == last >= sent, "every frame acked before it began"
        assert json.loads(seqs) == [[1, last]]
    restored = Service(tmp_path / "restored", db=f"sqlite:///{files[-1][0]}")
    try:
        assert restored.get("/v1/runs/r")["steps"] == [0, last - 1]
    finally:
        restored.close()


def test_an_older_backup_is_brought_to_the_newest_schema(tmp_path: Path) -> None:
    old = Database(f"sqlite:///{tmp_path}/old.sqlite")
    old.migrate()
    old.downgrade("0001")
    old.write(lambda connection: fill(connection, 5)).result()
    old.close()
    target = Database(f"sqlite:///{tmp_path}/new.sqlite")
    rows = backups.restore(tmp_path / "old.sqlite", target)
    assert rows["run"] == 5
    assert "segment" not in rows
    with target.read() as connection:
        assert set(contents(connection)) == {table.name for table in t.metadata.sorted_tables}
    target.close()


def test_no_backup_and_a_damaged_one_are_refused(filled: Database, tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite"
    backups.backup(filled, file)
    with pytest.raises(backups.NotBackedUp, match="exists; name another file"):
        backups.backup(filled, file)
    before = everything(filled)
    raw = bytearray(file.read_bytes())
    raw[8192 * 3 : 8192 * 4] = b"\x5a" * 8192
    (tmp_path / "damaged.sqlite").write_bytes(raw)
    (tmp_path / "letter.sqlite").write_text("dear sir")
    (tmp_path / "empty.sqlite").write_bytes(b"")
    for name in ("damaged", "letter", "empty", "absent"):
        with pytest.raises(backups.NotBackedUp, match=name):
            backups.restore(tmp_path / f"{name}.sqlite", filled, force=True)
    assert everything(filled) == before


def test_a_backup_that_fails_leaves_nothing_behind(filled: Database, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise InterruptedError(what)

    with pytest.raises(InterruptedError):
        backups.backup(filled, tmp_path / "backup.sqlite", stop)
    assert not list(tmp_path.glob("backup*"))
    backups.backup(filled, tmp_path / "backup.sqlite")
