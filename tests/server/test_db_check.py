"""`gradwarden db check` names what is damaged, and `stats` what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text, update

from gradwarden_server.store import tables as t
from gradwarden_server.store.compacting.compaction import Compaction
from gradwarden_server.store.keeping.check import Damage, damages
from gradwarden_server.store.keeping.stats import sizes
from gradwarden_server.store.log.recorded import RecordedSeries
from tests.databases import sqlite_first
from tests.server.test_compaction import send
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store
from tests.service import Service, gradwarden

Harm = Callable[[Connection], Any]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """300 frames of two ranks, the first of them compacted into two segments each."""
    made = Store(store_url)
    made.runs.put_layout(PROJECT, LAYOUT).result()
    for rank in (0, 1):
        send(made, 300, rank=rank)
    compaction = Compaction(made.database, made.log, frames=128)
    for due in compaction.due(NOW):
        for _ in range(2):
            assert compaction.compact(due) is not None
    recorded = RecordedSeries(made.database)
    run = made.runs.get(PROJECT, "r")
    assert run is not None
    row = run.id
    made.database.write(
        lambda c: recorded.append(PROJECT, c, row, "loss", {}, [(NOW, 1.0), (NOW + 1, 2.0)])
    ).result()
    yield made
    made.database.close()


def found(store: Store) -> list[Damage]:
    return list(damages(store.database))


def harm(store: Store, what: Harm) -> list[Damage]:
    store.database.write(what).result()
    return found(store)


def flipped(table: Any, column: Any, row: Any) -> Harm:
    """Turns one bit in the middle of a body."""

    def job(connection: Connection) -> None:
        body = bytearray(connection.execute(select(table.c.body).where(column == row)).scalar_one())
        body[len(body) // 2] ^= 1
        connection.execute(update(table).where(column == row).values(body=bytes(body)))

    return job


def test_a_whole_database_is_found_whole(store: Store) -> None:
    assert found(store) == []


def test_one_bit_anywhere_is_named_with_its_place(store: Store) -> None:
    with store.database.read() as connection:
        batch = connection.execute(select(t.frame_batch).limit(1)).one()
        segment = connection.execute(
            select(t.segment, t.stream.c.rank).join(
                t.stream, t.stream.c.id == t.segment.c.stream_id
            )
        ).first()
        assert segment is not None
    (damage,) = harm(store, flipped(t.frame_batch, t.frame_batch.c.id, batch.id))
    assert (damage.what, damage.project, damage.run) == ("batch of the log", PROJECT, "r")
    assert damage.steps == (batch.step0, batch.step1)
    here = (t.chunk.c.segment_id == segment.id) & (t.chunk.c.quantity == "l2")
    damage = harm(store, flipped(t.chunk, here, True))[1]
    assert (damage.what, damage.rank) == ("chunk", segment.rank)
    assert damage.steps == (segment.step0, segment.step1)
    assert damage.layers == "l2 of rows 0 to 15"
    assert "its checksum is" in damage.detail
    here = (t.rollup.c.segment_id == segment.id) & (t.rollup.c.quantity == "l2")
    here &= (t.rollup.c.width == 128) & (t.rollup.c.aggregate == "mean")
    damage = harm(store, flipped(t.rollup, here, True))[2]
    assert (damage.what, damage.layers) == ("roll-up", "mean of l2 over 128 steps")
    assert "rank" in str(damage)
    damage = harm(store, flipped(t.sample_chunk, t.sample_chunk.c.id, 1))[3]
    assert (damage.what, damage.layers, damage.run) == ("chunk of a series", "loss", "r")
    listed = harm(store, flipped(t.segment, t.segment.c.id, segment.id))
    assert [d.what for d in listed].count("segment") == 1


@sqlite_first("store_url")
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "DELETE FROM frame_batch WHERE position = (SELECT max(position) FROM frame_batch)",
            "missing",
        ),
        ("DELETE FROM segment WHERE position0 = 1", "missing"),
        ("UPDATE run SET position = position - 1", "beyond the run's last"),
        ("DELETE FROM chunk WHERE quantity = 'l2'", "0 of 1 chunks are there"),
        ("UPDATE segment SET frames = frames + 1", "frames, not"),
        ("UPDATE segment SET position1 = position1 + 1", "stands for positions"),
        ("UPDATE layout SET hash = 'f' || substr(hash, 2)", "hashes to"),
        ("UPDATE frame_batch SET last_seq = last_seq + 1", "it holds frames"),
    ],
)
def test_what_is_missing_or_told_wrongly_is_found(store: Store, what: str, says: str) -> None:
    listed = harm(store, lambda c: c.execute(text(what)))
    assert listed
    assert any(says in damage.detail for damage in listed), listed


def test_a_batch_that_two_segments_hold_is_found(store: Store) -> None:
    def again(connection: Connection) -> None:
        row = dict(connection.execute(select(t.segment).limit(1)).one()._mapping)
        other = connection.execute(
            select(t.stream.c.id).where(t.stream.c.id != row["stream_id"])
        ).scalars()
        row |= {"id": 1000, "stream_id": next(iter(other)), "held": "rollup"}
        connection.execute(insert(t.segment).values(row))

    (damage,) = harm(store, again)
    assert "held twice" in damage.detail
    assert " more " in damage.detail


@sqlite_first("store_url")
def test_the_command_says_so_by_its_exit_code(store: Store) -> None:
    url = store.database.url
    whole = gradwarden("db", "check", "--db", url)
    assert (whole.returncode, whole.stdout) == (0, "nothing is damaged\n")
    store.database.write(
        lambda c: c.execute(text("UPDATE chunk SET crc32 = crc32 + 1 WHERE quantity = 'l2'"))
    ).result()
    listed = gradwarden("db", "check", "--db", url, "--json")
    assert listed.returncode == 1
    (first, *_) = json.loads(listed.stdout)["damages"]
    assert (first["project"], first["run"], first["what"]) == (PROJECT, "r", "chunk")
    told = gradwarden("db", "check", "--db", url)
    assert "chunk: its checksum is" in told.stdout
    assert "run r, rank 0, steps 3 to" in told.stdout


def test_a_file_with_a_torn_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gw.sqlite"
    made = Store(f"sqlite:///{path}")
    made.runs.put_layout(PROJECT, LAYOUT).result()
    send(made, 600)
    made.database.close()
    raw = bytearray(path.read_bytes())
    raw[-8192 * 20 : -8192 * 10] = b"\x00" * 8192 * 10
    path.write_bytes(raw)
    done = gradwarden("db", "check", "--db", f"sqlite:///{path}")
    assert done.returncode == 1
    assert "database file:" in done.stdout
    assert "Traceback" not in done.stderr


def test_check_and_stats_read_beside_a_service(store: Store, tmp_path: Path) -> None:
    store.database.write(lambda c: c.execute(update(t.run).values(status="finished"))).result()
    service = Service(tmp_path / "service", db=store.database.url)
    try:
        assert gradwarden("db", "check", "--db", service.db).returncode == 0
        done = gradwarden("db", "stats", "--db", service.db, "--json")
        assert json.loads(done.stdout)["runs"][0]["run"] == "r"
    finally:
        service.close()


@sqlite_first("store_url")
def test_stats_tell_what_is_stored_and_its_weight(store: Store) -> None:
    (size,) = sizes(store.database)

    def asked(query: str) -> int:
        with store.database.read() as connection:
            return int(connection.execute(text(query)).scalar_one())

    assert (size.project, size.run, size.segments) == (PROJECT, "r", 4)
    assert size.log_frames + size.segment_frames == 600
    assert size.log_frames == asked("SELECT sum(logged_frames) FROM stream")
    assert size.samples == asked("SELECT sum(samples) FROM segment")
    assert size.compacted_bytes == asked("SELECT sum(bytes) FROM segment")
    assert sum(size.chunk_bytes.values()) == asked("SELECT sum(length(body)) FROM chunk")
    assert set(size.rollup_bytes) == {128, 1024}  # few of its steps fall in 16
    assert (size.series, size.series_chunks) == (1, 1)
    assert size.bytes_per_sample == size.compacted_bytes / size.samples
    shown = gradwarden("db", "stats", "--db", store.database.url)
    assert shown.returncode == 0, shown.stderr
    assert "bytes a compacted sample" in shown.stdout
    assert "chunks by quantity: " in shown.stdout
