"""The whole alert state machine: inactive, pending, firing, resolved. Pure; time is an argument.

Detectors debounce in steps before they speak, so a condition normally passes through pending
and fires in the same moment; only rules that ask for a hold wait in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from gradwarden_server.model import (
    Alert,
    AlertState,
    Change,
    Condition,
    Labels,
    RunFacts,
    fingerprint,
)

Alerts = Mapping[str, Alert]

OPEN: tuple[AlertState, ...] = ("pending", "firing")
RUN_FINISHED = "run_finished"
RUN_CANCELLED = "run_cancelled"
AT_THE_END = (RUN_FINISHED, RUN_CANCELLED)
ENRICHED = "enriched"
NO_HOLDS: Mapping[str, int] = MappingProxyType({})
NO_LABELS: Mapping[str, Labels] = MappingProxyType({})


def advance(
    alerts: Alerts,
    run: RunFacts,
    conditions: Iterable[Condition],
    now_ns: int,
    holds_ns: Mapping[str, int] = NO_HOLDS,
    labels: Mapping[str, Labels] = NO_LABELS,
) -> list[Change]:
    """What the conditions of one moment change in the alerts of one run.

    Args:
        alerts: The run's alerts by fingerprint; resolved ones count as absent.
        run: The run that the conditions speak of.
        conditions: What the rules saw. Where several speak of one identity (alertname and
            severity), one that sees the sickness wins over those that do not. An identity
            that nobody speaks of stays as it is.
        now_ns: The moment.
        holds_ns: How long, by alertname, a condition must last before its alert fires.
        labels: What the rules add, by alertname; the run's own labels win.

    Returns:
        The transitions, in order. The same conditions again give none, so a replay is safe.
    """
    changes: list[Change] = []
    for condition, identity in _verdicts(run, conditions, labels):
        known = alerts.get(fingerprint(identity))
        standing = known if known is not None and known.state in OPEN else None
        if not condition.active:
            if standing is not None:
                changes.append(_resolved(standing, condition.reason, now_ns))
            continue
        hold_ns = holds_ns.get(condition.alertname, 0)
        changes.extend(_seen(standing, run, identity, condition, now_ns, hold_ns))
    return changes


def resolve_all(alerts: Alerts, reason: str, now_ns: int) -> list[Change]:
    """Close every open alert of a run that ended well or was cancelled."""
    return [_resolved(a, reason, now_ns) for a in alerts.values() if a.state in OPEN]


def settle(alerts: Alerts, changes: Iterable[Change]) -> dict[str, Alert]:
    """The open alerts after the changes: the input of the next ``advance``."""
    settled = {key: alert for key, alert in alerts.items() if alert.state in OPEN}
    for change in changes:
        if change.to_state in OPEN:
            settled[change.alert.fingerprint] = change.alert
        else:
            settled.pop(change.alert.fingerprint, None)
    return settled


def _verdicts(
    run: RunFacts, conditions: Iterable[Condition], labels: Mapping[str, Labels]
) -> Iterable[tuple[Condition, dict[str, str]]]:
    """One condition per identity: the first that is active, enriched by the others like it."""
    verdicts: dict[tuple[str, str], Condition] = {}
    for condition in conditions:
        key = (condition.alertname, condition.severity)
        earlier = verdicts.get(key)
        if earlier is None or (condition.active and not earlier.active):
            verdicts[key] = condition
        elif condition.active:
            merged = {**condition.annotations, **earlier.annotations}
            verdicts[key] = replace(earlier, annotations=merged)
    for (alertname, severity), condition in verdicts.items():
        own = {**labels.get(alertname, {}), **run.labels}
        yield condition, {**own, "alertname": alertname, "severity": severity}


def _seen(
    standing: Alert | None,
    run: RunFacts,
    labels: Mapping[str, str],
    condition: Condition,
    now_ns: int,
    hold_ns: int,
) -> Iterable[Change]:
    if standing is None:
        standing = Alert(
            id=None,
            project=run.project,
            run=run.run,
            labels=dict(labels),
            annotations=dict(condition.annotations),
            state="pending",
            active_ns=now_ns,
            reason=condition.reason,
        )
        yield Change(standing, "inactive", now_ns, condition.reason)
    elif not condition.annotations.keys() <= standing.annotations.keys():
        # The onset's words stand: a NaN's aftermath must not rewrite where it began.
        enriched = {**condition.annotations, **standing.annotations}
        standing = replace(standing, annotations=enriched)
        yield Change(standing, standing.state, now_ns, ENRICHED)
    if standing.state == "pending" and now_ns - standing.active_ns >= hold_ns:
        fired = replace(standing, state="firing", fired_ns=now_ns)
        yield Change(fired, "pending", now_ns, condition.reason)


def _resolved(alert: Alert, reason: str, now_ns: int) -> Change:
    closed = replace(alert, state="resolved", resolved_ns=now_ns, reason=reason)
    return Change(closed, alert.state, now_ns, reason)
