"""Groups of Prometheus's rules over a running service: what they record, whom they wake."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.pager import LocalReceiver, eventually, local_receiver
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service

ROOT = Path(__file__).parents[2]
RULES = """
groups:
- name: ours
  interval: 1s
  rules:
  - record: run:loss:max
    expr: max by (run) (gradwarden_scalar{quantity="loss"})
  - record: runs:loss:count
    expr: count(run:loss:max)
  - alert: LossHigh
    expr: run:loss:max > 10
    for: 5s
    keep_firing_for: 2s
    labels: {severity: page}
    annotations: {summary: "loss of {{ $labels.run }} is {{ $value }}"}
  - alert: Broken
    expr: label_replace(run:loss:max, "a", "", "run", "(")
"""


def folder(at: Path, text: str = RULES) -> Path:
    """The shipped detectors, and one file of groups beside them."""
    shutil.copytree(ROOT / "alert_rules", at, ignore=shutil.ignore_patterns("*.rules.yml"))
    (at / "ours.rules.yml").write_text(text)
    return at


def receivers(pager: LocalReceiver) -> str:
    return (
        f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
        "    allow_private: true\n"
    )


@pytest.fixture
def pager() -> Iterator[LocalReceiver]:
    with local_receiver() as made:
        yield made


def tell_loss(service: Service, run: str, step: int, loss: float) -> None:
    answer = send(service, batch(run, [frame(step + 1, scalars={"loss": loss})]))
    assert answer.status_code == 200, answer.text


def alerts(service: Service, name: str, **more: str) -> list[dict[str, Any]]:
    items = service.get("/v1/alerts", params=more)["items"]
    return [alert for alert in items if alert["alertname"] == name]


def ask(service: Service, query: str) -> list[dict[str, Any]]:
    told = service.get("/api/v1/query", params={"query": query})
    found: list[dict[str, Any]] = told["data"]["result"]
    return found


def one(service: Service, name: str, state: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        return next((a for a in alerts(service, name) if a["state"] == state), None)

    found: dict[str, Any] = eventually(there)
    return found


def test_an_alert_is_pending_through_a_kill_fires_is_told_and_resolves(
    store_url: str, tmp_path: Path, pager: LocalReceiver
) -> None:
    env = {"GRADWARDEN_RULES": str(folder(tmp_path / "rules"))}
    service = Service(tmp_path / "s", db=store_url, receivers=receivers(pager), env=env)
    try:
        begin(service, "r1")
        begin(service, "r2")
        tell_loss(service, "r1", 1, 50.0)
        tell_loss(service, "r2", 1, 3.0)
        pending = one(service, "LossHigh", "pending")
        service.restart()
        fired = one(service, "LossHigh", "firing")
        assert fired["active_at"] == pending["active_at"]
        assert fired["labels"] == {
            "alertname": "LossHigh",
            "project": "default",
            "run": "r1",
            "severity": "page",
        }
        assert fired["annotations"]["summary"] == "loss of r1 is 50"
        assert fired["annotations"]["dashboard_url"].endswith("/runs/r1")
        [told, *_] = pager.wait(1)
        [page] = json.loads(told.body)["alerts"]
        assert (page["status"], page["labels"]["run"]) == ("firing", "r1")

        loss = {row["metric"]["run"]: row["value"][1] for row in ask(service, "run:loss:max")}
        assert loss == {"r1": "50", "r2": "3"}
        assert ask(service, "runs:loss:count")[0]["value"][1] == "2"
        assert ask(service, 'ALERTS{alertname="LossHigh",alertstate="firing"}')
        [since] = ask(service, 'ALERTS_FOR_STATE{alertname="LossHigh"}')
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(float(since["value"][1])))
        assert fired["active_at"].startswith(at)

        tell_loss(service, "r1", 2, 1.0)
        closed = one(service, "LossHigh", "resolved")
        assert closed["reason"] == "condition"
        story = service.get(f"/v1/alerts/{closed['id']}")["timeline"]
        assert [line["to"] for line in story] == ["pending", "firing", "resolved"]
        last = json.loads(pager.wait(2)[-1].body)
        assert [alert["status"] for alert in last["alerts"]] == ["resolved"]
    finally:
        service.close()
