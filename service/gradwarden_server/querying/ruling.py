"""Groups of Prometheus's rules, evaluated: what they record, and which alerts are up. Pure.

The state machine is Prometheus's: an alert is pending while its expression holds, fires once it
held for ``for``, and stays for ``keep_firing_for`` behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from gradwarden_server.promql.engine import Answer, Engine
from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.memory import Memory
from gradwarden_server.promql.notation import STALE, span
from gradwarden_server.promql.parse import parse
from gradwarden_server.promql.storage import Storage
from gradwarden_server.promql.vector import NAME, Key, Labels, key, without_name
from gradwarden_server.querying import templates
from gradwarden_server.rules.groups import PromGroup, PromRule

ALERTNAME = "alertname"
_ALERTS, _ALERTS_FOR_STATE = "ALERTS", "ALERTS_FOR_STATE"


@dataclass(frozen=True, slots=True)
class RuleAlert:
    """One alert of one rule: pending or firing since a moment."""

    labels: Labels
    annotations: Labels
    value: float
    active_ms: int
    state: Literal["pending", "firing"] = "pending"
    lost_ms: int | None = None
    """Since when it is kept although its expression does not hold."""


@dataclass(slots=True)
class _RuleState:
    alerts: dict[Key, RuleAlert] = field(default_factory=dict)
    recorded: set[Key] = field(default_factory=set)


class GroupState:
    """One group over time.

    Args:
        group: Its rules.
        storage: What they read.
        written: Where what they record goes; what they read must see it.

    Raises:
        QueryError, BadTemplate: a rule is wrong.
    """

    def __init__(self, group: PromGroup, storage: Storage, written: Memory) -> None:
        self.group = group
        self._engine = Engine(storage)
        self._written = written
        self._states = [_RuleState() for _ in group.rules]
        for rule in group.rules:
            parse(rule.expr)
            for template in (*rule.annotations.values(), *rule.labels.values()):
                templates.check(template)

    def evaluate(self, at_ms: int) -> None:
        """Evaluate every rule in order at one moment, which never goes back.

        Raises:
            QueryError, ExecutionError: a rule cannot be answered.
        """
        for rule, state in zip(self.group.rules, self._states, strict=True):
            samples = list(_samples(self._engine.instant(rule.expr, at_ms)))
            if rule.record:
                self._record(rule, state, samples, at_ms)
            else:
                self._judge(rule, state, samples, at_ms)

    def alerts(self, name: str) -> list[RuleAlert]:
        """The alerts of the rules of that name."""
        return [
            alert
            for rule, state in zip(self.group.rules, self._states, strict=True)
            if rule.alert == name
            for alert in state.alerts.values()
        ]

    def _record(
        self, rule: PromRule, state: _RuleState, samples: list[tuple[Labels, float]], at_ms: int
    ) -> None:
        fresh: set[Key] = set()
        for labels, value in samples:
            series = {**without_name(labels), NAME: rule.record}
            for name, template in rule.labels.items():
                series[name] = templates.render(template, labels, value)
            series = {name: held for name, held in series.items() if held}
            if key(series) in fresh:
                raise ExecutionError(f"{rule.record}: the result has the same labelset twice")
            fresh.add(key(series))
            self._written.add(series, [(at_ms, value)])
        self._end(state.recorded - fresh, at_ms)
        state.recorded = fresh

    def _judge(
        self, rule: PromRule, state: _RuleState, samples: list[tuple[Labels, float]], at_ms: int
    ) -> None:
        hold_ms, keep_ms = span(rule.hold), span(rule.keep)
        held: dict[Key, RuleAlert] = {}
        for labels, value in samples:
            alert = self._alert(rule, labels, value, at_ms)
            if key(alert.labels) in held:
                raise ExecutionError(f"{rule.alert}: the result has the same labelset twice")
            held[key(alert.labels)] = alert
        after: dict[Key, RuleAlert] = {}
        for identity, alert in held.items():
            before = state.alerts.get(identity)
            active_ms = at_ms if before is None else before.active_ms
            firing = at_ms - active_ms >= hold_ms
            firing = firing or (before is not None and before.state == "firing")
            word: Literal["pending", "firing"] = "firing" if firing else "pending"
            after[identity] = replace(alert, active_ms=active_ms, state=word)
        for identity, before in state.alerts.items():
            lost_ms = at_ms if before.lost_ms is None else before.lost_ms
            kept = before.state == "firing" and at_ms - lost_ms < keep_ms
            if identity not in held and kept:
                after[identity] = replace(before, lost_ms=lost_ms)
        state.alerts = after
        self._tell(state, at_ms)

    def _alert(self, rule: PromRule, labels: Labels, value: float, at_ms: int) -> RuleAlert:
        own = without_name(labels)
        for name, template in rule.labels.items():
            own[name] = templates.render(template, labels, value)
        own[ALERTNAME] = rule.alert
        annotations = {
            name: templates.render(template, labels, value)
            for name, template in rule.annotations.items()
        }
        whole = {name: held for name, held in own.items() if held}
        return RuleAlert(whole, annotations, value, at_ms)

    def _tell(self, state: _RuleState, at_ms: int) -> None:
        """``ALERTS`` and ``ALERTS_FOR_STATE``, which rules may read."""
        fresh: set[Key] = set()
        for alert in state.alerts.values():
            told: Mapping[str, float] = {_ALERTS: 1.0, _ALERTS_FOR_STATE: alert.active_ms / 1000}
            for name, value in told.items():
                series = {**alert.labels, NAME: name}
                if name == _ALERTS:
                    series["alertstate"] = alert.state
                fresh.add(key(series))
                self._written.add(series, [(at_ms, value)])
        self._end(state.recorded - fresh, at_ms)
        state.recorded = fresh

    def _end(self, series: set[Key], at_ms: int) -> None:
        for identity in series:
            self._written.add(dict(identity), [(at_ms, STALE)])


def _samples(answer: Answer) -> Iterator[tuple[Labels, float]]:
    vector = answer.vector
    if vector is None or answer.kind not in ("vector", "scalar"):
        raise ExecutionError("a rule's expression gives a vector or a number")
    for row, labels in enumerate(vector.labels):
        yield labels, float(vector.values[row, 0])
