"""Diagnoses over HTTP and by the command, on both databases; and how much of a run is watched."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.diagnosis import words
from gradwarden_server.diagnosis.diagnose import diagnose
from tests.server.detection import RULES
from tests.server.diagnosing import alert, case
from tests.server.traffic import LAYOUT, batch, begin, frame, problem, send
from tests.service import Service, gradwarden

STEPS = 420
SICK_STEP = 400
SICK_ROW = 2


@pytest.fixture
def house(store_url: str, tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path / "service", db=store_url)
    yield running
    running.close()


def checkpoint(step: int) -> dict[str, Any]:
    return {
        "kind": "checkpoint", "path": f"ckpt/{step}.pt", "ok": True, "saved_step": step,
        "sha256": "ab" * 32, "bytes": 10, "finite": True, "seconds": 0.1,
    }  # fmt: skip


def train(house: Service, run: str, *, sick: bool, loss: bool = True, **start: Any) -> None:
    """A run of :data:`STEPS` steps that ends; sick from :data:`SICK_STEP` on."""
    begin(house, run, **start)
    for first in range(1, STEPS + 1, 70):
        sent = []
        for seq in range(first, min(first + 70, STEPS + 1)):
            scalars = {"lr": 1e-3, "step_seconds": 0.1} | ({"loss": 1.0} if loss else {})
            events = [checkpoint(seq - 1)] if seq in (101, 301, 391) else []
            if seq == STEPS:
                events.append({"kind": "finish", "status": "failed", "error": "ValueError: nan"})
            bad = SICK_ROW if sick and seq > SICK_STEP else None
            at = time.time_ns() + seq * 1000
            sent.append(frame(seq, bad, scalars=scalars, events=tuple(events), time_ns=at))
        assert send(house, batch(run, sent)).status_code == 200


def diagnosed(house: Service, run: str, name: str) -> dict[str, Any]:
    """The diagnosis once it has a finding of that name."""
    deadline = time.monotonic() + 30
    while True:
        told: dict[str, Any] = house.get(f"/v1/runs/{run}/diagnosis")
        if any(f["name"] == name for f in told["findings"]) and told["coverage"]["of"]:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def test_a_sick_run_is_diagnosed_from_what_is_stored(house: Service) -> None:
    train(house, "sick", sick=True, place={"resume_command": "resume {checkpoint}", "node": "n7"})
    told = diagnosed(house, "sick", "NonFiniteGradient")
    assert told["verdict"] in ("critical", "at risk")
    (finding,) = (f for f in told["findings"] if f["name"] == "NonFiniteGradient")
    assert (finding["step"], finding["attempt"], finding["rank"]) == (SICK_STEP, 1, "0")
    assert finding["layer"] == LAYOUT.parameters[SICK_ROW].layer
    assert finding["node"] == "n7"
    assert finding["runbook"] == "/runbooks/NonFiniteGradient"
    assert house.call("GET", finding["runbook"]).status_code == 200
    shown = {item["series"]: item for item in finding["evidence"]}
    peak = shown[f"layer:{SICK_ROW}:absmax"]
    assert peak["text"].startswith(f"absmax of {LAYOUT.parameters[SICK_ROW].name} is nan at step")
    assert peak["path"] == f"/runs/sick?m=absmax&from=250&to=480&row={SICK_ROW}"
    series = house.get("/v1/runs/sick/series", params={"keys": peak["series"], "from": SICK_STEP})
    assert sum(series["keys"][peak["series"]]["nonfinite"]) > 0, "what the evidence points at"
    out = {item["what"]: item["by"] for item in finding["ruled_out"]}
    assert out["a jump of the learning rate"] == "it was 0.001 over steps 200-400"
    good = told["last_good_checkpoint"]
    assert (good["step"], good["path"]) == (100, "ckpt/100.pt")
    action = finding["actions"][0]
    assert action["command"] == "resume ckpt/100.pt"
    assert action["loses"] == "319 steps x 1 process"
    assert house.get(f"/v1/alerts/{finding['alerts'][0]}")["alertname"] == "NonFiniteGradient"
    early = house.get("/v1/runs/sick/diagnosis", params={"at": SICK_STEP - 1})
    assert not [f for f in early["findings"] if f["name"] == "NonFiniteGradient"]

    said = gradwarden("diagnose", "sick", "--url", house.url)
    assert said.returncode == 1, said.stderr
    lines = said.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(told["verdict"].upper())
    assert any(line.strip() == "resume ckpt/100.pt" for line in lines)
    assert "DO FIRST" in said.stdout
    again = gradwarden("diagnose", "sick", "--url", house.url, "--json")
    assert json.loads(again.stdout).keys() == told.keys()
    assert json.loads(again.stdout)["last_good_checkpoint"] == good


def test_projects_do_not_see_each_others_diagnoses(house: Service) -> None:
    train(house, "mine", sick=False)
    other = {"Gradwarden-Project": "theirs"}
    answer = house.call("GET", "/v1/runs/mine/diagnosis", headers=other)
    problem(answer, 404, "not-found")
    problem(house.call("GET", "/v1/runs/nobody/diagnosis"), 404, "not-found")
    problem(house.call("GET", "/v1/runs/mine/diagnosis", params={"at": -1}), 400, "malformed")
    absent = gradwarden("diagnose", "nobody", "--url", house.url)
    assert (absent.returncode, absent.stdout) == (2, "")


def verdict(house: Service, run: str) -> str:
    return str(next(r for r in house.get("/v1/runs")["items"] if r["run"] == run)["verdict"])


def test_a_run_that_few_detectors_watch_says_so_after_a_restart_too(house: Service) -> None:
    begin(house, "young")
    sent = [frame(seq, scalars={}) for seq in range(1, 30)]
    assert send(house, batch("young", sent)).status_code == 200
    deadline = time.monotonic() + 30
    while verdict(house, "young") != "healthy (partly watched)":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    listed = gradwarden("runs", "--url", house.url)
    assert "healthy (partly watched)" in listed.stdout
    told = house.get("/v1/runs/young/diagnosis")
    assert told["coverage"]["armed"] < 0.8 * told["coverage"]["of"]
    gaps = {gap["what"]: gap["by"] for gap in told["coverage"]["gaps"]}
    assert "monitor.log(loss=loss)" in gaps["NonFiniteLoss"]
    assert gradwarden("diagnose", "young", "--url", house.url).returncode == 0
    house.restart()
    assert verdict(house, "young") == "healthy (partly watched)"


def test_the_openapi_document_describes_a_diagnosis_whole(service: Service) -> None:
    document = service.get("/openapi.json")
    answer = document["paths"]["/v1/runs/{run}/diagnosis"]["get"]["responses"]["200"]
    name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schemas = document["components"]["schemas"]
    assert set(schemas[name]["properties"]) == {f.name for f in fields(words.Diagnosis)}
    assert set(schemas["Finding"]["properties"]) == {f.name for f in fields(words.Finding)}
    assert schemas["Finding"]["properties"]["confidence"]["enum"] == ["high", "medium", "low"]


def test_a_spools_json_has_the_shape_of_a_services() -> None:
    told = json.loads(json.dumps(asdict(diagnose(case(alert("NonFiniteLoss", 5))))))
    assert set(told) == {f.name for f in fields(words.Diagnosis)}
    assert set(told["findings"][0]) == {f.name for f in fields(words.Finding)}


def test_every_alert_of_the_rules_has_a_runbook_that_is_served(service: Service) -> None:
    for rule in RULES.detectors:
        page = service.call("GET", f"/runbooks/{rule.runbook}")
        assert page.status_code == 200, f"{rule.alert}: {rule.runbook}"
        for part in ("What it means", "Check first", "Mitigate", "Recovered", "Escalate"):
            assert part in page.text, f"{rule.runbook} does not say: {part}"
