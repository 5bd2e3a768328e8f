"""A list of the alerts of very many runs: the weightiest are diagnosed, and the others say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from gradwarden_server.alerting.lifecycle import advance
from gradwarden_server.app import create_app
from gradwarden_server.house import House
from gradwarden_server.model import DEFAULT_PROJECT, Condition, RunFacts, Severity
from gradwarden_server.settings import Settings
from tests.server.test_store import NOW
from tests.server.traffic import start_body

MANY, FEW = 50, 40


def test_of_a_storm_the_weightiest_are_diagnosed_and_the_others_say_where_it_stands(
    tmp_path: Path,
) -> None:
    settings = Settings(db=f"sqlite:///{tmp_path}/gw.sqlite", evaluate=False)
    app = create_app(settings)
    with TestClient(app, "http://127.0.0.1") as client:
        for n in range(MANY):
            client.post("/v1/start", json=start_body(f"run-{n}")).raise_for_status()
            # The pages come last, so neither end of the list alone would do.
            _fall_ill(app.state.house, f"run-{n}", "page" if n >= MANY - 5 else "ticket")
        asked = {"state": "pending,firing", "limit": "500"}
        items: list[dict[str, Any]] = client.get("/v1/alerts", params=asked).json()["items"]
        spared = [one for one in items if "so many runs" in one["checkpoint_note"]]
        assert [one["labels"]["run"] for one in reversed(spared)] == [
            f"run-{n}" for n in range(FEW - 5, MANY - 5)
        ]
        assert all(one["first_action"]["text"] == "Look." for one in items)
        whole = client.get(f"/v1/alerts/{spared[0]['id']}").json()
        assert "so many runs" not in whole["checkpoint_note"]
        alone = client.get("/v1/alerts", params=asked | {"run": "run-44"}).json()["items"]
        assert ["so many runs" in one["checkpoint_note"] for one in alone] == [False]


def _fall_ill(house: House, run: str, severity: Severity) -> None:
    parts = house.parts
    record = parts.runs.get(DEFAULT_PROJECT, run)
    assert record is not None
    labels = {"project": DEFAULT_PROJECT, "run": run, "run_name": run, "environment": "prod"}
    url = "http://gw.example"
    facts = RunFacts(
        record.id, DEFAULT_PROJECT, run, run, "running", "prod", 1, labels, url, 0, 0, 0
    )
    said = {"summary": "it is ill", "first_action": "Look."}
    changes = advance({}, facts, [Condition("LossSpike", severity, True, said)], NOW)
    house.database.write(
        lambda c: parts.ledger.apply(DEFAULT_PROJECT, c, record.id, changes, NOW)
    ).result()
