"""Grafana's dashboards over the service: every query of every panel, asked of a real one.

What rules record over weeks lies in its database before it starts, as its own rules would have
written it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from dashboards.boards.__main__ import FOLDER, texts
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.recorded import Derived, RecordedSeries
from gradwarden_server.store.streams import ensure_project
from tests.server.pager import eventually
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service

BOARDS = texts()
STEPS = 60
NS = 1_000_000_000
SCALARS = {
    "loss": 1.5,
    "lr": 1e-3,
    "step_seconds": 0.9,
    "data_seconds": 0.1,
    "forward_seconds": 0.3,
    "backward_seconds": 0.4,
    "optimizer_seconds": 0.1,
    "allreduce_seconds": 0.05,
    "allreduce_exposed_seconds": 0.01,
}
CHOSEN = {"$run": "sick", "$quantity": "l2"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A run that fell ill a moment ago, in a house that has stood for a while."""
    folder = tmp_path_factory.mktemp("boards")
    remember(f"sqlite:///{folder / 'gradwarden.sqlite'}")
    running = Service(folder)
    start_s = int(time.time()) - STEPS
    begin(running, "sick", started_ns=start_s * NS)
    frames = [
        frame(
            n,
            time_ns=(start_s + n) * NS,
            scalars=SCALARS,
            bad_row=2 if n > STEPS - 5 else None,
        )
        for n in range(1, STEPS)
    ]
    assert send(running, batch("sick", frames)).status_code == 200

    def fires() -> bool:
        asked = {"query": 'ALERTS{alertstate="firing",severity="page"}'}
        answer = running.call("GET", "/api/v1/query", params=asked)
        return bool(answer.json()["data"]["result"])

    eventually(fires)
    yield running
    running.close()


def remember(url: str) -> None:
    """What the last hours recorded: budgets, and how a run ended."""
    database = Database(url)
    database.migrate()
    now_ns = time.time_ns()
    moments = [now_ns - minutes * 60 * NS for minutes in (50, 30, 1)]
    labels = {"project": "default", "environment": "prod", "run": "yesterday"}
    kept = {
        "slo:period_error_budget_remaining:ratio": (0.9, 0.8, 0.7),
        "slo:current_burn_rate:ratio": (1.0, 2.0, 3.0),
        "gradwarden_run_good": (1.0, 1.0, 1.0),
        "gradwarden_steps_total": (10.0, 500.0, 1000.0),
        "gradwarden_nonfinite_steps_total": (0.0, 1.0, 2.0),
    }
    chunks = [
        Derived(None, name, labels, list(zip(moments, values, strict=True)), ruled=True)
        for name, values in kept.items()
    ]
    recorded = RecordedSeries(database)

    def keep(connection: Connection) -> None:
        ensure_project(connection, "default")
        recorded.append_all("default", connection, chunks)

    database.write(keep).result()
    database.close()


def panels(name: str) -> list[tuple[str, str, bool]]:
    """Title, expression and whether it is asked at one moment, of each query."""
    return [
        (panel["title"], target["expr"], target.get("instant", False))
        for panel in json.loads(BOARDS[name])["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize("name", BOARDS)
def test_what_is_committed_is_what_the_code_makes(name: str) -> None:
    assert (FOLDER / name).read_text() == BOARDS[name], "run python -m dashboards.boards"


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_finds_data_in_the_service(name: str, service: Service) -> None:
    now = time.time()
    for title, expression, instant in panels(name):
        for variable, value in CHOSEN.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression, f"{title}: a variable that nobody chose"
        over = {"time": now} if instant else {"start": now - 3600, "end": now, "step": 20}
        path = "/api/v1/query" if instant else "/api/v1/query_range"
        answer = service.call("POST", path, data={"query": expression, **over})
        assert answer.status_code == 200, f"{title}: {answer.text}"
        assert answer.json()["data"]["result"], f"{title}: {expression} has no data"


@pytest.mark.parametrize("name", BOARDS)
def test_every_choice_offers_something(name: str, service: Service) -> None:
    for variable in json.loads(BOARDS[name])["templating"].get("list", ()):
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", str(variable["query"]))
        if asked is None:
            assert "," in variable["query"]
            continue
        metric, label = asked.groups()
        when: dict[str, Any] = {"match[]": metric}
        answer = service.call("GET", f"/api/v1/label/{label}/values", params=when)
        assert answer.json()["data"] == ["sick"]


def test_the_folder_holds_no_board_that_nobody_makes() -> None:
    by_hand = {"gradwarden-runs.json", "gradwarden-service.json"}
    assert {path.name for path in Path(FOLDER).glob("*.json")} == {*BOARDS, *by_hand}
