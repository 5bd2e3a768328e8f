"""Many runs judged in one round: what is written together, and what a crash takes with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from gradwarden_server.alerting.coverage import ARMED, WATCHABLE
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Priority
from tests.server.test_evaluator import SICK, Bench
from tests.server.test_store import NOW, PROJECT

RUNS = [f"run-{i}" for i in range(12)]


@pytest.fixture(params=["sqlite", "postgresql"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made = Bench(tmp_path, url)
    for run in RUNS:
        made.store.start(run)
    yield made
    made.store.database.close()


def row_of(bench: Bench, run: str) -> int:
    found = bench.store.runs.get(PROJECT, run)
    assert found is not None
    return found.id


def paged(bench: Bench) -> set[str]:
    found = bench.ledger.list(PROJECT, severity="page", limit=1000).items
    return {alert.run or "" for alert in found}


def test_every_run_of_a_round_is_judged_and_only_the_sick_ones_page(bench: Bench) -> None:
    for number, run in enumerate(RUNS):
        bench.send(0, SICK, sick=(SICK,) if number % 3 == 0 else (), run=run)
    bench.round()
    assert paged(bench) == set(RUNS[::3])
    assert [bench.store.evaluation.unjudged(PROJECT, run) for run in RUNS] == [0] * len(RUNS)


def test_a_run_that_another_process_took_spoils_nobody_elses_round(bench: Bench) -> None:
    for run in RUNS:
        bench.send(0, 3, run=run)
    bench.round()
    taken = row_of(bench, RUNS[5])
    theirs = update(t.cursor).where(t.cursor.c.run_id == taken).values(epoch=99)
    bench.store.database.write(lambda connection: connection.execute(theirs)).result()
    for run in RUNS:
        bench.send(4, SICK, sick=(SICK,), run=run)
    bench.round()
    assert paged(bench) == {run for run in RUNS if run != RUNS[5]}
    assert bench.store.evaluation.unjudged(PROJECT, RUNS[5]) == 1


def test_a_list_of_runs_is_told_the_newest_values(bench: Bench) -> None:
    bench.send(0, 3, run=RUNS[0])
    bench.send(0, SICK, sick=(SICK,), run=RUNS[1])
    bench.round()
    # What was queued before this is done.
    bench.store.database.write(lambda connection: None, Priority.COMPACTION).result()
    with bench.store.database.read() as connection:
        rows = connection.execute(select(t.run.c.run, t.run.c.latest)).all()
    told = {row.run: row.latest for row in rows}
    counts = {name: told[RUNS[0]].pop(name) for name in (ARMED, WATCHABLE)}
    assert 0 < counts[ARMED] <= counts[WATCHABLE]
    assert told[RUNS[0]] == {"loss": 1.0, "grad_norm": pytest.approx(3**0.5)}
    assert told[RUNS[1]]["grad_norm"] == "NaN"
    assert told[RUNS[2]] is None
    json.dumps(told, allow_nan=False)


def test_points_that_a_crash_takes_are_derived_again_and_none_twice(bench: Bench) -> None:
    run = RUNS[0]
    for step in range(25):
        bench.send(step, step, run=run)
        bench.round()
        if step in (3, 4, 17):
            bench.crash()
    held = bench.store.recorded.newest(PROJECT, row_of(bench, run), ["gradwarden_loss"], 1000)
    assert len(held[0].points) < 25, "some are kept back"
    bench.crash()
    bench.round()
    (loss,) = bench.store.recorded.newest(PROJECT, row_of(bench, run), ["gradwarden_loss"], 1000)
    assert len(loss.points) == 25
    assert len({at_ns for at_ns, _ in loss.points}) == 25


def test_points_kept_back_are_few_enough_chunks(bench: Bench) -> None:
    run = RUNS[0]
    for step in range(30):
        bench.send(step, step, run=run, at=NOW)
        bench.round()
    with bench.store.database.read() as connection:
        chunks = connection.execute(select(t.sample_chunk.c.id)).all()
    assert len(chunks) < 15, "of three series in thirty rounds of a second"


def test_a_run_that_ends_has_all_its_points(bench: Bench) -> None:
    run = RUNS[0]
    for step in range(5):
        bench.send(step, step, run=run)
        bench.round()
    over = update(t.run).where(t.run.c.run == run).values(status="finished")
    bench.store.database.write(lambda connection: connection.execute(over)).result()
    bench.round()
    bench.round()
    (loss,) = bench.store.recorded.newest(PROJECT, row_of(bench, run), ["gradwarden_loss"], 1000)
    assert len(loss.points) == 5
