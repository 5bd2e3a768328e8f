"""Alerts of one sickness become one incident, whatever severities it went through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gradwarden_server.model import SEVERITIES, Alert, Severity

FOREVER = 2**63 - 1
_WITH_THE_RUN = ("run_finished", "run_cancelled")
"""Why an alert closes that did not heal."""
_ONSETS = ("onset_step", "onset", "since_step", "since", "began_at", "first_step", "step")
"""Annotations that may tell a step; the smallest is the onset."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One sickness, or one change, from its onset to its end.

    ``step`` is its onset in steps of ``attempt``, ``active_ns`` to ``ended_ns`` when it stood.
    """

    name: str
    kind: Literal["alert", "change"]
    attempt: int
    step: int | None
    active_ns: int
    ended_ns: int | None
    state: Literal["firing", "pending", "healed", "ended", "change"]
    severity: Severity | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    alerts: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Stable for as long as its onset is."""
        at = "" if self.step is None else f":{self.step}"
        return f"{self.name}@{self.attempt}{at}"

    @property
    def order(self) -> tuple[int, int, int]:
        """By onset; what has no step comes after what has one, by time."""
        return self.attempt, FOREVER if self.step is None else self.step, self.active_ns

    def said(self, name: str) -> str:
        """One annotation, empty where there is none."""
        return self.annotations.get(name, "")

    @property
    def rank(self) -> str | None:
        """The ranks that are named; None where it is told why none is."""
        said = self.said("rank")
        return said if said[:1].isdigit() else None

    def stands_at(self, other: Incident) -> bool:
        """Whether it stood at any time while the other one did."""
        mine = FOREVER if self.ended_ns is None else self.ended_ns
        theirs = FOREVER if other.ended_ns is None else other.ended_ns
        return self.active_ns <= theirs and other.active_ns <= mine


def incidents(alerts: Iterable[Alert], last_attempt: int) -> list[Incident]:
    """The incidents that alerts tell of, by onset.

    An alert that escalated is followed by one of its name and a higher severity in the same
    moment; alerts of one name that touch are one incident.
    """
    by_name: dict[str, list[Alert]] = {}
    for alert in alerts:
        by_name.setdefault(alert.alertname, []).append(alert)
    found = []
    for held in by_name.values():
        held.sort(key=lambda a: (a.active_ns, a.resolved_ns or FOREVER))
        together: list[Alert] = []
        end = -1
        for alert in held:
            if together and alert.active_ns > end:
                found.append(_one(together, last_attempt))
                together, end = [], -1
            together.append(alert)
            end = max(end, FOREVER if alert.resolved_ns is None else alert.resolved_ns)
        found.append(_one(together, last_attempt))
    return sorted(found, key=lambda i: (*i.order, i.name))


def _one(alerts: list[Alert], last_attempt: int) -> Incident:
    worst = min(alerts, key=lambda a: (_rank(a.severity), -a.active_ns))
    words: dict[str, str] = {}
    for alert in alerts:
        words = {**words, **alert.annotations}
    words |= worst.annotations
    attempts = [a for a in (_number(x.annotations.get("attempt")) for x in alerts) if a is not None]
    steps = [
        step
        for alert in alerts
        for key in _ONSETS
        if (step := _number(alert.annotations.get(key))) is not None
    ]
    ended = None
    if all(a.resolved_ns is not None for a in alerts):
        ended = max(a.resolved_ns or 0 for a in alerts)
    open_ = [a.state for a in alerts if a.resolved_ns is None]
    severity = worst.severity if worst.severity in SEVERITIES else "note"
    return Incident(
        name=worst.alertname,
        kind="alert",
        attempt=min(attempts, default=last_attempt),
        step=min(steps, default=None),
        active_ns=min(a.active_ns for a in alerts),
        ended_ns=ended,
        state=_state(alerts) if ended is not None else "firing" if "firing" in open_ else "pending",
        severity=severity,
        annotations=words,
        alerts=tuple(a.id for a in alerts if a.id is not None),
    )


def _state(alerts: list[Alert]) -> Literal["healed", "ended"]:
    """How it came to an end."""
    last = max(alerts, key=lambda a: a.resolved_ns or FOREVER)
    return "ended" if last.reason in _WITH_THE_RUN else "healed"


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None
