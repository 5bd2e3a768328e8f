"""The same alerts into a real Alertmanager and into us: its webhook bodies and ours are equal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from gradwarden_server.model import Alert, fingerprint
from gradwarden_server.notify.payload import body, rfc3339
from tests.server.pager import PATIENCE, SECOND, LocalReceiver, local_receiver
from tests.server.test_notify_alertmanager import Alertmanager

GROUP_BY = ("alertname", "case", "project", "run")
CONFIG = """
route:
  receiver: pager
  group_by: [alertname, case, project, run]
  group_wait: 1s
  group_interval: 1s
receivers:
  - name: pager
    webhook_configs: [{{url: '{url}', send_resolved: true, max_alerts: 50}}]
"""
URL = "http://alerts.example"
# What differs by nature: times, and the hash by which each house names a set of labels.
UNEQUAL = ("startsAt", "endsAt", "fingerprint")


@pytest.fixture(scope="module")
def behind() -> Iterator[LocalReceiver]:
    with local_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def theirs(
    tmp_path_factory: pytest.TempPathFactory, behind: LocalReceiver
) -> Iterator[Alertmanager]:
    daemon = Alertmanager(
        tmp_path_factory.mktemp("am"), behind, CONFIG, f"--web.external-url={URL}"
    )
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


def alert(case: str, annotations: Mapping[str, str] | None = None, **labels: str) -> Alert:
    """One that fired now; it is resolved by ``over``."""
    named = {"alertname": "NonFiniteGradient", "project": "default", "run": "r1", "case": case}
    now = time.time_ns()
    every = {"severity": "page"} | named | labels
    return Alert(None, "default", "r1", every, dict(annotations or {}), "firing", now, now)


def over(one: Alert) -> Alert:
    return replace(one, state="resolved", resolved_ns=time.time_ns())


def push(theirs: Alertmanager, alerts: Sequence[Alert]) -> None:
    """As Prometheus pushes them."""
    now = time.time_ns()
    told = [
        {
            "labels": dict(one.labels),
            "annotations": dict(one.annotations),
            "startsAt": rfc3339(one.active_ns),
            "endsAt": rfc3339(one.resolved_ns or now + 3600 * SECOND),
            "generatorURL": URL,
        }
        for one in alerts
    ]
    answer = httpx.post(f"{theirs.url}/api/v2/alerts", json=told, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text


def told(behind: LocalReceiver, case: str, fits: Any) -> dict[str, Any]:
    """Alertmanager's first body of a case that fits."""
    count = 0
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for request in behind.wait(count):
            found: dict[str, Any] = json.loads(request.body)
            if found["groupLabels"].get("case") == case and fits(found):
                return found
        count = len(behind.requests) + 1
    raise AssertionError(f"no body of {case}")


def ours(alerts: Sequence[Alert]) -> dict[str, Any]:
    """Our body of the same group, through JSON as a receiver gets it."""
    group = {name: alerts[0].labels[name] for name in GROUP_BY if name in alerts[0].labels}
    made: dict[str, Any] = json.loads(json.dumps(body("pager", group, alerts, URL)))
    return made


def comparable(document: Mapping[str, Any]) -> dict[str, Any]:
    def bare(one: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in one.items() if name not in UNEQUAL}

    ordered = sorted(document["alerts"], key=lambda one: sorted(one["labels"].items()))
    newer = ("notification_reason", "routeLabels")  # of versions after 0.28
    kept = {name: value for name, value in document.items() if name not in newer}
    return {**kept, "alerts": [bare(one) for one in ordered]}


def same(mine: Mapping[str, Any], peer: Mapping[str, Any]) -> None:
    assert comparable(mine) == comparable(peer)
    for document in (mine, peer):
        for one in document["alerts"]:
            assert len(one["fingerprint"]) == 16
            assert datetime.fromisoformat(one["startsAt"]).tzinfo is not None
            never = one["endsAt"] == "0001-01-01T00:00:00Z"
            assert never == (one["status"] == "firing")
        assert len({one["fingerprint"] for one in document["alerts"]}) == len(document["alerts"])


CASES = {
    "one": [alert("one", {"summary": "NaN", "step": "40"})],
    "three": [
        alert("three", {"summary": "NaN", "layer": layer}, replica=layer, team="vision")
        for layer in ("fc1", "fc2", "fc3")
    ],
    "special": [
        alert(
            "special",
            {"summary": 'a "quoted" <b>&amp;</b> \\ back\nline \N{SNOWMAN} \N{COLLISION SYMBOL}'},
            run='gpt "x" \\ \N{SNOWMAN}\ttab',
            owner="ünï & <co>",
        )
    ],
    "no_run": [
        replace(a, labels={k: v for k, v in a.labels.items() if k != "run"})
        for a in [alert("no_run", {})]
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_group_that_fires_and_is_over(
    theirs: Alertmanager, behind: LocalReceiver, case: str
) -> None:
    alerts = CASES[case]
    push(theirs, alerts)
    whole = len(alerts)
    fired = told(behind, case, lambda d: len(d["alerts"]) == whole and d["status"] == "firing")
    same(ours(alerts), fired)
    ended = [over(one) for one in alerts]
    push(theirs, ended)
    same(ours(ended), told(behind, case, lambda d: d["status"] == "resolved"))


def test_a_group_that_is_partly_over(theirs: Alertmanager, behind: LocalReceiver) -> None:
    alerts = [alert("partly", {"layer": name}, replica=name) for name in ("a", "b", "c")]
    push(theirs, alerts)
    same(ours(alerts), told(behind, "partly", lambda d: len(d["alerts"]) == 3))
    ended = [over(alerts[0]), *alerts[1:]]
    push(theirs, ended)

    def partly(document: dict[str, Any]) -> bool:
        return {one["status"] for one in document["alerts"]} == {"firing", "resolved"}

    same(ours(ended), told(behind, "partly", partly))


def test_a_group_of_more_than_fifty_is_cut_and_says_so(
    theirs: Alertmanager, behind: LocalReceiver
) -> None:
    alerts = [alert("many", {"summary": "NaN"}, replica=f"{i:02}") for i in range(60)]
    push(theirs, alerts)
    peer = told(behind, "many", lambda d: d["truncatedAlerts"] > 0)
    mine = ours(alerts)
    # Which fifty are shown is each house's choice.
    few = {"alerts": []}
    assert comparable({**mine, **few}) == comparable({**peer, **few})
    assert (mine["truncatedAlerts"], len(mine["alerts"]), len(peer["alerts"])) == (10, 50, 50)
    every = {fingerprint(one.labels) for one in alerts}
    assert {fingerprint(one["labels"]) for one in peer["alerts"]} <= every
