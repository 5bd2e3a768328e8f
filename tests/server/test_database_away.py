"""PostgreSQL goes away in the middle of a run and comes back: refusals say so, nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg

from tests.conftest import PostgresServer
from tests.server.pager import EACH_AT_ONCE, PATIENCE, local_receiver
from tests.server.siege import SICK_EVERY, Trainer, announce, check_kept, check_told, until
from tests.server.traffic import batch, begin, frame, problem, send
from tests.service import Service


def test_a_database_that_goes_away_and_returns(postgres_url: str, tmp_path: Path) -> None:
    server, _, name = postgres_url.replace("+psycopg", "").rpartition("/")
    service = Service(tmp_path, db=postgres_url)
    try:
        begin(service, "r")
        assert send(service, batch("r", [frame(1)])).json()["stored"] == 1
        with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            _cut(admin, name)
            refused = send(service, batch("r", [frame(2)]))
            assert int(problem(refused, 503, "unavailable") and refused.headers["retry-after"])
            for path in ("/v1/runs", "/v1/alerts", "/v1/runs/r", "/v1/tokens"):
                problem(service.call("GET", path), 503, "unavailable")
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            frames = [frame(seq, bad_row=1 if seq == 12 else None) for seq in range(2, 21)]
            assert send(service, batch("r", frames)).json()["stored"] == 19
            _cut(admin, name)  # a restart that nobody notices but through dead connections
            assert service.call("GET", "/v1/alerts").status_code == 200
        deadline = time.monotonic() + PATIENCE
        while not service.get("/v1/alerts", params={"state": "firing"})["items"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert service.get("/v1/runs/r")["steps"] == [0, 19]
    finally:
        service.close()


def _cut(admin: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
    )


def test_postgres_restarts_in_the_middle_of_writing(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    db = own_postgres.create()
    with local_receiver() as pager:
        receivers = (
            f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
            f"    allow_private: true\n{EACH_AT_ONCE}"
        )
        service = Service(tmp_path, db=db, receivers=receivers)
        runs = ["sick-0", "well-1"]
        trainers = [Trainer([service], run) for run in runs]
        try:
            for trainer in trainers:
                announce(service, trainer.run_name)
                trainer.start()
            for _ in range(3):
                trainers[0].more(SICK_EVERY // 2)
                own_postgres.stop("immediate")  # a crash: no goodbye, no checkpoint
                refused = trainers[0].refusals[503]
                until(lambda n=refused: trainers[0].refusals[503] > n + 1, "nobody is refused")
                own_postgres.start()
            for trainer in trainers:
                trainer.more(SICK_EVERY)
                trainer.finish()
                assert set(trainer.refusals) == {503}, "a way to say: later"
            check_told(service, pager, runs)
            assert service.process is not None
            assert service.process.poll() is None, "and all that in one process"
        finally:
            for trainer in trainers:
                trainer.finish()
            service.close()
        check_kept(db, {trainer.run_name: trainer.acked for trainer in trainers})
