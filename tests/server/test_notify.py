"""The pager line: who is told what, and the exact body of a message."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gradwarden_server.alerting.lifecycle import RUN_FINISHED, advance, resolve_all, settle
from gradwarden_server.model import Alert, Change, Condition, Notification
from gradwarden_server.notify.payload import MAX_ALERTS, NEVER, body, group_key, rfc3339
from gradwarden_server.notify.pipeline import Pipeline, build
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.stages import Bundle, Dedup
from gradwarden_server.notify.watchdog import watchdog, watchdogs
from tests.server.pager import SECOND, firing, run_facts, sick, well

URL = "https://gw.example"
PAGER = Receiver("pager", "webhook", "https://pager.example", ("page",))
QUEUE = Receiver("queue", "webhook", "https://queue.example", ("ticket",))
BOTH = Receiver("both", "alertmanager", "https://am.example")
DEADMAN = Receiver("deadman", "webhook", "https://dead.example", watchdog_seconds=60)
NOW = 1_800_000_000 * SECOND


class Line:
    """Runs conditions through lifecycle and line, as the evaluator does."""

    def __init__(self, *receivers: Receiver, run: str = "r1") -> None:
        self.pipeline: Pipeline = build(receivers, URL)
        self.run = run
        self.alerts: dict[str, Alert] = {}
        self.now = NOW

    def say(self, *conditions: Condition, hold: int = 0) -> list[Notification]:
        self.now += SECOND
        holds = {condition.alertname: hold for condition in conditions}
        return self._tell(advance(self.alerts, run_facts(self.run), conditions, self.now, holds))

    def finish(self) -> list[Notification]:
        self.now += SECOND
        return self._tell(resolve_all(self.alerts, RUN_FINISHED, self.now))

    def _tell(self, changes: Sequence[Change]) -> list[Notification]:
        told = self.pipeline.run(self.alerts, changes)
        self.alerts = settle(self.alerts, changes)
        return told


def brief(notifications: Sequence[Notification]) -> list[tuple[str, str, list[str]]]:
    return [
        (
            n.receiver,
            n.payload["status"],
            [f"{a['labels']['alertname']}:{a['status']}" for a in n.payload["alerts"]],
        )
        for n in notifications
    ]


def test_the_body_is_alertmanagers_version_4() -> None:
    (told,) = Line(PAGER).say(
        sick(step="40", layer="fc2", dashboard_url="https://gw.example/runs/r1?step=40")
    )
    labels = {
        "project": "default",
        "run": "r1",
        "alertname": "NonFiniteGradient",
        "severity": "page",
    }
    annotations = {
        "step": "40",
        "layer": "fc2",
        "dashboard_url": "https://gw.example/runs/r1?step=40",
    }
    group = {"project": "default", "run": "r1", "alertname": "NonFiniteGradient"}
    assert told.payload == {
        "version": "4",
        "groupKey": '{}:{alertname="NonFiniteGradient", project="default", run="r1"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "pager",
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": URL,
        "alerts": [
            {
                "status": "firing",
                "labels": labels,
                "annotations": annotations,
                "startsAt": "2027-01-15T08:00:01.000Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "https://gw.example/runs/r1?step=40",
                "fingerprint": told.payload["alerts"][0]["fingerprint"],
            }
        ],
    }
    assert re.fullmatch("[0-9a-f]{16}", told.payload["alerts"][0]["fingerprint"])
    assert (told.project, told.receiver, told.severity) == ("default", "pager", "page")
    assert told.group_key == told.payload["groupKey"]
    json.dumps(told.payload, allow_nan=False)


def test_a_resolve_says_when_it_ended_and_where_to_look() -> None:
    line = Line(PAGER)
    line.say(sick())
    (told,) = line.say(well())
    (alert,) = told.payload["alerts"]
    assert (told.payload["status"], alert["status"]) == ("resolved", "resolved")
    assert alert["endsAt"] == "2027-01-15T08:00:02.000Z"
    assert alert["startsAt"] == "2027-01-15T08:00:01.000Z"
    assert alert["generatorURL"] == URL


def test_nothing_is_said_twice_and_pending_enriched_or_noted_is_not_said_at_all() -> None:
    line = Line(PAGER, QUEUE, BOTH)
    assert line.say(sick("DeadLayer"), hold=9 * SECOND) == []
    assert line.say(well("DeadLayer")) == []
    assert len(line.say(sick())) == 2
    assert line.say(sick()) == []
    assert line.say(sick(rank="3")) == []
    assert line.say(sick("GradientShift", "note")) == []
    assert line.say(well("GradientShift", "note")) == []


def test_severity_decides_who_is_told() -> None:
    line = Line(PAGER, QUEUE, BOTH, DEADMAN)
    told = line.say(sick(), sick("DeadLayer", "ticket"))
    assert brief(told) == [
        ("pager", "firing", ["NonFiniteGradient:firing"]),
        ("queue", "firing", ["DeadLayer:firing"]),
        ("both", "firing", ["NonFiniteGradient:firing"]),
        ("both", "firing", ["DeadLayer:firing"]),
    ]


def test_a_second_different_page_rings_while_tickets_of_a_run_gather() -> None:
    line = Line(BOTH)
    first = line.say(sick(), sick("DeadLayer", "ticket"))
    second = line.say(sick("RunStalled"), sick("VanishingGradient", "ticket"))
    assert {n.group_key for n in first if n.severity == "page"} != {
        n.group_key for n in second if n.severity == "page"
    }
    assert brief(second) == [
        ("both", "firing", ["DeadLayer:firing", "VanishingGradient:firing"]),
        ("both", "firing", ["RunStalled:firing"]),
    ]
    assert second[0].group_key == '{}:{project="default", run="r1"}'


def test_a_group_is_over_only_when_all_of_it_is() -> None:
    line = Line(QUEUE)
    line.say(sick("DeadLayer", "ticket"), sick("VanishingGradient", "ticket"))
    assert brief(line.say(well("DeadLayer", "ticket"))) == [
        ("queue", "firing", ["VanishingGradient:firing", "DeadLayer:resolved"])
    ]
    assert brief(line.finish()) == [("queue", "resolved", ["VanishingGradient:resolved"])]


def test_an_alert_that_fired_and_resolved_in_one_evaluation_is_told_as_both() -> None:
    fired = advance({}, run_facts(), [sick()], NOW)
    over = advance(settle({}, fired), run_facts(), [well()], NOW + SECOND)
    assert brief(build([PAGER], URL).run({}, [*fired, *over])) == [
        ("pager", "firing", ["NonFiniteGradient:firing"]),
        ("pager", "resolved", ["NonFiniteGradient:resolved"]),
    ]


def test_news_of_one_alert_at_one_time_is_told_in_order() -> None:
    alerts: dict[str, Alert] = {}
    changes: list[Change] = []
    for said in (sick(), well(), sick()):
        new = advance(alerts, run_facts(), [said], NOW)
        alerts = settle(alerts, new)
        changes += new
    assert brief(build([PAGER], URL).run({}, changes)) == [
        ("pager", "firing", ["NonFiniteGradient:firing"]),
        ("pager", "resolved", ["NonFiniteGradient:resolved"]),
        ("pager", "firing", ["NonFiniteGradient:firing"]),
    ]


def test_runs_and_projects_of_one_name_stay_apart() -> None:
    keys = {
        group_key({"alertname": "X", "project": project, "run": run})
        for project in ("a", "b")
        for run in ("r", "s")
    }
    assert len(keys) == 4
    assert group_key({"run": 'r"1\\'}) == '{}:{run="r\\"1\\\\"}'


def test_a_storm_is_capped_with_firing_first_and_the_rest_counted() -> None:
    alerts = [firing(name=f"A{number:02}") for number in range(MAX_ALERTS)]
    over = [
        Alert(None, "default", "r1", a.labels, {}, "resolved", SECOND, SECOND, 2 * SECOND)
        for a in (firing(name=f"B{number:02}") for number in range(7))
    ]
    written = body("queue", {"run": "r1"}, [*over, *alerts], URL)
    assert written["truncatedAlerts"] == 7
    assert len(written["alerts"]) == MAX_ALERTS
    assert {alert["status"] for alert in written["alerts"]} == {"firing"}
    assert written["commonLabels"] == {"project": "default", "run": "r1", "severity": "page"}


def test_a_bundle_without_news_ends_the_line() -> None:
    assert Dedup()([Bundle(alerts=(firing(),), news=())]) == []
    ran: list[str] = []

    def nothing(bundles: Any) -> list[Bundle]:
        ran.append("first")
        return []

    def never(bundles: Any) -> list[Bundle]:
        ran.append("second")
        return list(bundles)

    assert Pipeline([nothing, never], URL).run({}, advance({}, run_facts(), [sick()], NOW)) == []
    assert ran == ["first"]


def test_the_watchdog_goes_to_dead_man_endpoints_alone_and_always_fires() -> None:
    assert watchdogs([PAGER, BOTH, DEADMAN]) == [DEADMAN]
    told = watchdog(DEADMAN, "default", NOW, URL)
    assert (told.receiver, told.severity) == ("deadman", "none")
    assert told.group_key == '{}:{alertname="Watchdog"}'
    assert told.payload["status"] == "firing"
    assert told.payload["alerts"][0]["endsAt"] == NEVER
    assert told == watchdog(DEADMAN, "default", NOW, URL)
    assert Line(DEADMAN).say(sick()) == []


def test_times_are_utc_to_the_millisecond() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123Z"
