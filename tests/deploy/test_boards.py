"""Grafana's dashboards over the service: every query of every panel, asked of a real one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.boards.__main__ import FOLDER, texts
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
    """A run that fell ill a moment ago."""
    running = Service(tmp_path_factory.mktemp("boards"))
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
        over = {"time": now} if instant else {"start": now - STEPS, "end": now, "step": 5}
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
