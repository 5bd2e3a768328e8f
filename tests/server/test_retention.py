"""Retention and deletion beside a running service, and what a crash in between leaves."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.keeping import merging, removal
from gradwarden_server.store.keeping.maintenance import Janitor
from gradwarden_server.store.keeping.retention import DAY_NS, Policy, RetentionStore
from gradwarden_server.store.keeping.sweep import Broom, Stopped
from gradwarden_server.store.log.recorded import RecordedSeries, unpacked
from gradwarden_server.store.records import StartRequest
from gradwarden_server.store.runs import RunStore
from tests.databases import sqlite_first
from tests.server.pager import PATIENCE, LocalReceiver
from tests.server.traffic import batch, beat, begin, frame, problem, send, start_body
from tests.service import Service, gradwarden

NOW = 1_800_000_000_000_000_000
PROJECT = "vision"


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder}/gw.sqlite"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made = Database(url_of(request.param, request, tmp_path))
    made.migrate()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    url = url_of(request.param, request, tmp_path)
    running = Service(tmp_path / "service", db=url)
    yield running
    running.close()


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def start(database: Database, run: str = "r", **facts: Any) -> int:
    request = StartRequest(run, "a1", 0, "n", "host", 1, started_ns=NOW, **facts)
    runs = RunStore(database)
    runs.start(PROJECT, request, NOW).result()
    found = runs.get(PROJECT, run)
    assert found is not None
    return found.id


def add_segments(database: Database, run: int, count: int, blocks: int = 4) -> None:
    """Sealed segments of 1024 steps each, one a day, the last of them today."""

    def job(connection: Any) -> None:
        stream = connection.execute(
            select(t.stream.c.id).where(t.stream.c.run_id == run)
        ).scalar_one()
        for n in range(count):
            t1_ns = NOW - (count - 1 - n) * DAY_NS
            body = b"x" * 1000
            segment = connection.execute(
                insert(t.segment)
                .values(
                    run_id=run,
                    stream_id=stream,
                    position0=8 * n + 1,
                    position1=8 * n + 8,
                    step0=1024 * n,
                    step1=1024 * n + 1023,
                    t0_ns=t1_ns - 1000,
                    t1_ns=t1_ns,
                    frames=1024,
                    matrices=1024,
                    samples=1024 * 8,
                    layout="l",
                    claimed_ns=t1_ns,
                    sealed=True,
                    held="raw",
                    bytes=1000 * (1 + blocks + 3),
                    crc32=zlib.crc32(body),
                    body=body,
                )
                .returning(t.segment.c.id)
            ).scalar_one()
            common = {"segment_id": segment, "crc32": zlib.crc32(body), "body": body}
            connection.execute(
                insert(t.chunk), [{**common, "quantity": "l2", "block": b} for b in range(blocks)]
            )
            connection.execute(
                insert(t.rollup),
                [
                    {**common, "quantity": "l2", "aggregate": "mean", "width": w}
                    for w in (16, 128, 1024)
                ],
            )

    database.write(job).result()


def held(database: Database) -> list[tuple[str, int, int, int]]:
    """(held, chunks, widest roll-ups, bytes) of each segment, the oldest first."""
    found = []
    with database.read() as connection:
        for row in connection.execute(select(t.segment).order_by(t.segment.c.step0)):
            chunks = select(func.count()).where(t.chunk.c.segment_id == row.id)
            rollups = select(func.count()).where(t.rollup.c.segment_id == row.id)
            numbers = [connection.execute(q).scalar_one() for q in (chunks, rollups)]
            found.append((row.held, *numbers, row.bytes))
    return found


def test_what_is_older_than_the_project_wants_goes_tier_by_tier(database: Database) -> None:
    run = start(database)
    add_segments(database, run, 6)
    RetentionStore(database).put(PROJECT, Policy(1.5, 3.5, None), NOW, "mei").result()
    swept = Janitor(database, "one").round(NOW)
    assert swept is not None
    assert (swept.narrowed, swept.values) == (4 + 2, 4 * 4 + 2)
    coarse, rolled, raw = ("coarse", 0, 2, 3000), ("rollup", 0, 3, 4000), ("raw", 4, 3, 8000)
    assert held(database) == [coarse, coarse, rolled, rolled, raw, raw]
    again = Janitor(database, "one").round(NOW)
    assert again is not None
    assert (again.narrowed, again.values) == (0, 0)


def test_values_around_an_alert_stay_as_long_as_their_run(database: Database) -> None:
    run = start(database)
    add_segments(database, run, 8)
    with_step = {"step": str(3 * 1024 + 5), "attempt": "1"}
    at_a_moment = NOW - 7 * DAY_NS
    alerts = [(NOW, with_step, "a"), (at_a_moment, {}, "b")]

    def job(connection: Any) -> None:
        for active_ns, words, name in alerts:
            connection.execute(
                insert(t.alert).values(
                    project=PROJECT,
                    run_id=run,
                    fingerprint=name,
                    alertname=name,
                    severity="page",
                    state="resolved",
                    labels={},
                    annotations=words,
                    active_ns=active_ns,
                    reason="condition",
                )
            )

    database.write(job).result()
    RetentionStore(database).put(PROJECT, Policy(0.5, None, None), NOW, "mei").result()
    Janitor(database, "one").round(NOW)
    raw = [n for n, (what, *_) in enumerate(held(database)) if what == "raw"]
    assert raw == [0, 2, 3, 4, 7], "the moment's, three around the step, and today's"


def test_a_crash_between_saying_and_dropping_is_made_good(database: Database) -> None:
    run = start(database)
    add_segments(database, run, 3)
    database.write(
        lambda c: c.execute(t.segment.update().where(t.segment.c.step0 == 0).values(held="coarse"))
    ).result()
    swept = Janitor(database, "one").round(NOW - 30 * DAY_NS)
    assert swept is not None
    assert swept.values == 4 + 1
    assert [row[:3] for row in held(database)] == [("coarse", 0, 2), ("raw", 4, 3), ("raw", 4, 3)]


def test_runs_that_nobody_heard_for_long_go_as_a_whole(database: Database) -> None:
    old, young = start(database, "old"), start(database, "young")
    add_segments(database, old, 2)
    database.write(
        lambda c: c.execute(
            t.run.update().where(t.run.c.id == old).values(last_seen_ns=NOW - 8 * DAY_NS)
        )
    ).result()
    RetentionStore(database).put(PROJECT, Policy(1, 2, 7), NOW, "mei").result()
    swept = Janitor(database, "one").round(NOW)
    assert swept is not None
    assert (swept.runs, swept.waiting) == (1, 0)
    with database.read() as connection:
        assert connection.execute(select(t.run.c.id)).scalars().all() == [young]
        for table in (t.segment, t.chunk, t.rollup, t.stream, t.attempt):
            mine = (
                select(table).where(table.c.run_id == old) if "run_id" in table.c else select(table)
            )
            assert connection.execute(mine).all() == [], table.name
        acts = connection.execute(select(t.audit.c.action, t.audit.c.subject)).all()
        assert ("run.delete", "old") in [tuple(act) for act in acts]


def points_of(database: Database, run: int) -> list[tuple[int, float]]:
    (series,) = RecordedSeries(database).newest(PROJECT, run, ["loss"], 10**6)
    return list(series.points)


def add_points(database: Database, run: int, first: int, last: int) -> None:
    recorded = RecordedSeries(database)

    def job(connection: Any) -> None:
        for n in range(first, last):
            # Every seventh chunk comes late, and every fifth shares its time with the next.
            at = NOW + 1000 * (n - 20 if n % 7 == 0 else n - n % 5)
            recorded.append(PROJECT, connection, run, "loss", {}, [(at, float(n)), (at + 1, -n)])

    database.write(job).result()


@sqlite_first("database")
def test_many_small_chunks_of_a_series_become_few_and_no_point_moves(database: Database) -> None:
    run = start(database)
    add_points(database, run, 0, 5000)
    before = points_of(database, run)
    assert len(before) == 10_000
    chunks = count(database, t.sample_chunk)
    swept = Janitor(database, "one").round(NOW)
    assert swept is not None
    assert count(database, t.sample_chunk) == chunks - swept.merged == 3
    assert points_of(database, run) == before
    with database.read() as connection:
        bodies = connection.execute(select(t.sample_chunk.c.body)).scalars().all()
        assert max(len(unpacked(body)) for body in bodies) <= merging.POINTS
    add_points(database, run, 5000, 5010)
    assert Janitor(database, "one").round(NOW).merged == 0  # type: ignore[union-attr]
    assert len(points_of(database, run)) == 10_020


@sqlite_first("database")
def test_a_merge_that_is_stopped_anywhere_loses_and_doubles_nothing(database: Database) -> None:
    run = start(database)
    add_points(database, run, 0, 2500)
    before = points_of(database, run)
    stopping = threading.Event()
    stopping.set()
    for _ in range(2):  # each stops after its first write
        with pytest.raises(Stopped):
            merging.merge_all(Broom(database, stopping))
        assert points_of(database, run) == before
    assert merging.merge_all(Broom(database, threading.Event())) == 0
    assert count(database, t.sample_chunk) == 2


def test_points_older_than_four_hundred_days_go(database: Database) -> None:
    run = start(database)
    recorded = RecordedSeries(database)
    for days in (500, 401, 399, 0):
        at = NOW - days * DAY_NS
        database.write(
            lambda c, at=at, days=days: recorded.append(
                PROJECT, c, run, "loss", {}, [(at, float(days))]
            )
        ).result()
    assert Janitor(database, "one").round(NOW).points == 2  # type: ignore[union-attr]
    assert [value for _, value in points_of(database, run)] == [399.0, 0.0]


def test_only_one_janitor_is_at_work(database: Database) -> None:
    run = start(database)
    add_segments(database, run, 1)
    one, two = Janitor(database, "one"), Janitor(database, "two")
    lease = one._leases.acquire("gradwarden", "janitor", "a third", 60 * 10**9)
    assert lease is not None
    assert two.round(NOW) is None
    one._leases.release("gradwarden", "a third")
    assert two.round(NOW) is not None


@sqlite_first("served")
def test_a_policy_that_keeps_the_fine_longer_than_the_coarse_is_refused(served: Service) -> None:
    assert served.get("/v1/retention") == {"raw_days": 14, "rollup_days": 90, "run_days": None}
    wrong = {"raw_days": 100, "rollup_days": 90, "run_days": None}
    refusal = problem(served.call("PUT", "/v1/retention", json=wrong), 422, "invalid-arguments")
    assert refusal["field"] == "rollup_days"
    assert "raw_days is 100 days" in refusal["detail"]
    for body in ({"raw_days": 1}, {**wrong, "raw_days": 0}, {**wrong, "spare_days": 1}):
        problem(served.call("PUT", "/v1/retention", json=body), 400, "malformed")
    right = {"raw_days": 2.5, "rollup_days": None, "run_days": None}
    assert served.call("PUT", "/v1/retention", json=right).json() == right
    assert served.get("/v1/retention") == right
    shown = gradwarden("retention", "--url", served.url, "--rollup-days", "30", "--json")
    assert shown.returncode == 0, shown.stderr
    assert served.get("/v1/retention") == {**right, "rollup_days": 30}
    refused = gradwarden("retention", "--url", served.url, "--run-days", "7")
    assert refused.returncode == 2
    assert "run_days: 7 days, while rollup_days is 30 days" in refused.stderr
    for_ever = gradwarden("retention", "--url", served.url, "--rollup-days", "never")
    assert "for ever" in for_ever.stdout


def test_a_deleted_run_is_gone_at_once_and_its_trainer_is_told(served: Service) -> None:
    for run in ("sick", "well"):
        begin(served, run)
        send(served, batch(run, [frame(n, bad_row=1 if n > 2 else None) for n in range(1, 9)]))
    until(lambda: len(served.get("/v1/alerts", params={"state": "firing"})["items"]) == 2)
    beat(served, "sick")
    done = gradwarden("runs", "delete", "sick", "--url", served.url)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    done = gradwarden("runs", "delete", "sick", "--yes", "--url", served.url)
    assert done.returncode == 0, done.stderr
    for path in ("", "/events", "/heatmap?quantity=l2", "/series?q=loss"):
        problem(served.call("GET", f"/v1/runs/sick{path}"), 404, "not-found")
    assert [r["run"] for r in served.get("/v1/runs")["items"]] == ["well"]
    runs = {a["labels"]["run"] for a in served.get("/v1/alerts")["items"]}
    assert runs == {"well"}
    assert 'run="sick"' not in served.call("GET", "/metrics").text
    refused = problem(send(served, batch("sick", [frame(9)])), 410, "run-deleted")
    assert "was deleted" in refused["detail"]
    problem(beat(served, "sick"), 410, "run-deleted")
    answer = served.call("POST", "/v1/start", json=start_body("sick", attempt="a2"))
    problem(answer, 410, "run-deleted")
    problem(served.call("DELETE", "/v1/runs/sick"), 404, "not-found")
    assert send(served, batch("well", [frame(9)])).json()["stored"] == 1

    def emptied() -> bool:
        with database.read() as connection:
            row = connection.execute(select(t.run.c.id).where(t.run.c.run == "sick")).scalar_one()
            tables = (t.frame_batch, t.event, t.alert, t.series, t.detector_state)
            return not any(
                connection.execute(select(table.c.run_id).where(table.c.run_id == row)).first()
                for table in tables
            )

    database = Database(served.db)
    try:
        assert until(emptied), "its row and its streams stay a day, for its trainer still lives"
    finally:
        database.close()


@sqlite_first("served")
def test_the_name_of_a_run_that_had_ended_is_free_when_it_is_gone(served: Service) -> None:
    begin(served, "r")
    finish = {"kind": "finish", "status": "finished"}
    send(served, batch("r", [frame(1), frame(2, events=(finish,))]))
    assert served.call("DELETE", "/v1/runs/r").status_code == 204

    def begun() -> bool:
        answer = served.call("POST", "/v1/start", json=start_body("r", attempt="a2", nonce="n2"))
        assert answer.status_code in (200, 410)
        return answer.status_code == 200

    until(begun)
    detail = served.get("/v1/runs/r")
    assert [a["attempt"] for a in detail["attempts"]] == ["a2"]
    assert detail["steps"] is None


def test_who_was_paged_for_a_deleted_run_hears_that_it_is_resolved(tmp_path: Path) -> None:
    pager = LocalReceiver()
    receivers = (
        f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
        "    allow_private: true\n"
    )
    service = Service(tmp_path / "service", receivers=receivers)
    try:
        begin(service, "sick")
        send(service, batch("sick", [frame(n, bad_row=1 if n > 2 else None) for n in range(1, 9)]))
        until(lambda: _told(pager, "firing"))
        service.call("DELETE", "/v1/runs/sick")
        assert until(lambda: _told(pager, "resolved")) == _told(pager, "firing")
    finally:
        service.close()
        pager.close()


def _told(pager: LocalReceiver, status: str) -> set[str]:
    import json

    bodies = [json.loads(request.body) for request in list(pager.requests)]
    return {a["fingerprint"] for b in bodies for a in b["alerts"] if a["status"] == status}


def test_a_service_killed_while_it_deletes_goes_on_after_its_start(
    database: Database, tmp_path: Path
) -> None:
    run = start(database)
    add_segments(database, run, 150, blocks=20)
    start(database, "kept")
    database.write(lambda c: c.execute(t.run.update().values(status="finished"))).result()
    service = Service(tmp_path / "service", db=database.url)
    header = {"Gradwarden-Project": PROJECT}
    try:
        assert service.call("DELETE", "/v1/runs/r", headers=header).status_code == 204
        until(lambda: count(database, t.segment) < 140)
        service.kill()
        assert count(database, t.segment) > 0, "it was killed in the middle"
        service.start()
        assert [r["run"] for r in service.get("/v1/runs", headers=header)["items"]] == ["kept"]
        until(lambda: count(database, t.run) == 1)
        assert count(database, t.segment) == count(database, t.chunk) == 0
        assert count(database, t.rollup) == 0
    finally:
        service.close()


def test_ingest_goes_on_while_a_large_run_is_deleted(served: Service) -> None:
    database = Database(served.db)
    try:
        run = start(database)
        add_segments(database, run, 80, blocks=20)
        begin(served, "training")
        header = {"Gradwarden-Project": PROJECT}
        assert served.call("DELETE", "/v1/runs/r", headers=header).status_code == 204
        seq = 0
        while count(database, t.segment):
            seq += 1
            assert send(served, batch("training", [frame(seq)])).json()["stored"] == 1
        assert seq > 1
        assert served.get("/v1/runs/training")["steps"] == [0, seq - 1]
    finally:
        database.close()


def test_room_is_given_back_beside_ingest(tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    database = Database(service.db)
    try:
        run = start(database)
        add_segments(database, run, 200, blocks=30)
        header = {"Gradwarden-Project": PROJECT}
        service.call("DELETE", "/v1/runs/r", headers=header)
        until(lambda: count(database, t.segment) == 0)
        before = service.path.stat().st_size
        begin(service, "training")
        done = gradwarden("db", "vacuum", "--url", service.url)
        assert done.returncode == 0, done.stderr
        assert service.path.stat().st_size < before / 2
        assert send(service, batch("training", [frame(1)])).json()["stored"] == 1
        refused = gradwarden("db", "vacuum", "--db", service.db)
        assert refused.returncode == 3
        assert "--url" in refused.stderr
    finally:
        service.close()
        database.close()


def test_readers_never_meet_a_run_that_is_half_gone(database: Database) -> None:
    run = start(database)
    add_segments(database, run, 2)
    assert removal.RunRemoval(database).delete(PROJECT, "r", NOW, "mei").result()
    assert not removal.RunRemoval(database).delete(PROJECT, "r", NOW, "mei").result()
    assert RunStore(database).get(PROJECT, "r") is None
    assert RunStore(database).streams(PROJECT, "r") == []
    assert count(database, t.segment) == 2
