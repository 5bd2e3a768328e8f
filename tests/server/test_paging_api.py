"""Routes, escalation and dead letters through a real service, its command line and its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.pager import Answer, LocalReceiver, eventually, local_receiver
from tests.server.traffic import batch, begin, frame, problem, send
from tests.service import Service, gradwarden

FILE = """\
receivers:
  - {{name: pager, type: webhook, url: "{pager}", allow_private: true}}
  - {{name: lead, type: webhook, url: "{lead}", allow_private: true}}
routes:
  - matchers: ["environment!=prod"]
    receiver: nobody
  - matchers: ["severity=page"]
    receiver: pager
    escalate: {{receiver: lead, after_seconds: 3600}}
  - receiver: nobody
"""


@pytest.fixture(scope="module")
def pager() -> Iterator[LocalReceiver]:
    with local_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def lead() -> Iterator[LocalReceiver]:
    with local_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, pager: LocalReceiver, lead: LocalReceiver
) -> Iterator[Service]:
    file = FILE.format(pager=pager.url, lead=lead.url)
    running = Service(tmp_path_factory.mktemp("paging"), receivers=file)
    yield running
    running.close()


def sicken(house: Service, run: str, **start: Any) -> None:
    begin(house, run, **start)
    assert send(house, batch(run, [frame(1), frame(2, bad_row=2)])).status_code == 200


def command(house: Service, *words: str) -> Any:
    done = gradwarden(*words, "--json", "--url", house.url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_refused_page_escalates_is_a_dead_letter_and_goes_out_again(
    house: Service, pager: LocalReceiver, lead: LocalReceiver
) -> None:
    pager.answers.append(Answer(403))
    sicken(house, "refused", environment="prod")
    told = json.loads(lead.wait(1)[0].body)
    assert told["groupLabels"]["run"] == "refused"

    def escalated() -> Any:
        found = house.get("/v1/alerts", params={"run": "refused", "severity": "page"})["items"]
        whys = [one["why"] for one in found[0]["notified"] if one["receiver"] == "lead"]
        return whys

    assert eventually(escalated) == ["escalated: pager does not take it (HTTP 403)"]
    (letter,) = command(house, "receivers", "dead-letters")["items"]
    assert (letter["receiver"], letter["summary"]) == ("pager", "NonFiniteGradient of refused")
    assert letter["detail"] == "HTTP 403"
    metrics = house.call("GET", "/metrics").text
    assert "gradwarden_outbox_dead 1.0" in metrics
    assert 'gradwarden_circuit_open{receiver="pager"} 0.0' in metrics
    again = command(house, "receivers", "dead-letters", "--retry", str(letter["id"]))
    assert again == {"id": letter["id"], "state": "waiting"}
    first, second = pager.wait(2)
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]

    def sent() -> Any:
        items = house.get("/v1/deliveries", params={"state": "sent", "limit": 1})
        return items["next_cursor"] and items["items"][0]["id"]

    newest = eventually(sent)
    older = house.get("/v1/deliveries", params={"state": "sent", "cursor": newest})["items"]
    assert {letter["id"]} <= {one["id"] for one in older} | {newest}
    problem(house.call("POST", f"/v1/deliveries/{letter['id']}/retry"), 409, "not-dead")
    problem(house.call("POST", "/v1/deliveries/999999/retry"), 404, "not-found")
    odd = problem(house.call("GET", "/v1/deliveries?state=lost"), 400, "malformed")
    assert "superseded" in odd["detail"]


def test_who_would_be_told_is_asked_of_the_service(house: Service) -> None:
    asked = ("receivers", "routes", "severity=page", "environment=prod")
    (route,) = command(house, *asked)["items"]
    assert route["receiver"] == "pager"
    assert route["escalate"] == {"receiver": "lead", "after_seconds": 3600.0}
    assert len(command(house, "receivers", "routes")["items"]) == 3
    shown = gradwarden("receivers", "routes", "--url", house.url)
    assert "pages: run, alertname; tickets: run" in shown.stdout
    nobody = gradwarden("receivers", "routes", "severity=page", "--url", house.url)
    assert (nobody.returncode, "nobody is told of such alerts" in nobody.stdout) == (1, True)
    odd = problem(house.call("GET", "/v1/routes?label=severity"), 400, "malformed")
    assert odd["detail"] == "label: 'severity'; write NAME=VALUE"


def test_changed_routes_are_taken_over_while_it_runs(
    house: Service, pager: LocalReceiver, lead: LocalReceiver
) -> None:
    sicken(house, "playing", environment="dev")

    def fires() -> Any:
        query = {"run": "playing", "severity": "page", "state": "firing"}
        return house.get("/v1/alerts", params=query)["items"]

    (alert,) = eventually(fires)
    assert alert["notified"] == []
    file = FILE.format(pager=pager.url, lead=lead.url).replace("environment!=prod", "team=none")
    (Path(house.folder) / "receivers.yaml").write_text(file)
    eventually(lambda: any("playing" in request.body.decode() for request in pager.requests))


def test_all_mistakes_of_the_routes_are_told_by_check(tmp_path: Path) -> None:
    file = tmp_path / "receivers.yml"
    file.write_text(
        FILE.format(pager="https://p.example", lead="ftp://l.example") + "    storm: 3\n"
    )
    wrong = gradwarden("check", "receivers", str(file))
    assert wrong.returncode == 1
    assert "receiver 'lead': url:" in wrong.stderr
    assert "route 3: storm: 3; expected {groups: 10, seconds: 60} or false" in wrong.stderr
    file.write_text(
        FILE.format(pager="https://p.example", lead="https://l.example").replace(
            ", allow_private: true", ""
        )
    )
    right = gradwarden("check", "receivers", str(file))
    assert (right.returncode, right.stdout) == (0, "2 receivers, 3 routes, no mistakes\n")
