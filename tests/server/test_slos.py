"""Budgets of a running service: what frames add to them, and what people read and say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.server.pager import PATIENCE, eventually
from tests.server.traffic import batch, beat, begin, frame, problem, send
from tests.service import Service, gradwarden

NS = 1_000_000_000
STEPS = 1500


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Fifteen hundred steps, of which 30 are bad; and runs that ended in several ways."""
    running = Service(tmp_path_factory.mktemp("slos"))
    now_ns = time.time_ns()
    begin(running, "r1", owner="mei", started_ns=now_ns - 300 * NS)
    for first in range(0, STEPS, 500):
        frames = [
            frame(
                n + 1,
                bad_row=2 if n % 50 == 49 else None,
                time_ns=now_ns - (STEPS - n) * NS // 100,
            )
            for n in range(first, first + 500)
        ]
        answer = send(running, batch("r1", frames))
        assert answer.status_code == 200, answer.text
    for name, seconds, status in (
        ("well", 1200, "finished"),
        ("short", 300, "finished"),
        ("gone", 1200, "cancelled"),
        ("ill", 1900, "failed"),
    ):
        late_ns = 700 * NS if status == "failed" else 0
        begin(running, name, started_ns=now_ns - seconds * NS - late_ns)
        end = frame(
            1,
            time_ns=now_ns - late_ns,
            scalars={},
            values=b"",
            events=({"kind": "finish", "status": status},),
        )
        answer = send(running, batch(name, [end]))
        assert answer.status_code == 200, answer.text
    beat(running, "r1")
    yield running
    running.close()


def slo(service: Service, name: str) -> dict[str, Any]:
    found: dict[str, Any] = service.get(f"/v1/slos/{name}")
    return found


def test_steps_are_counted_as_they_are_judged(service: Service) -> None:
    def whole() -> Any:
        face = slo(service, "finite-steps")
        return face if face["parts"] and face["parts"][0]["total"] >= STEPS * 0.99 else None

    # Counters are kept each minute: the first may hold what one batch brought, the next the rest.
    face = eventually(whole, 3 * PATIENCE)
    [part] = face["parts"]
    assert part["labels"] == {"environment": "prod", "project": "default"}
    assert part["total"] == pytest.approx(STEPS, rel=0.05)
    assert part["total"] - part["good"] == pytest.approx(30, rel=0.1)
    assert face["current"] == pytest.approx(0.98, abs=0.002)
    assert face["budget_left"] == pytest.approx(1 - 0.02 / 0.001, rel=0.1)
    assert face["sentence"] == "The 30-day budget is gone."
    pages = [burn for burn in face["burn"] if burn["severity"] == "page"]
    # Of a month that has hardly begun, one sick run spends all: nobody is told of that.
    assert {burn["word"] for burn in pages} == {"Acceptable"}
    assert pages[0]["long"] == pytest.approx(20, rel=0.1)


def test_a_budget_has_spenders_and_a_history(service: Service) -> None:
    eventually(lambda: slo(service, "finite-steps")["parts"])
    [spender] = eventually(lambda: service.get("/v1/slos/finite-steps/spenders")["items"])
    assert (spender["run"], spender["owner"], spender["share"]) == ("r1", "mei", 1.0)
    items = service.get("/v1/slos/finite-steps/history?points=100")["items"]
    assert len(items) == 100
    assert items[0]["total"] == 0
    assert items[0]["budget_left"] is None


def test_a_report_tells_budgets_as_they_were_at_its_end(service: Service) -> None:
    def left(to_s: float) -> dict[str, float | None]:
        span = {"from": at(to_s - 86_400), "to": at(to_s)}
        told = service.get("/v1/report", params=span)["objectives"]
        return {one["name"]: one["left"] for one in told}

    def at(second: float) -> str:
        return datetime.fromtimestamp(second, UTC).isoformat()

    eventually(lambda: (slo(service, "finite-steps")["budget_left"] or 0) < 0)
    now_s = time.time()
    assert (left(now_s)["Finite steps"] or 0) < 0
    assert left(now_s - 3600)["Finite steps"] is None, "an hour ago nothing had happened"


def test_too_little_data_has_no_percentage(service: Service) -> None:
    face = slo(service, "telemetry-freshness")
    assert (face["current"], face["budget_left"], face["enough_data"]) == (None, None, False)
    assert face["sentence"].startswith("needs 200 run-minutes, has ")


def test_runs_count_by_how_they_ended(service: Service) -> None:
    def outcome(run: str) -> Any:
        told = service.get(f"/v1/runs/{run}/outcome")
        return None if told["outcome"] == "open" else told

    assert eventually(lambda: outcome("well"))["outcome"] == "good"
    assert eventually(lambda: outcome("ill"))["outcome"] == "bad"
    assert eventually(lambda: outcome("short"))["reason"] == "shorter than ten minutes"
    assert eventually(lambda: outcome("gone"))["outcome"] == "not counted"
    assert service.get("/v1/runs/r1/outcome")["outcome"] == "open"

    def counted() -> Any:
        face = slo(service, "training-success")
        return face if face["parts"] and face["parts"][0]["total"] == 2 else None

    face = eventually(counted)
    assert face["sentence"] == "1 bad of the last 2 runs, 1 allowed of 50."
    assert face["budget_left"] == 0
    assert face["at_most"] == "1 of 50"
    [spender] = service.get("/v1/slos/training-success/spenders")["items"]
    assert spender["run"] == "ill"


