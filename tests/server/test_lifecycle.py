"""The alert state machine: transition tables by sentence, and what must hold for any history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gradwarden_server.alerting.lifecycle import (
    ENRICHED,
    RUN_FINISHED,
    advance,
    resolve_all,
    settle,
)
from gradwarden_server.model import Alert, Change, Condition, RunFacts, Severity, fingerprint

RUN = RunFacts(
    row=1,
    project="default",
    run="r1",
    name="digits",
    status="running",
    environment="prod",
    world_size=1,
    labels={"project": "default", "run": "r1", "environment": "prod"},
    dashboard_url="http://127.0.0.1/runs/r1",
    started_ns=0,
    last_seen_ns=0,
    last_step=0,
)


def sick(
    name: str = "NonFiniteGradient", severity: Severity = "page", **annotations: str
) -> Condition:
    return Condition(name, severity, True, annotations, "non_finite")


def well(
    name: str = "NonFiniteGradient", severity: Severity = "page", reason: str = "recovered"
) -> Condition:
    return Condition(name, severity, False, {}, reason)


@dataclass(frozen=True)
class Tick:
    """Conditions at a moment, and the transitions that they must cause."""

    at: int
    says: Sequence[Condition]
    moves: Sequence[str] = ()


@dataclass(frozen=True)
class Case:
    sentence: str
    ticks: Sequence[Tick]
    holds: Mapping[str, int] = field(default_factory=dict)


CASES = [
    Case("a healthy run has no alerts", [Tick(1, [well()])]),
    Case(
        "a debounced condition is pending and firing in one moment",
        [Tick(1, [sick()], ["inactive>pending", "pending>firing"])],
    ),
    Case(
        "the same sickness again changes nothing",
        [Tick(1, [sick()], ["inactive>pending", "pending>firing"]), Tick(2, [sick()])],
    ),
    Case(
        "recovery resolves",
        [
            Tick(1, [sick()], ["inactive>pending", "pending>firing"]),
            Tick(2, [well()], ["firing>resolved"]),
            Tick(3, [well()]),
        ],
    ),
    Case(
        "silence of a rule is no recovery",
        [Tick(1, [sick()], ["inactive>pending", "pending>firing"]), Tick(2, [])],
    ),
    Case(
        "a relapse is a new incident",
        [
            Tick(1, [sick()], ["inactive>pending", "pending>firing"]),
            Tick(2, [well()], ["firing>resolved"]),
            Tick(3, [sick()], ["inactive>pending", "pending>firing"]),
        ],
    ),
    Case(
        "a held condition waits, then fires",
        [
            Tick(1, [sick()], ["inactive>pending"]),
            Tick(5, [sick()]),
            Tick(11, [sick()], ["pending>firing"]),
        ],
        {"NonFiniteGradient": 10},
    ),
    Case(
        "a held condition that passes never fires",
        [Tick(1, [sick()], ["inactive>pending"]), Tick(5, [well()], ["pending>resolved"])],
        {"NonFiniteGradient": 10},
    ),
    Case(
        "a new word enriches without firing again",
        [
            Tick(1, [sick(step="40")], ["inactive>pending", "pending>firing"]),
            Tick(2, [sick(step="41", rank="3")], ["firing>firing"]),
            Tick(3, [sick(step="42", rank="0")]),
        ],
    ),
    Case(
        "two severities of one name are two alerts",
        [
            Tick(1, [sick(severity="note")], ["inactive>pending", "pending>firing"]),
            Tick(2, [sick()], ["inactive>pending", "pending>firing"]),
            Tick(3, [well(severity="note")], ["firing>resolved"]),
        ],
    ),
    Case(
        "of two rules for one identity the one that sees it wins",
        [
            Tick(1, [well(), sick(), well()], ["inactive>pending", "pending>firing"]),
            Tick(2, [well(), sick()]),
        ],
    ),
]


def moves(changes: Sequence[Change]) -> list[str]:
    return [f"{change.from_state}>{change.to_state}" for change in changes]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence.replace(" ", "_"))
def test_transitions(case: Case) -> None:
    alerts: dict[str, Alert] = {}
    for tick in case.ticks:
        changes = advance(alerts, RUN, tick.says, tick.at, case.holds)
        assert moves(changes) == list(tick.moves), f"at {tick.at}"
        alerts = settle(alerts, changes)
        assert not advance(alerts, RUN, tick.says, tick.at, case.holds), "a replay changed it"


def test_an_alert_carries_the_labels_of_its_run_and_the_words_of_its_onset() -> None:
    changes = advance({}, RUN, [sick(step="40", layer="fc2")], 7)
    alert = changes[-1].alert
    assert alert.labels == {
        "project": "default",
        "run": "r1",
        "environment": "prod",
        "alertname": "NonFiniteGradient",
        "severity": "page",
    }
    assert alert.fingerprint == fingerprint(alert.labels)
    assert (alert.active_ns, alert.fired_ns, alert.resolved_ns) == (7, 7, None)
    aftermath = [sick(step="41", layer="fc1", rank="2"), sick(step="42", node="n7")]
    (change,) = advance(settle({}, changes), RUN, aftermath, 8)
    assert change.reason == ENRICHED
    assert change.alert.annotations == {"step": "40", "layer": "fc2", "rank": "2", "node": "n7"}
    assert change.alert.fired_ns == 7


def test_step_layer_and_rank_are_no_identity() -> None:
    here = advance({}, RUN, [sick(step="1", layer="a", rank="0")], 1)[-1].alert
    there = advance({}, RUN, [sick(step="9", layer="b", rank="3")], 9)[-1].alert
    assert here.fingerprint == there.fingerprint


def test_the_end_of_a_run_resolves_all_that_is_open_with_its_reason() -> None:
    opened = settle({}, advance({}, RUN, [sick(), sick("RunStalled", "ticket")], 1))
    held = settle({}, advance({}, RUN, [sick("DeadLayer", "ticket")], 1, {"DeadLayer": 9}))
    closed = resolve_all({**opened, **held}, RUN_FINISHED, 5)
    assert sorted(moves(closed)) == ["firing>resolved", "firing>resolved", "pending>resolved"]
    assert {change.reason for change in closed} == {RUN_FINISHED}
    assert {change.alert.resolved_ns for change in closed} == {5}
    assert settle({**opened, **held}, closed) == {}
    assert resolve_all({c.alert.fingerprint: c.alert for c in closed}, RUN_FINISHED, 6) == []


NAMES = st.sampled_from(["NonFiniteGradient", "RunStalled", "DeadLayer"])
SEVERITY: st.SearchStrategy[Severity] = st.sampled_from(["page", "ticket"])
WORDS = st.dictionaries(
    st.sampled_from(["step", "layer", "rank", "node"]), st.sampled_from("abc"), max_size=4
)
CONDITIONS = st.lists(
    st.builds(Condition, NAMES, SEVERITY, st.booleans(), WORDS, st.just("said")), max_size=6
)
HOLDS = st.dictionaries(NAMES, st.integers(0, 5), max_size=2)


class Lifecycle(RuleBasedStateMachine):
    """Any history of conditions, with every input replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.open: dict[str, Alert] = {}
        self.told: dict[str, str] = {}
        self.onset: dict[str, Mapping[str, str]] = {}

    def take(self, changes: Sequence[Change]) -> None:
        for change in changes:
            key = change.alert.fingerprint
            before = self.told.get(key, "inactive")
            before = "inactive" if before == "resolved" else before
            assert change.from_state == before, "a transition that does not follow the last"
            assert (change.from_state, change.to_state) in {
                ("inactive", "pending"),
                ("pending", "pending"),
                ("pending", "firing"),
                ("firing", "firing"),
                ("pending", "resolved"),
                ("firing", "resolved"),
            }
            if change.from_state == "inactive":
                self.onset[key] = change.alert.annotations
            assert self.onset[key].items() <= change.alert.annotations.items()
            self.told[key] = change.to_state
        self.open = settle(self.open, changes)

    @rule(conditions=CONDITIONS, holds=HOLDS, later=st.integers(0, 4))
    def speak(self, conditions: list[Condition], holds: dict[str, int], later: int) -> None:
        self.now += later
        self.take(advance(self.open, RUN, conditions, self.now, holds))
        assert advance(self.open, RUN, conditions, self.now, holds) == []

    @rule()
    def end(self) -> None:
        self.take(resolve_all(self.open, RUN_FINISHED, self.now))
        assert not self.open

    @invariant()
    def what_is_open_was_told(self) -> None:
        told = {key for key, state in self.told.items() if state in ("pending", "firing")}
        assert told == set(self.open)
        for alert in self.open.values():
            assert (alert.fired_ns is not None) == (alert.state == "firing")


TestLifecycle = Lifecycle.TestCase
