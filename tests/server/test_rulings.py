"""What the state of a rule means for people: reasons, shadow periods, limits, ends of runs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwarden_server.alerting import rulings
from gradwarden_server.alerting.lifecycle import settle
from gradwarden_server.alerting.rulings import Setting
from gradwarden_server.alerting.shadow import OPEN, Shadow
from gradwarden_server.model import SHADOW, Alert
from gradwarden_server.promql.engine import Engine
from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.memory import Memory
from gradwarden_server.querying.grammar import Grammar
from gradwarden_server.querying.ruling import GroupState, Manner, RuleAlert, RuleState
from gradwarden_server.rules.groups import PromGroup, PromRule
from gradwarden_server.store.records import RunRecord
from tests.needs import needs

SECOND = 1_000_000_000
RUN = RunRecord(
    id=7,
    project="default",
    run="r1",
    name="r1",
    training_job=None,
    model=None,
    dataset=None,
    cluster=None,
    queue=None,
    owner=None,
    team=None,
    environment="prod",
    git_commit=None,
    config={},
    world_size=1,
    cost_per_hour=None,
    target_loss=None,
    status="running",
    page=False,
    started_ns=0,
    ended_ns=None,
    last_seen_ns=0,
    last_step=None,
    position=0,
)


class Group:
    """One rule over a series ``x``, and its alerts in the ledger."""

    def __init__(self, rule: PromRule, limit: int = 0) -> None:
        self.run: RunRecord | None = RUN
        self.shadow = OPEN
        self.names = {rule.alert}
        self.standing: dict[str, Alert] = {}
        self.memory = Memory()
        [self.state] = GroupState(PromGroup("g", (rule,), limit=limit)).rules

    def at(self, second: int, **values: float) -> list[tuple[str, str]]:
        """Evaluate with these values by run; what changed, as states and reasons."""
        for run, value in values.items():
            self.memory.add({"__name__": "x", "run": run}, [(second * 1000, value)])
        manner = Manner(self._dress, lambda labels: rulings.over(self._of(labels)))
        try:
            self.state.evaluate(second * 1000, Engine(self.memory), Memory(), manner)
        finally:
            setting = Setting("default", "f;g", self.names, self.shadow, self._of, "http://gw")
            held = [*self.state.alerts.values()]
            self.changes = rulings.changes(self.standing, held, setting, second * SECOND)
            self.standing = settle(self.standing, self.changes)
            self.standing |= rulings.reworded(self.standing, held, setting)
        return [(change.to_state, change.reason) for change in self.changes]

    def _of(self, labels: Mapping[str, str]) -> RunRecord | None:
        return self.run if labels.get("run") == "r1" else None

    def _dress(self, labels: dict[str, str]) -> dict[str, str]:
        return rulings.dressed("default", labels, self._of(labels))


def rule(**more: Any) -> PromRule:
    severity = more.pop("severity", "page")
    labels = {"severity": severity} if severity else {}
    return PromRule("High", "", "x > 1", labels=labels, **more)


def test_an_alert_fires_after_its_hold_and_resolves_when_the_expression_does() -> None:
    group = Group(rule(hold="10s", keep="5s", severity=""))
    assert group.at(0, r1=2.0) == [("pending", "condition")]
    [alert] = group.standing.values()
    assert (alert.run, alert.severity, alert.rule_group) == ("r1", "ticket", "f;g")
    assert alert.annotations == {"dashboard_url": "http://gw/runs/r1"}
    assert group.at(9, r1=2.0) == []
    assert group.at(10, r1=2.0) == [("firing", "condition")]
    assert group.at(12, r1=0.0) == []  # kept
    assert group.at(17, r1=0.0) == [("resolved", "condition")]
    assert group.at(18, r1=2.0) == [("pending", "condition")]
    assert group.at(19, r1=0.0) == [("resolved", "condition")]


def test_an_alert_that_lasts_is_described_anew_as_promtool_has_it(tmp_path: Path) -> None:
    """What is kept behind its condition has the words of its last value."""
    values = [2, 3, 3, 5, 0, 0]
    high = rule(hold="1m", keep="1m", annotations={"summary": "x is {{ $value }}"}, severity="")
    group = Group(high)
    words = []
    for minute, value in enumerate(values):
        group.at(60 * minute, r1=float(value))
        words.append([a.annotations["summary"] for a in group.standing.values()])
    assert words == [["x is 2"], ["x is 3"], ["x is 3"], ["x is 5"], ["x is 5"], []]
    told = {
        "alert": high.alert,
        "expr": high.expr,
        "for": high.hold,
        "keep_firing_for": high.keep,
        "annotations": dict(high.annotations),
    }
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "g", "rules": [told]}]})
    )
    firing = [[], *words[1:]]  # promtool asks for those that fire
    asked = [
        {
            "eval_time": f"{minute}m",
            "alertname": high.alert,
            "exp_alerts": [
                {"exp_labels": {"run": "r1"}, "exp_annotations": {"summary": text}} for text in held
            ],
        }
        for minute, held in enumerate(firing)
    ]
    series = {"series": 'x{run="r1"}', "values": " ".join(map(str, values))}
    test = {"interval": "1m", "input_series": [series], "alert_rule_test": asked}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [needs("promtool"), "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "reason"), [("finished", "run_finished"), ("cancelled", "run_cancelled")]
)
def test_a_run_that_ended_takes_its_alerts_with_it(status: str, reason: str) -> None:
    group = Group(rule(keep="10m"))
    assert group.at(0, r1=2.0)[-1] == ("firing", "condition")
    group.run = replace(RUN, status="failed")
    assert group.at(1, r1=2.0) == []
    group.run = replace(RUN, status=status)
    assert group.at(2, r1=2.0) == [("resolved", reason)]
    assert group.at(3, r1=2.0) == []


def test_alerts_of_a_deleted_run_and_of_a_rule_that_is_gone_say_so() -> None:
    group = Group(rule())
    group.at(0, r1=2.0)
    group.run = None
    assert group.at(1, r1=0.0) == [("resolved", "run_deleted")]
    group = Group(rule())
    group.at(0, r1=2.0)
    group.names = set()
    group.state = RuleState(PromRule("Other", "", "x > 9"), "other", 0)
    assert group.at(1, r1=2.0) == [("resolved", "rule_removed")]


def test_a_page_of_a_shadow_period_is_a_ticket_until_it_is_promoted() -> None:
    group = Group(rule())
    group.shadow = Shadow(period=True)
    assert group.at(0, r1=2.0)[-1] == ("firing", "condition")
    [alert] = group.standing.values()
    assert (alert.severity, alert.annotations[SHADOW]) == ("ticket", "would have paged")
    group.shadow = OPEN
    assert group.at(1, r1=2.0) == [
        ("pending", "condition"),
        ("firing", "condition"),
        ("resolved", "promoted"),
    ]
    [alert] = group.standing.values()
    assert (alert.severity, alert.active_ns) == ("page", 0)
    group.shadow = Shadow(period=True)
    assert group.at(2, r1=2.0) == [], "what paged stays a page until it is over"


def test_more_alerts_than_the_limit_are_an_error_and_none() -> None:
    group = Group(rule(), limit=1)
    group.at(0, r1=2.0)
    with pytest.raises(ExecutionError, match="exceeded limit of 1 with 2 alerts"):
        group.at(1, r1=2.0, r2=2.0)
    assert [change.to_state for change in group.changes] == ["resolved"]


def test_a_nan_is_not_above_anything() -> None:
    group = Group(rule())
    assert group.at(0, r1=2.0)[-1] == ("firing", "condition")
    assert group.at(1, r1=float("nan")) == [("resolved", "condition")]


def test_a_severity_that_there_is_not_is_a_ticket_and_drills_are_marked() -> None:
    drill = replace(RUN, environment="drill")
    labels = {"alertname": "High", "run": "r1", "severity": "urgent"}
    dressed = rulings.dressed("default", labels, drill)
    assert (dressed["severity"], dressed["drill"]) == ("ticket", "true")
    held = RuleAlert({**dressed, "severity": "page"}, {}, 2.0, 0, "firing")
    setting = Setting("default", "f;g", {"High"}, Shadow(period=True), lambda _: drill, "")
    fired = rulings.changes({}, [held], setting, 0)[-1].alert
    assert fired.severity == "page", "a drill is asked for"


@pytest.mark.parametrize("kind", ["alert", "record"])
def test_a_name_that_no_table_holds_is_a_mistake(kind: str) -> None:
    def judged(length: int) -> list[str]:
        names = {"alert": "", "record": "", kind: "a" * length}
        return list(Grammar().rule(PromRule(**names, expr="vector(1)")))

    assert judged(128) == []
    assert judged(129) == ["its name has 129 characters, expected 128 or fewer"]
