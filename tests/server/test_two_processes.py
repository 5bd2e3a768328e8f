"""Two services on one database: each run is judged by one of them, and one can die."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.recorded import RecordedSeries
from gradwarden_server.store.runs import RunStore
from tests.server.pager import PATIENCE, LocalReceiver
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service

RUNS = [f"shared-{i}" for i in range(6)]
SICK = set(RUNS[:2])  # at step 12, while both live
LATER_SICK = set(RUNS[2:4])  # at step 32, after one died
STEPS = 40


def test_one_of_two_judges_each_run_and_the_other_takes_over(
    postgres_url: str, tmp_path: Path
) -> None:
    pager = LocalReceiver()
    receivers = (
        f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
        "    allow_private: true\n"
    )
    services = [
        Service(tmp_path / name, db=postgres_url, receivers=receivers) for name in ("one", "two")
    ]
    try:
        for run in RUNS:
            begin(services[0], run)
        _feed(services, 1, 20, 12, SICK)
        _until(lambda: _judged(services[0]) and len(_fired(pager)) >= len(SICK))
        assert _fired(pager) == Counter(dict.fromkeys(SICK, 1))
        holds = _held(postgres_url, services)
        assert holds[0] | holds[1] == set(RUNS)
        assert not holds[0] & holds[1], "no run is evaluated by both"
        _until(lambda: "gradwarden_outbox_waiting 0.0" in services[0].call("GET", "/metrics").text)
        dying = max((0, 1), key=lambda i: len(holds[i]))
        survivor = services[1 - dying]
        services[dying].kill()
        _feed([survivor], 21, STEPS, 32, LATER_SICK)
        _until(lambda: _judged(survivor) and len(_fired(pager)) >= len(SICK | LATER_SICK))
        assert _fired(pager) == Counter(dict.fromkeys(SICK | LATER_SICK, 1))
        for run in RUNS:
            alerts = survivor.get("/v1/alerts", params={"run": run})["items"]
            sick = run in SICK | LATER_SICK
            assert [a["alertname"] for a in alerts] == ["NonFiniteGradient"] * sick
            for alert in alerts:
                story = survivor.get(f"/v1/alerts/{alert['id']}")["timeline"]
                assert [line["to"] for line in story if line["from"] != line["to"]][:2] == [
                    "pending",
                    "firing",
                ]
        _check_derived_once(postgres_url)
    finally:
        for service in services:
            service.close()
        pager.close()


def _feed(services: list[Service], first: int, last: int, bad: int, sick: set[str]) -> None:
    """Every batch goes to another service, and every third is sent to both."""
    turn = 0
    for seq in range(first, last + 1, 2):
        for run in RUNS:
            frames = [
                frame(n, bad_row=1 if n == bad and run in sick else None) for n in (seq, seq + 1)
            ]
            turn += 1
            answers = [send(services[turn % len(services)], batch(run, frames))]
            if turn % 3 == 0:
                answers.append(send(services[(turn + 1) % len(services)], batch(run, frames)))
            assert [a.status_code for a in answers] == [200] * len(answers), answers[-1].text
            assert sum(a.json()["stored"] for a in answers) == 2


def _held(url: str, services: list[Service]) -> list[set[str]]:
    """The runs whose lease each service holds."""
    database = Database(url)
    with database.read() as connection:
        leases = connection.execute(select(t.lease.c.scope, t.lease.c.holder)).all()
    database.close()
    of_runs = [(scope.rpartition(":")[2], holder) for scope, holder in leases]
    pids = [str(service.process.pid) if service.process else "" for service in services]
    return [
        {run for run, holder in of_runs if run in RUNS and holder.split(":")[1] == pid}
        for pid in pids
    ]


def _judged(service: Service) -> bool:
    return not any(service.get(f"/v1/runs/{run}")["unjudged"] for run in RUNS)


def _fired(pager: LocalReceiver) -> Counter[str]:
    """How many messages said of each run that its gradient is not finite."""
    told: Counter[str] = Counter()
    for request in list(pager.requests):
        for alert in json.loads(request.body)["alerts"]:
            labels = alert["labels"]
            if alert["status"] == "firing" and labels["alertname"] == "NonFiniteGradient":
                told[labels["run"]] += 1
    return told


def _check_derived_once(url: str) -> None:
    """What an evaluation derives commits with its cursor: no step twice, none left out."""
    database = Database(url)
    runs, recorded = RunStore(database), RecordedSeries(database)
    for run in RUNS:
        record = runs.get("default", run)
        assert record is not None
        (series,) = recorded.newest("default", record.id, ("gradwarden_loss",), 10 * STEPS)
        assert len(series.points) == STEPS
        assert len({at for at, _ in series.points}) == STEPS
    database.close()


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)
