"""Silences and acknowledgements as people make them: over HTTP, by command, with amtool."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import needs
from tests.server.pager import LocalReceiver, eventually, local_receiver
from tests.server.traffic import batch, begin, frame, problem, send
from tests.service import Service, gradwarden

_RECEIVERS = """\
receivers:
  - name: pager
    type: webhook
    url: {url}
    allow_private: true
"""
HOUR = 3600.0


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    with local_receiver() as listening:
        yield listening


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: LocalReceiver) -> Iterator[Service]:
    running = Service(
        tmp_path_factory.mktemp("silences"), receivers=_RECEIVERS.format(url=receiver.url)
    )
    yield running
    running.close()


def poison(service: Service, run: str) -> None:
    """A run whose second step applies a NaN."""
    begin(service, run)
    answer = send(service, batch(run, [frame(1), frame(2, bad_row=2)]))
    assert answer.status_code == 200, answer.text


def alert_of(service: Service, run: str, name: str = "NonFiniteGradient") -> dict[str, Any]:
    def ask() -> Any:
        items = service.get("/v1/alerts", params={"run": run})["items"]
        return next((a for a in items if a["alertname"] == name and a["state"] != "pending"), None)

    found: dict[str, Any] = eventually(ask)
    return found


def told_of(receiver: LocalReceiver, run: str) -> list[tuple[str, str]]:
    """What the receiver heard of a run, in order."""
    return [
        (alert["labels"]["alertname"], alert["status"])
        for request in list(receiver.requests)
        for alert in json.loads(request.body)["alerts"]
        if alert["labels"].get("run") == run
    ]


def test_a_silenced_run_is_quiet_until_its_silence_ends(
    service: Service, receiver: LocalReceiver
) -> None:
    made = service.call(
        "POST",
        "/v1/silences",
        json={"matchers": ["run=quiet"], "duration_seconds": HOUR, "comment": "a known bug"},
    )
    assert made.status_code == 201, made.text
    assert made.json()["state"] == "active"
    poison(service, "quiet")
    assert alert_of(service, "quiet")["muted"] == f"silence {made.json()['id']}"
    poison(service, "loud")  # whose page comes behind all that the quiet run could have caused
    eventually(lambda: told_of(receiver, "loud"))
    assert told_of(receiver, "quiet") == []
    assert told_of(receiver, "loud") == [("NonFiniteGradient", "firing")]
    service.restart()
    assert alert_of(service, "quiet")["muted"], "a restart forgets no silence"
    over = service.call("DELETE", f"/v1/silences/{made.json()['id']}")
    assert over.json()["state"] == "expired"
    eventually(lambda: told_of(receiver, "quiet"))
    assert told_of(receiver, "quiet") == [("NonFiniteGradient", "firing")]
    alert = alert_of(service, "quiet")
    timeline = service.get(f"/v1/alerts/{alert['id']}")["timeline"]
    assert [(line["kind"], line["who"]) for line in timeline] == [
        ("pending", None),
        ("firing", None),
        ("unmuted", None),
        ("notified", "pager"),
    ]
    assert timeline[1]["text"].endswith("of loopback: a known bug")
    assert timeline[2]["reason"] == "told_late"
    assert timeline[2]["text"].startswith("over: silence ")


def test_a_cause_that_stands_keeps_its_effects_quiet(
    service: Service, receiver: LocalReceiver
) -> None:
    begin(service, "chain")
    bad = frame(2, bad_row=2, scalars={"loss": float("nan")})
    send(service, batch("chain", [frame(1), bad]))
    assert alert_of(service, "chain", "NonFiniteLoss")["muted"] == "inhibited by NonFiniteGradient"
    eventually(lambda: told_of(receiver, "chain"))
    assert told_of(receiver, "chain") == [("NonFiniteGradient", "firing")]


def test_a_preview_shows_what_would_be_held_back(service: Service) -> None:
    poison(service, "seen")
    alert_of(service, "seen")
    page = service.get("/v1/silences/preview", params={"matcher": ["run=seen", "severity=page"]})
    assert [a["alertname"] for a in page["items"]] == ["NonFiniteGradient"]
    page = service.get("/v1/silences/preview", params={"matcher": ["run=nobody"]})
    assert page["items"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"matchers": ["run=x"], "comment": "c"}, "ends_at"),
        ({"matchers": ["run"], "duration_seconds": 1, "comment": "c"}, "matchers"),
        ({"matchers": ["run=~("], "duration_seconds": 1, "comment": "c"}, "matchers"),
        ({"matchers": ["run=~.*"], "duration_seconds": 1, "comment": "c"}, "matchers"),
        ({"matchers": [], "duration_seconds": 1, "comment": "c"}, "matchers"),
        ({"matchers": ["run=x"], "duration_seconds": 1e9, "comment": "c"}, "ends_at"),
        ({"matchers": ["run=x"], "ends_at": "2001-01-01T00:00:00Z", "comment": "c"}, "ends_at"),
        ({"matchers": ["run=x"], "duration_seconds": 1}, "comment"),
    ],
)
def test_a_wrong_silence_is_refused_and_changes_nothing(
    service: Service, body: dict[str, Any], field: str
) -> None:
    before = service.get("/v1/silences")
    refused = service.call("POST", "/v1/silences", json=body)
    assert field in problem(refused, 400, "malformed")["detail"]
    assert service.get("/v1/silences") == before


def test_what_is_not_there_cannot_be_ended_or_acknowledged(service: Service) -> None:
    problem(service.call("DELETE", "/v1/silences/999999"), 404, "not-found")
    problem(service.call("POST", "/v1/alerts/999999/ack"), 404, "not-found")
    problem(
        service.call("GET", "/api/v2/silence/00000000-0000-0000-0000-0000000f0000"),
        404,
        "not-found",
    )


def test_an_acknowledgement_says_who_and_is_kept(service: Service) -> None:
    poison(service, "cared")
    alert = alert_of(service, "cared")
    done = gradwarden("ack", str(alert["id"]), "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert "NonFiniteGradient of cared" in done.stdout
    again = service.call("POST", f"/v1/alerts/{alert['id']}/ack").json()
    assert again["acknowledged_by"] == "loopback"
    assert again["state"] == "firing"
    timeline = service.get(f"/v1/alerts/{alert['id']}")["timeline"]
    assert [line["reason"] for line in timeline].count("acknowledged") == 1
    send(service, batch("cared", [frame(3)]))
    assert alert_of(service, "cared")["acknowledged_by"] == "loopback"
    with sqlite3.connect(service.path) as connection:
        acts = connection.execute("SELECT action, subject FROM audit").fetchall()
    assert ("alert.acknowledge", str(alert["id"])) in acts


def test_silences_by_command(service: Service) -> None:
    words = ("run=terminal", "alertname=~NonFinite.*")
    done = gradwarden(
        "silence", "add", *words, "--for", "90m", "--comment", "upgrade", "--url", service.url
    )
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[1]
    shown = gradwarden("silence", "list", "--url", service.url)
    assert 'alertname=~"NonFinite.*"' in shown.stdout
    assert gradwarden("silence", "expire", number, "--url", service.url).returncode == 0
    left = json.loads(gradwarden("silence", "list", "--json", "--url", service.url).stdout)
    assert number not in {str(one["id"]) for one in left}
    wrong = gradwarden(
        "silence", "add", "run=x", "--for", "soon", "--comment", "c", "--url", service.url
    )
    assert (wrong.returncode, "write 30m, 2h or 1d" in wrong.stderr) == (2, True)


def amtool(service: Service, *words: str) -> str:
    command = [needs("amtool"), f"--alertmanager.url={service.url}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_amtool_lists_and_silences(service: Service, receiver: LocalReceiver) -> None:
    poison(service, "amtool")
    alert_of(service, "amtool")
    found = json.loads(amtool(service, "alert", "query", "run=amtool", "-o", "json"))
    assert [a["labels"]["alertname"] for a in found] == ["NonFiniteGradient"]
    assert found[0]["status"]["state"] == "active"
    assert found[0]["receivers"] == [{"name": "pager"}]
    silence = amtool(
        service, "silence", "add", "run=amtool", "--duration=1h", "--comment=ours", "--author=sre"
    ).strip()

    def suppressed() -> Any:
        words = ("alert", "query", "--silenced", "run=amtool", "-o", "json")
        return json.loads(amtool(service, *words))

    [held] = eventually(suppressed)
    assert held["status"]["silencedBy"] == [silence]
    [shown] = json.loads(amtool(service, "silence", "query", "run=amtool", "-o", "json"))
    assert (shown["id"], shown["createdBy"], shown["comment"]) == (silence, "sre", "ours")
    amtool(service, "silence", "expire", silence)
    assert json.loads(amtool(service, "silence", "query", "run=amtool", "-o", "json")) == []
    eventually(lambda: not suppressed())


def test_a_project_sees_only_its_own_silences(service: Service, tmp_path: Path) -> None:
    body = {"matchers": ["run=hidden"], "duration_seconds": HOUR, "comment": "ours"}
    made = service.call("POST", "/v1/silences", json=body).json()
    other = {"Gradwarden-Project": "elsewhere"}
    listed = service.call("GET", "/v1/silences", headers=other).json()
    assert made["id"] not in {one["id"] for one in listed["items"]}
    answer = service.call("DELETE", f"/v1/silences/{made['id']}", headers=other)
    problem(answer, 404, "not-found")
    assert service.get(f"/v1/silences/{made['id']}")["state"] == "active"
