"""Bytes of the database go bad on the disk: what is lost is named, the rest is read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gradwarden_server.store.compacting.compaction import Compaction
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from tests.server.siege import announce, check_kept, message, until
from tests.server.traffic import FRAMES, problem
from tests.service import Service, gradwarden

BATCHES, PER = 16, 8
SEGMENT = 64


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service with a run of 128 frames; it is stopped."""
    made = Service(tmp_path)
    announce(made, "r")
    for first in range(1, BATCHES * PER, PER):
        sent = made.call("POST", "/v1/ingest", content=message("r", first, PER), headers=FRAMES)
        assert sent.status_code == 200, sent.text
    made.stop()
    yield made
    made.close()


def _compact(service: Service) -> None:
    database = Database(service.db)
    compaction = Compaction(database, LogReader(database), frames=SEGMENT)
    while due := compaction.due(2**62):
        for one in due:
            assert compaction.compact(one) is not None
    database.close()


def _sql(service: Service, statement: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(service.path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def _overwrite(service: Service, root_of: str) -> None:
    """Write nonsense over the root page of a table, as a bad disk would."""
    _sql(service, "PRAGMA wal_checkpoint(TRUNCATE)")
    ((page, size),) = _sql(
        service,
        "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_master"
        " WHERE name = ?",
        root_of,
    )
    assert isinstance(page, int)
    assert isinstance(size, int)
    with service.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def _behead(service: Service) -> None:
    _sql(service, "PRAGMA wal_checkpoint(TRUNCATE)")
    with service.path.open("r+b") as file:
        file.write(b"\xa5" * 4096)


def test_a_damaged_chunk_names_run_rank_rows_and_steps_and_the_rest_is_read(
    service: Service,
) -> None:
    _compact(service)
    ((number,),) = _sql(
        service, "SELECT id FROM segment WHERE sealed ORDER BY position0 DESC LIMIT 1"
    )
    # One bit, in the middle of the newer segment's chunk of the first rows' norms.
    ((body,),) = _sql(
        service,
        "SELECT body FROM chunk WHERE segment_id = ? AND quantity = 'l2' AND block = 0",
        number,
    )
    assert isinstance(body, bytes)
    at = len(body) // 2
    flipped = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
    _sql(
        service,
        "UPDATE chunk SET body = ? WHERE segment_id = ? AND quantity = 'l2' AND block = 0",
        flipped,
        number,
    )
    service.start()
    path = "/v1/runs/r/series"
    told = problem(service.call("GET", path, params={"keys": "layer:3:l2"}), 500, "damaged")
    assert told["place"] == "run 'r', rank 0, steps 64 to 127"
    assert told["what"] == "l2 of rows 0 and on"
    assert "gradwarden db check" in told["detail"]
    whole = {"keys": "layer:3:l2", "from": "0", "to": "63"}
    assert service.call("GET", path, params=whole).status_code == 200, "older steps are whole"
    other = service.call("GET", path, params={"keys": "layer:3:absmax"})
    assert other.status_code == 200, "and so are other quantities"
    far = service.call("GET", path, params={"keys": "layer:40:l2"})
    assert far.status_code == 200, "and other rows"


def test_a_damaged_batch_of_the_log_is_named_and_the_run_is_judged_on(service: Service) -> None:
    ((body,),) = _sql(service, "SELECT body FROM frame_batch WHERE position = 5")
    assert isinstance(body, bytes)
    flipped = body[:-9] + bytes([body[-9] ^ 0x10]) + body[-8:]
    _sql(service, "UPDATE frame_batch SET body = ? WHERE position = 5", flipped)
    _sql(service, "UPDATE cursor SET position = 0")
    _sql(service, "DELETE FROM detector_state")
    service.start()
    path = "/v1/runs/r/series"
    told = problem(service.call("GET", path, params={"keys": "layer:3:l2"}), 500, "damaged")
    assert told["place"] == "rank 0, steps 32 to 39"
    assert told["what"] == "the batch at log position 5"
    whole = {"keys": "layer:3:l2", "from": "40", "to": "127"}
    assert service.call("GET", path, params=whole).status_code == 200
    until(lambda: service.get("/v1/runs/r")["unjudged"] == 0, "it is not judged to its end")
    assert "is judged without this: rank 0, steps 32 to 39" in service.log_text()


def test_a_damaged_page_of_the_log_is_told_and_nothing_is_made_up(service: Service) -> None:
    _overwrite(service, "frame_batch")
    service.start()
    assert [run["run"] for run in service.get("/v1/runs")["items"]] == ["r"]
    refused = service.call("POST", "/v1/ingest", content=message("r", 129), headers=FRAMES)
    reading = service.call("GET", "/v1/runs/r/series", params={"keys": "layer:0:l2"})
    for answer in (refused, reading):
        told = problem(answer, 500, "damaged")
        assert str(service.path) in told["detail"]
        assert "gradwarden db restore" in told["detail"]
    assert service.process is not None
    assert service.process.poll() is None


def test_a_damaged_list_of_runs_is_told_and_ends_nothing(service: Service) -> None:
    _overwrite(service, "run")
    service.start()
    for path in ("/v1/runs", "/v1/runs/r"):
        told = problem(service.call("GET", path), 500, "damaged")
        assert str(service.path) in told["detail"]
    until(lambda: "evaluation waits" in service.log_text(), "the evaluator does not say so")
    assert service.process is not None
    assert service.process.poll() is None


def test_a_database_damaged_where_the_service_must_read_is_refused_at_start(
    service: Service,
) -> None:
    _overwrite(service, "alembic_version")
    _check_refused(service)


def test_a_file_that_lost_its_head_is_refused_at_start(service: Service) -> None:
    _behead(service)
    _check_refused(service)


def _check_refused(service: Service) -> None:
    done = gradwarden("serve", "--port", "0", "--db", service.db)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert str(service.path) in done.stderr
    assert "gradwarden db restore" in done.stderr


@pytest.mark.parametrize("damaged", ["frame_batch", "head"])
def test_a_backup_brings_a_damaged_database_back(
    service: Service, tmp_path: Path, damaged: str
) -> None:
    kept = tmp_path / "kept.sqlite"
    done = gradwarden("db", "backup", str(kept), "--db", service.db)
    assert done.returncode == 0, done.stderr
    if damaged == "head":
        _behead(service)
    else:
        _overwrite(service, damaged)
    checked = gradwarden("db", "check", "--db", service.db)
    assert checked.returncode in (1, 3), "no, or it cannot even be opened"
    assert str(service.path) in checked.stdout + checked.stderr
    assert "Traceback" not in checked.stderr
    restored = gradwarden("db", "restore", str(kept), "--force", "--db", service.db)
    assert restored.returncode == 0, restored.stderr
    assert gradwarden("db", "check", "--db", service.db).returncode == 0
    check_kept(service.db, {"r": BATCHES * PER})