def test_a_person_knows_better(service: Service) -> None:
    eventually(lambda: service.get("/v1/runs/well/outcome")["outcome"] != "open")
    body = {"outcome": "bad", "reason": "overfitted"}
    told = service.call("POST", "/v1/runs/well/outcome", json=body).json()
    assert (told["outcome"], told["reason"]) == ("bad", "overfitted")
    assert told["marked_by"]
    told = service.call("POST", "/v1/runs/well/outcome", json={"outcome": "good"}).json()
    assert told["outcome"] == "good"
    problem(service.call("POST", "/v1/runs/none/outcome", json=body), 404, "not-found")
    answer = service.call("POST", "/v1/runs/well/outcome", json={"outcome": "fine"})
    assert answer.status_code == 422 or answer.status_code == 400


def test_an_objective_that_is_not_there_is_told(service: Service) -> None:
    told = problem(service.call("GET", "/v1/slos/nothing"), 404, "not-found")
    assert "finite-steps" in told["detail"]
    listed = {one["id"] for one in service.get("/v1/slos")["items"]}
    assert listed == {"training-success", "finite-steps", "telemetry-freshness", "detection-delay"}
    example = slo(service, "all-reduce-p95")
    assert example["on"] is False
    assert example["parts"] == []


def test_the_fleet_is_told_in_figures(service: Service) -> None:
    eventually(lambda: service.get("/v1/alerts?state=firing")["items"])
    told = service.get("/v1/fleet/summary")
    assert sum(told["counts"].values()) == 1
    assert told["telemetry"]["runs_known"] == 1
    assert told["incidents"]["open"] >= 1
    assert told["incidents"]["prev_week"] == 0
    assert told["noise"]["acted"] == 0
    assert told["gpu_hours_at_risk"] > 0
    assert {one["id"] for one in told["slos"]} >= {"finite-steps", "training-success"}
    assert told["silences_active"] == 0


def test_a_report_tells_waste_in_hours_and_in_money(service: Service) -> None:
    eventually(lambda: service.get("/v1/alerts?state=firing")["items"])
    prices = {"items": [{"gpu": "*", "per_hour": 2.5, "currency": "USD"}]}
    assert service.call("PUT", "/v1/prices", json=prices).json() == prices
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 86400))
    told = service.get("/v1/report", params={"from": since})
    assert told["pages"] >= 1
    assert told["detect"]["of"] >= 1
    assert told["wasted"]["cost"] == pytest.approx(told["wasted"]["gpu_hours"] * 2.5)
    assert told["held"]["gpu_hours"] > 1
    assert "NonFiniteGradient" in {one["name"] for one in told["causes"]}
    text = service.call("GET", "/v1/report", headers={"Accept": "text/markdown"})
    assert text.headers["content-type"].startswith("text/markdown")
    assert text.text.startswith("# Training report of default")
    sheet = service.call("GET", "/v1/report", params={"from": since, "format": "csv"}).text
    assert sheet.startswith("section,name,measure,value")
    answer = service.call("GET", "/v1/report", params={"from": since, "to": "2020-01-01T00:00:00Z"})
    problem(answer, 400, "malformed")
    twice = {"items": prices["items"] * 2}
    told = problem(service.call("PUT", "/v1/prices", json=twice), 400, "malformed")
    assert "stands twice" in told["detail"]


def test_the_commands_say_the_same(service: Service) -> None:
    where = ("--url", service.url)
    listed = gradwarden("slo", "list", *where)
    assert listed.returncode == 0, listed.stderr
    assert "finite-steps" in listed.stdout
    shown = gradwarden("slo", "show", "finite-steps", *where)
    assert shown.returncode == 0, shown.stderr
    assert "environment=prod" in shown.stdout
    marked = gradwarden("run", "mark", "short", "--good", "--reason", "a smoke test", *where)
    assert marked.stdout == "short counts as good: a smoke test\n"
    priced = gradwarden("prices", "set", "*=3", "NVIDIA H100=4.5", *where)
    assert priced.returncode == 0, priced.stderr
    assert "NVIDIA H100" in gradwarden("prices", "list", *where).stdout
    assert "NVIDIA H100" in gradwarden("prices", *where).stdout, "alone it lists"
    page = gradwarden("report", "--week", "--format", "html", *where)
    assert page.stdout.startswith("<!doctype html>")
    assert gradwarden("prices", "set", "three", *where).returncode == 2
