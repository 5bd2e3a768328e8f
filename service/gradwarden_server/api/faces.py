"""Alerts as people are told of them: what it costs, what to go back to, what to do first."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gradwarden_server.api.alert_schemas import (
    AlertFace,
    FirstActionFace,
    ImpactFace,
    LastCheckpointFace,
    NotifiedFace,
)
from gradwarden_server.api.cases import case_of
from gradwarden_server.api.deps import Parts
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.diagnosis.case import Case
from gradwarden_server.diagnosis.checkpoints import newest_of_each_path
from gradwarden_server.diagnosis.diagnose import diagnose
from gradwarden_server.diagnosis.incidents import incidents
from gradwarden_server.diagnosis.words import Diagnosis
from gradwarden_server.model import SEVERITIES, Alert
from gradwarden_server.store.alerts.casebook import Concerned
from gradwarden_server.store.alerts.told import Delivery

_OPEN = ("pending", "firing")
_DIAGNOSED = 40
"""Runs of one answer that are diagnosed, the weightiest: as many as a page begins with. To put the
case of each of hundreds together would take seconds, when people want to see what is ill."""
_MANY = "not looked up while so many runs are ill; the page of the alert has it"


def stepped_ns(parts: Parts, alert: Alert) -> int | None:
    """When the first bad step was taken, by the trainer's corrected clock; None if unknown."""
    found_ns = parts.onsets.of((alert.project, alert.id), lambda: _looked_up(parts, alert))
    # A later attempt may have taken the step again.
    return None if found_ns is None else min(found_ns, alert.active_ns)


def _looked_up(parts: Parts, alert: Alert) -> int | None:
    [incident] = incidents([alert], 1)
    at = incident.step
    if at is None or alert.run is None:
        return None
    taken = parts.history.series(alert.project, alert.run, ["loss"], at, at, 1)
    return taken.time_ns[0] if taken.step == [at] else None


def faces(parts: Parts, project: str, alerts: Sequence[Alert]) -> list[AlertFace]:
    """Alerts of a project as they are told; a handful of statements, and some for each run."""
    now_ns = time.time_ns()
    told = parts.casebook.told(project, alerts)
    runs = parts.casebook.concerned(project, {a.run for a in alerts if a.run is not None})
    open_: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.state in _OPEN and alert.run in runs:
            open_.setdefault(alert.run or "", []).append(alert)
    foremost = sorted(open_, key=lambda run: min(map(_weight, open_[run])))[:_DIAGNOSED]
    about = {run: _about(parts, runs[run], open_[run]) for run in foremost}
    made = []
    for alert in alerts:
        run = runs.get(alert.run or "")
        advised = about.get(alert.run or "") if alert.state in _OPEN else None
        checkpoint, note, action = (None, None, None)
        if advised is not None:
            checkpoint, note = _checkpoint(*advised, now_ns)
            action = _action(alert, advised[1])
        elif alert.state in _OPEN and alert.run in open_:
            note = _MANY
        made.append(
            AlertFace(
                id=alert.id or 0,
                alertname=alert.alertname,
                severity=alert.severity,
                state=alert.state,
                labels=dict(alert.labels),
                annotations=dict(alert.annotations),
                active_at=rfc3339(alert.active_ns),
                fired_at=rfc3339(alert.fired_ns),
                resolved_at=rfc3339(alert.resolved_ns),
                reason=alert.reason,
                fingerprint=alert.fingerprint,
                muted=alert.muted or None,
                acknowledged_at=rfc3339(alert.acked_ns),
                acknowledged_by=alert.acked_by,
                owner=alert.labels.get("owner"),
                runbook_url=alert.annotations.get("runbook_url"),
                impact=None if run is None else _impact(parts, alert, run, now_ns),
                last_checkpoint=checkpoint,
                checkpoint_note=note,
                first_action=action or _advice(alert),
                notified=[notified(one) for one in told.get(alert.id or 0, ())],
            )
        )
    return made


def _weight(alert: Alert) -> tuple[bool, bool, int, int]:
    """Pages that fire and that nothing holds back come first, those that began it before others."""
    severity = SEVERITIES.index(alert.severity)
    return bool(alert.muted), alert.state != "firing", severity, alert.id or 0


def _about(parts: Parts, run: Concerned, alerts: Sequence[Alert]) -> tuple[Case, Diagnosis]:
    """The run and its diagnosis; some seconds old at most, and never older than its alerts."""

    def find() -> tuple[Case, Diagnosis]:
        case = case_of(parts, run.run)
        return case, diagnose(case)

    states = tuple((alert.id, alert.state) for alert in alerts)
    return parts.diagnoses.of((run.run.project, run.run.run, states), find)


def notified(delivery: Delivery) -> NotifiedFace:
    """A message as it is told."""
    return NotifiedFace(
        receiver=delivery.receiver,
        at=rfc3339(delivery.at_ns),
        ok=delivery.ok,
        why=delivery.why,
        state=delivery.state,
        attempts=delivery.attempts,
        detail=delivery.detail,
    )


def _impact(parts: Parts, alert: Alert, run: Concerned, now_ns: int) -> ImpactFace:
    stepped = stepped_ns(parts, alert)
    since_ns = alert.active_ns if stepped is None else stepped
    ends = [at for at in (alert.resolved_ns, run.run.ended_ns) if at is not None]
    until_ns = min([now_ns, *ends])
    hours = max(0, until_ns - since_ns) / 3.6e12
    return ImpactFace(
        gpus=run.run.world_size,
        gpu_hours=round(hours * run.run.world_size, 4),
        devices="GPU" if run.gpus else "process",
        since=rfc3339(since_ns),
    )


def _checkpoint(
    case: Case, told: Diagnosis, now_ns: int
) -> tuple[LastCheckpointFace | None, str | None]:
    good = told.last_good_checkpoint
    if good is None:
        return None, told.checkpoint_note
    saves = newest_of_each_path(case)
    saved_ns = next((e.time_ns for e in saves if e.data.get("path") == good.path), None)
    again = any(
        e.data.get("path") == good.path and e.data.get("verified") is True and e.data.get("ok")
        for e in case.events
    )
    face = LastCheckpointFace(
        step=good.step,
        path=good.path,
        age_seconds=None if saved_ns is None else max(0, now_ns - saved_ns) / 1e9,
        verified=again,
    )
    return face, told.checkpoint_note


def _action(alert: Alert, told: Diagnosis) -> FirstActionFace | None:
    """What the diagnosis of the run says of this alert's finding, or of what explains it."""
    finding = next((f for f in told.findings if alert.id in f.alerts), None)
    known = {one.id: one for one in told.findings}
    while finding is not None and finding.explained_by in known:
        finding = known[finding.explained_by]
    if finding is None or not finding.actions:
        return None
    first = finding.actions[0]
    return FirstActionFace(text=first.text, command=first.command, risk=first.risk)


def _advice(alert: Alert) -> FirstActionFace | None:
    said = alert.annotations.get("first_action")
    if not said or alert.state not in _OPEN:
        return None
    return FirstActionFace(text=said, command=None, risk=None)
