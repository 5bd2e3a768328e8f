"""Groups of Prometheus's rules over a running service: what they record, whom they wake."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
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

        _standing_is_told(service, fired["active_at"])
        tell_loss(service, "r1", 2, 1.0)
        closed = one(service, "LossHigh", "resolved")
        assert closed["reason"] == "condition"
        story = service.get(f"/v1/alerts/{closed['id']}")["timeline"]
        kinds = [line["kind"] for line in story if line["kind"] != "notified"]
        assert kinds == ["pending", "firing", "resolved"]
        last = json.loads(pager.wait(2)[-1].body)
        assert [alert["status"] for alert in last["alerts"]] == ["resolved"]
    finally:
        service.close()


def _standing_is_told(service: Service, since: str) -> None:
    """As Prometheus tells it, and as our pages read it."""
    [group] = service.get("/api/v1/rules", params={"rule_group[]": "ours"})["data"]["groups"]
    assert (group["file"], group["interval"]) == ("ours.rules.yml", 1)
    rules = {rule["name"]: rule for rule in group["rules"]}
    assert rules["run:loss:max"]["type"] == "recording"
    high = rules["LossHigh"]
    assert (high["state"], high["duration"], high["keepFiringFor"]) == ("firing", 5, 2)
    [alert] = high["alerts"]
    assert (alert["state"], alert["value"]) == ("firing", "5e+01")
    assert alert["activeAt"][:23] == since[:23]
    assert (rules["Broken"]["health"], high["health"]) == ("err", "ok")
    assert "invalid regular expression" in rules["Broken"]["lastError"]
    one_only = {"type": "record", "rule_name[]": "run:loss:max"}
    [group] = service.get("/api/v1/rules", params=one_only)["data"]["groups"]
    assert [rule["name"] for rule in group["rules"]] == ["run:loss:max"]
    told = service.get("/api/v1/alerts")["data"]["alerts"]
    assert [a["value"] for a in told if a["labels"]["alertname"] == "LossHigh"] == ["5e+01"]

    items = {item["name"]: item for item in service.get("/v1/rules")["items"]}
    assert items["LossHigh"]["alerts"] == {"pending": 0, "firing": 1}
    assert (items["LossHigh"]["state"], items["LossHigh"]["for_seconds"]) == ("firing", 5)
    assert (items["Broken"]["health"], items["NonFiniteGradient"]["kind"]) == ("err", "detector")
    metrics = service.call("GET", "/metrics").text
    assert "gradwarden_rules_failures_total" in metrics
    assert "gradwarden_config_last_reload_successful 1.0" in metrics
    assert service.log_text().count("rule Broken of ours.rules.yml;ours") <= 2, "once a start"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


QUICK = """
groups:
- name: quick
  interval: 1s
  rules:
  - {alert: Stands, expr: 'gradwarden_run_info == 1', labels: {severity: page}}
  - alert: Goes
    expr: gradwarden_run_info == 1
    keep_firing_for: 10m
    labels: {severity: page}
"""


def test_files_are_read_again_while_it_runs(tmp_path: Path, pager: LocalReceiver) -> None:
    rules = folder(tmp_path / "rules", QUICK)
    env = {"GRADWARDEN_RULES": str(rules)}
    service = Service(tmp_path / "s", receivers=receivers(pager), env=env)
    try:
        who = {"name": "alertname", "value": "Goes", "isRegex": False, "isEqual": True}
        silence = {
            "matchers": [who],
            "startsAt": _moment(-3600),
            "endsAt": _moment(3600),
            "createdBy": "mei",
            "comment": "not now",
        }
        answer = service.call("POST", "/api/v2/silences", json=silence)
        assert answer.status_code == 200, answer.text
        begin(service, "r1")
        first, goes = one(service, "Stands", "firing"), one(service, "Goes", "firing")
        assert goes["muted"], "silenced like an alert of a detector"

        (rules / "ours.rules.yml").write_text(QUICK.replace("run_info == 1", "run_info +"))
        wrong = service.call("POST", "/-/reload").json()
        assert not wrong["ok"]
        places = [mistake.split(":")[:2] for mistake in wrong["mistakes"]]
        assert places == [["ours.rules.yml", "6"], ["ours.rules.yml", "7"]]
        assert service.get("/v1/rules")["last_reload"] == wrong
        assert (
            "gradwarden_config_last_reload_successful 0.0" in service.call("GET", "/metrics").text
        )

        kept = QUICK[: QUICK.index("  - alert: Goes")].replace("== 1", ">= 1")
        (rules / "ours.rules.yml").write_text(kept)
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        assert one(service, "Goes", "resolved")["reason"] == "rule_removed"
        [still] = alerts(service, "Stands")
        assert (still["id"], still["state"]) == (first["id"], "firing"), "its state is kept"

        (rules / "ours.rules.yml").unlink()  # nobody says so; it is seen
        assert one(service, "Stands", "resolved")["reason"] == "rule_removed"
        assert service.get("/v1/rules")["last_reload"]["ok"]
        pager.wait(1)
        assert not any(b'"Goes"' in request.body for request in pager.requests)
    finally:
        service.close()


def test_one_of_two_processes_evaluates_and_the_other_takes_over(
    postgres_url: str, tmp_path: Path
) -> None:
    env = {"GRADWARDEN_RULES": str(folder(tmp_path / "rules"))}
    services = [Service(tmp_path / name, db=postgres_url, env=env) for name in ("one", "two")]
    try:
        begin(services[0], "r1")
        tell_loss(services[0], "r1", 1, 50.0)
        one(services[1], "LossHigh", "firing")

        def evaluated(service: Service) -> float:
            lines = service.call("GET", "/metrics").text.splitlines()
            name = "gradwarden_rules_evaluations_total "
            return next(float(x.removeprefix(name)) for x in lines if x.startswith(name))

        held = [evaluated(service) for service in services]
        dying = int(held[1] > held[0])
        services[dying].kill()
        survivor = services[1 - dying]
        before = evaluated(survivor)
        eventually(lambda: evaluated(survivor) > before + 4)
        [alert] = alerts(survivor, "LossHigh")
        assert alert["state"] == "firing"
        raw = survivor.get("/api/v1/query", params={"query": "runs:loss:count[10m]"})
        [series] = raw["data"]["result"]
        moments = [at for at, _ in series["values"]]
        database = Database(postgres_url)
        with database.read() as connection:
            query = select(func.count()).select_from(t.sample_chunk).join(t.series)
            written = connection.execute(query.where(t.series.c.name == "runs:loss:count"))
            assert written.scalar_one() >= len(set(moments)) == len(moments)
            twice = (
                select(t.sample_chunk.c.t0_ns)
                .join(t.series)
                .where(t.series.c.name == "runs:loss:count")
                .group_by(t.sample_chunk.c.t0_ns)
                .having(func.count() > 1)
            )
            assert connection.execute(twice).all() == [], "no moment was evaluated twice"
        database.close()
    finally:
        for service in services:
            service.close()
