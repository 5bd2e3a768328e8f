"""The pager line: who is told what, and the exact body of a message."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from gradwarden_server.alerting.lifecycle import RUN_FINISHED, advance, resolve_all, settle
from gradwarden_server.model import Alert, Change, Condition, Notification
from gradwarden_server.notify.payload import MAX_ALERTS, NEVER, body, group_key, rfc3339
from gradwarden_server.notify.routes import Route, Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.watchdog import watchdog, watchdogs
from tests.server.board import Board, brief
from tests.server.pager import SECOND, firing, run_facts, sick, well

URL = "https://gw.example"
PAGER = Receiver("pager", "webhook", "https://pager.example", ("page",))
QUEUE = Receiver("queue", "webhook", "https://queue.example", ("ticket",))
BOTH = Receiver("both", "alertmanager", "https://am.example")
DEADMAN = Receiver("deadman", "webhook", "https://dead.example", watchdog_seconds=60)
NOW = 1_800_000_000 * SECOND


class Line:
    """Runs conditions through lifecycle and line, as evaluator and herald do, without waiting."""

    def __init__(self, *receivers: Receiver, run: str = "r1") -> None:
        self.board = Board(
            Routing(
                receivers,
                [
                    Route(
                        receiver.name,
                        group_wait_seconds=0.0,
                        group_interval_seconds=0.0,
                        goes_on=True,
                    )
                    for receiver in receivers
                ],
            ),
            URL,
        )
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
        self.board.change(changes, self.now)
        self.alerts = settle(self.alerts, changes)
        return self.board.tell(self.now)


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
    assert sorted(brief(told)) == [
        ("both", "firing", ["DeadLayer:firing"]),
        ("both", "firing", ["NonFiniteGradient:firing"]),
        ("pager", "firing", ["NonFiniteGradient:firing"]),
        ("queue", "firing", ["DeadLayer:firing"]),
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


def test_what_fired_and_resolved_before_it_was_told_is_never_told() -> None:
    line = Line(PAGER)
    fired = advance({}, run_facts(), [sick()], NOW)
    over = advance(settle({}, fired), run_facts(), [well()], NOW + SECOND)
    line.board.change([*fired, *over], NOW + SECOND)
    assert line.board.tell(NOW + SECOND) == []
    assert line.board.next_ns() is None


def test_what_changed_back_and_forth_is_told_as_it_is() -> None:
    line = Line(PAGER)
    changes: list[Change] = []
    for said in (sick(), well(), sick()):
        new = advance(line.alerts, run_facts(), [said], NOW)
        line.alerts = settle(line.alerts, new)
        changes += new
    line.board.change(changes, NOW)
    assert brief(line.board.tell(NOW)) == [("pager", "firing", ["NonFiniteGradient:firing"])]


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
