"""Groups of Prometheus's rules, evaluated: what they record, and which alerts are up. Pure.

The state machine is Prometheus's: an alert is pending while its expression holds, fires once it
held for ``for``, and stays for ``keep_firing_for`` behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from gradwarden_server.model import fingerprint
from gradwarden_server.promql.engine import Answer, Engine
from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.memory import Memory
from gradwarden_server.promql.notation import STALE, span
from gradwarden_server.promql.parse import parse
from gradwarden_server.promql.vector import NAME, Key, Labels, key, without_name
from gradwarden_server.querying import templates
from gradwarden_server.querying.series import ALERTS, ALERTS_FOR_STATE
from gradwarden_server.rules.groups import PromGroup, PromRule

ALERTNAME = "alertname"
_DEFAULT_INTERVAL = "15s"

Sample = tuple[Labels, float]


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


@dataclass(frozen=True, slots=True)
class Manner:
    """How a rule's results are taken.

    Attributes:
        dress: The labels of an alert from those that its rule gives.
        over: Whether what a label set speaks of ended well: there is no alert about it.
        most: Alerts or series that one rule may give, whatever its group says; 0: any number.
    """

    dress: Callable[[Labels], Labels] = lambda labels: labels
    over: Callable[[Labels], bool] = lambda labels: False
    most: int = 0


PLAIN = Manner()
"""As Prometheus takes them."""


@dataclass(slots=True)
class RuleState:
    """One rule over time.

    Attributes:
        identity: Which rule it is when its group is read anew: kind, name and labels, and its
            number among those that share them.
        alerts: Pending and firing, by their labels.
        recorded: The series that it wrote last, which get the mark of their end when they are
            over.
    """

    rule: PromRule
    identity: str
    limit: int
    alerts: dict[Key, RuleAlert] = field(default_factory=dict)
    recorded: set[Key] = field(default_factory=set)

    def evaluate(
        self, at_ms: int, engine: Engine, written: Memory, manner: Manner = PLAIN
    ) -> list[Sample]:
        """Evaluate it at one moment, which never goes back.

        Args:
            at_ms: The moment.
            engine: Reads what was written too.
            written: Where its samples go, for the rules behind it.
            manner: How its results are taken.

        Returns:
            What is to be recorded; of a rule that alerts, nothing.

        Raises:
            QueryError, ExecutionError: it cannot be answered. Its state stays as it was, but
                for a limit: past that no alert of it is left.
        """
        samples = list(_samples(engine.instant(self.rule.expr, at_ms)))
        most = min(filter(None, (self.limit, manner.most)), default=0)
        if self.rule.record:
            return self._record(samples, at_ms, written, most)
        self._judge(samples, at_ms, manner, most)
        self._end(self._tell(at_ms, written), at_ms, written)
        return []

    def _record(
        self, samples: list[Sample], at_ms: int, written: Memory, most: int
    ) -> list[Sample]:
        made: list[Sample] = []
        fresh: set[Key] = set()
        for labels, value in samples:
            series = {**without_name(labels), NAME: self.rule.record}
            for name, template in self.rule.labels.items():
                series[name] = templates.render(template, labels, value)
            series = {name: held for name, held in series.items() if held}
            if key(series) in fresh:
                raise ExecutionError("the result has the same labelset twice")
            fresh.add(key(series))
            made.append((series, value))
        _within(len(made), most, "series")
        for series, value in made:
            written.add(series, [(at_ms, value)])
        return made + self._end(fresh, at_ms, written)

    def _judge(self, samples: list[Sample], at_ms: int, manner: Manner, most: int) -> None:
        hold_ms, keep_ms = span(self.rule.hold), span(self.rule.keep)
        held: dict[Key, RuleAlert] = {}
        for labels, value in samples:
            alert = self._alert(labels, value, at_ms, manner)
            if key(alert.labels) in held:
                raise ExecutionError("the result has the same labelset twice")
            if not manner.over(alert.labels):
                held[key(alert.labels)] = alert
        after: dict[Key, RuleAlert] = {}
        for identity, alert in held.items():
            before = self.alerts.get(identity)
            active_ms = at_ms if before is None else before.active_ms
            firing = at_ms - active_ms >= hold_ms
            firing = firing or (before is not None and before.state == "firing")
            word: Literal["pending", "firing"] = "firing" if firing else "pending"
            after[identity] = replace(alert, active_ms=active_ms, state=word)
        for identity, before in self.alerts.items():
            lost_ms = at_ms if before.lost_ms is None else before.lost_ms
            kept = before.state == "firing" and at_ms - lost_ms < keep_ms
            if identity not in held and kept and not manner.over(before.labels):
                after[identity] = replace(before, lost_ms=lost_ms)
        try:
            _within(len(after), most, "alerts")
        except ExecutionError:
            self.alerts = {}  # as Prometheus does
            raise
        self.alerts = after

    def _alert(self, labels: Labels, value: float, at_ms: int, manner: Manner) -> RuleAlert:
        own = without_name(labels)
        for name, template in self.rule.labels.items():
            own[name] = templates.render(template, labels, value)
        own[ALERTNAME] = self.rule.alert
        annotations = {
            name: templates.render(template, labels, value)
            for name, template in self.rule.annotations.items()
        }
        whole = {name: held for name, held in own.items() if held}
        return RuleAlert(manner.dress(whole), annotations, value, at_ms)

    def _tell(self, at_ms: int, written: Memory) -> set[Key]:
        """``ALERTS`` and ``ALERTS_FOR_STATE``, which rules may read."""
        fresh: set[Key] = set()
        for alert in self.alerts.values():
            told: Mapping[str, float] = {ALERTS: 1.0, ALERTS_FOR_STATE: alert.active_ms / 1000}
            for name, value in told.items():
                series = {**alert.labels, NAME: name}
                if name == ALERTS:
                    series["alertstate"] = alert.state
                fresh.add(key(series))
                written.add(series, [(at_ms, value)])
        return fresh

    def _end(self, fresh: set[Key], at_ms: int, written: Memory) -> list[Sample]:
        """Mark the end of what was there and is no more."""
        ended = [(dict(identity), STALE) for identity in sorted(self.recorded - fresh)]
        for series, value in ended:
            written.add(series, [(at_ms, value)])
        self.recorded = fresh
        return ended


class GroupState:
    """One group over time: its rules in order.

    Raises:
        QueryError, BadTemplate, Unreadable: a rule is wrong.
    """

    def __init__(self, group: PromGroup) -> None:
        self.group = group
        self.interval_ms = span(group.interval or _DEFAULT_INTERVAL)
        self.offset_ms = span(group.query_offset or "0s")
        self.rules = [
            RuleState(rule, identity, group.limit)
            for rule, identity in zip(group.rules, identities(group.rules), strict=True)
        ]
        for rule in group.rules:
            parse(rule.expr)
            for template in (*rule.annotations.values(), *rule.labels.values()):
                templates.check(template)

    def alerts(self, name: str) -> list[RuleAlert]:
        """The alerts of the rules of that name."""
        return [a for held in self.rules if held.rule.alert == name for a in held.alerts.values()]


def identities(rules: Sequence[PromRule]) -> list[str]:
    """Which rule is which, whatever becomes of its expression."""
    found: list[str] = []
    seen: dict[str, int] = {}
    for rule in rules:
        kind = "alert" if rule.alert else "record"
        name = f"{kind}:{rule.name}:{fingerprint(rule.labels)}"
        seen[name] = seen.get(name, 0) + 1
        found.append(f"{name}:{seen[name]}")
    return found


def _within(count: int, most: int, what: str) -> None:
    if most and count > most:
        raise ExecutionError(f"exceeded limit of {most} with {count} {what}")


def _samples(answer: Answer) -> Iterator[Sample]:
    vector = answer.vector
    if vector is None or answer.kind not in ("vector", "scalar"):
        raise ExecutionError("a rule's expression gives a vector or a number")
    for row, labels in enumerate(vector.labels):
        yield labels, float(vector.values[row, 0])
