"""What PagerDuty is told, against a stand-in that keeps its contract and its own client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pagerduty import EventsApiV2Client

from gradwarden_server.model import Alert, Notification, Queued
from gradwarden_server.notify.message import Failed, Outcome, Sender, Sent
from gradwarden_server.notify.pagerduty import MOST_BYTES, MOST_SUMMARY, event
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.spec import parse
from tests.server.fake_pagerduty import ROUTING_KEY, FakePagerDuty, fake_pagerduty
from tests.server.pager import SECOND, eventually, firing
from tests.server.test_silences import poison
from tests.service import Service, gradwarden

NOW = 1_800_000_000 * SECOND
GROUP = {"project": "default", "run": "r1", "alertname": "NonFiniteGradient"}
SICK = {
    "summary": "NaN in fc2",
    "layer": "fc2",
    "rank": "3",
    "node": "n7",
    "step": "40",
    "first_action": "Resume from step 39.",
    "runbook_url": "https://gw.example/runbooks/NonFiniteGradient",
    "dashboard_url": "https://gw.example/runs/r1?at=40",
}


@pytest.fixture(scope="module")
def far() -> Iterator[FakePagerDuty]:
    with fake_pagerduty() as fake:
        yield fake


@pytest.fixture
def fake(far: FakePagerDuty) -> FakePagerDuty:
    far.incidents.clear()
    far.refused.clear()
    far.throttled = 0
    return far


@pytest.fixture
def sender(fake: FakePagerDuty) -> Sender:
    return connected(fake)


def connected(fake: FakePagerDuty, **more: Any) -> Sender:
    entry = {"name": "pd", "type": "pagerduty", "routing_key": ROUTING_KEY, "url": fake.url}
    return connect(parse({"receivers": [entry | {"allow_private": True} | more]}, "r", {}))["pd"]


def message(*alerts: Alert) -> Queued:
    told = Notification(
        "default", "pd", group_key(GROUP), "page", body("pd", GROUP, alerts, "https://gw.example")
    )
    return Queued(1, told, 1, 1, NOW)


def send(sender: Sender, *alerts: Alert) -> Outcome:
    return sender.send(message(*alerts), NOW)


def over(alert: Alert) -> Alert:
    return replace(alert, state="resolved", resolved_ns=2 * SECOND)


def acked(alert: Alert) -> Alert:
    return replace(alert, annotations={**alert.annotations, "acknowledged_by": "ada"})


def test_an_incident_opens_is_acknowledged_and_resolves(
    fake: FakePagerDuty, sender: Sender
) -> None:
    alert = firing(**SICK)
    assert send(sender, alert) == Sent("HTTP 202: Event processed")
    (incident,) = fake.open()
    told = incident.events[0]
    assert list(fake.incidents) == [hashlib.sha256(group_key(GROUP).encode()).hexdigest()]
    assert told["payload"] == {
        "summary": "NonFiniteGradient on r1: NaN in fc2",
        "source": "n7",
        "severity": "critical",
        "timestamp": "1970-01-01T00:00:01.000Z",
        "class": "NonFiniteGradient",
        "component": "fc2",
        "group": "r1",
        "custom_details": {
            "layer": "fc2",
            "rank": "3",
            "node": "n7",
            "step": "40",
            "first_action": "Resume from step 39.",
            "firing": 1,
            "resolved": 0,
            "labels": dict(alert.labels),
            "alerts": ["NonFiniteGradient: NaN in fc2 (layer fc2, rank 3, node n7, step 40)"],
        },
    }
    assert {link["text"]: link["href"] for link in told["links"]} == {
        "Runbook": SICK["runbook_url"],
        "Open": SICK["dashboard_url"],
    }
    send(sender, acked(alert))
    assert incident.status == "acknowledged"
    send(sender, over(alert))
    assert incident.status == "resolved"
    send(sender, alert)
    assert len(fake.open()) == 1, "what comes back is a new incident"
    assert fake.refused == []


def test_a_group_is_one_incident_until_all_of_it_is_over(
    fake: FakePagerDuty, sender: Sender
) -> None:
    one, two = firing(layer="a", summary="a"), firing(name="NonFiniteLoss", summary="b")
    send(sender, one)
    send(sender, acked(one), two)
    (incident,) = fake.open()
    assert incident.status == "triggered", "an alert that nobody takes care of still rings"
    assert incident.events[1]["payload"]["summary"] == ("NonFiniteGradient and 1 more on r1: a")
    send(sender, over(one), two)
    assert [e["event_action"] for e in incident.events] == ["trigger"] * 3
    assert incident.events[2]["payload"]["custom_details"]["resolved"] == 1
    send(sender, over(one), over(two))
    assert fake.open() == []


@pytest.mark.parametrize(
    ("severity", "theirs"), [("page", "critical"), ("ticket", "warning"), ("note", "info")]
)
def test_severities(fake: FakePagerDuty, sender: Sender, severity: Any, theirs: str) -> None:
    send(sender, firing(severity=severity))
    assert fake.open()[0].events[0]["payload"]["severity"] == theirs


def test_limits_are_kept_whatever_the_alerts_say(fake: FakePagerDuty, sender: Sender) -> None:
    huge = "\N{SNOWMAN}" * 40_000
    alerts = [firing(run=f"r{i}", summary=huge, first_action=huge, node=huge) for i in range(50)]
    raw = event(ROUTING_KEY, "g", body("pd", {}, alerts, ""))
    assert len(raw) <= MOST_BYTES
    assert isinstance(send(sender, *alerts), Sent)
    payload = fake.open()[0].events[0]["payload"]
    assert len(payload["summary"]) == MOST_SUMMARY
    wide = {f"label{i}": "\N{SNOWMAN}" * 2000 for i in range(60)}
    labelled = replace(firing(), labels={**firing().labels, **wide})
    assert isinstance(send(sender, labelled), Sent)
    assert fake.refused == []


def test_what_it_refuses_is_final_and_its_reason_is_told(fake: FakePagerDuty) -> None:
    assert send(connected(fake, url=fake.url + "/elsewhere"), firing()) == Failed("HTTP 404", False)
    told = message(firing())
    payload = json.loads(json.dumps(told.notification.payload))
    payload["alerts"][0]["startsAt"] = "yesterday"
    broken = replace(told, notification=replace(told.notification, payload=payload))
    assert connected(fake).send(broken, NOW) == Failed(
        "HTTP 400: Event object is invalid; 'payload.timestamp' is invalid (must be ISO 8601)",
        retry=False,
    )


def test_when_it_is_throttled_it_is_asked_again_when_it_says(
    fake: FakePagerDuty, sender: Sender
) -> None:
    fake.throttled = 1
    outcome = send(sender, firing())
    assert isinstance(outcome, Failed)
    assert (outcome.retry, outcome.retry_after_seconds) == (True, 7.0)
    assert outcome.detail.startswith("HTTP 429: Requests for this service are arriving too")
    assert isinstance(send(sender, firing()), Sent)


def test_its_own_client_says_the_same(fake: FakePagerDuty, sender: Sender) -> None:
    send(sender, firing(**SICK))
    (ours,) = fake.open()[0].events
    payload = ours["payload"]
    client = EventsApiV2Client(ROUTING_KEY)
    client._url = fake.url  # its public way wants https
    client.trigger(
        payload["summary"],
        payload["source"],
        dedup_key="theirs",
        severity=payload["severity"],
        payload={k: payload[k] for k in ("timestamp", "class", "component", "group")},
        custom_details=payload["custom_details"],
        links=ours["links"],
    )
    (theirs,) = fake.incidents["theirs"][0].events
    differ = {"dedup_key", "client", "client_url"}
    assert {k: v for k, v in theirs.items() if k not in differ} == {
        k: v for k, v in ours.items() if k not in differ
    }
    client.resolve(ours["dedup_key"])
    assert fake.incidents[ours["dedup_key"]][0].status == "resolved", "it finds our incident"


def test_the_region_and_the_key_by_the_environment() -> None:
    entry = {"name": "pd", "type": "pagerduty", "routing_key_env": "PD", "region": "eu"}
    (receiver,) = parse({"receivers": [entry]}, "r", {"PD": ROUTING_KEY})
    assert receiver.url == "https://events.eu.pagerduty.com"
    assert receiver.links
    assert ROUTING_KEY not in repr(receiver)
    assert ROUTING_KEY not in repr(receiver.options)
    (receiver,) = parse({"receivers": [entry | {"region": "us"}]}, "r", {"PD": ROUTING_KEY})
    assert receiver.url == "https://events.pagerduty.com"


def test_from_a_run_to_an_incident_that_is_taken_care_of(
    fake: FakePagerDuty, tmp_path: Path
) -> None:
    receivers = f"""
receivers:
  - {{name: pd, type: pagerduty, routing_key_env: PD, url: "{fake.url}", allow_private: true}}
"""
    service = Service(tmp_path / "pd", receivers=receivers, env={"PD": ROUTING_KEY})
    try:
        tried = gradwarden("receivers", "test", "pd", "--url", service.url)
        assert "pd took the test message" in tried.stdout
        assert "HTTP 202: Event processed" in tried.stdout
        (test,) = next(iter(fake.incidents.values()))
        assert test.status == "resolved", "nothing stays open"
        fake.incidents.clear()
        poison(service, "sick")
        (incident,) = eventually(fake.open)
        links = {link["text"]: link["href"] for link in incident.events[0]["links"]}
        assert {"Acknowledge", "Silence 1 h", "Runbook", "Open"} <= set(links)
        path = links["Acknowledge"].removeprefix(service.url)
        assert service.call("POST", path).status_code == 200
        eventually(lambda: incident.status == "acknowledged")
    finally:
        service.close()
