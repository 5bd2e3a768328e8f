"""What the state of a group's rules means for the alerts in the ledger. Pure.

A rule's state machine is Prometheus's and knows of nothing else. Here its alerts meet what people
see: a page of a shadow period is a ticket, and an alert that is no more resolves with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from gradwarden_server.alerting import lifecycle
from gradwarden_server.alerting.shadow import PROMOTED, Shadow
from gradwarden_server.model import (
    DRILL,
    SEVERITIES,
    SHADOW,
    WOULD_HAVE_PAGED,
    Alert,
    Change,
    fingerprint,
    run_path,
)
from gradwarden_server.querying.ruling import ALERTNAME, RuleAlert
from gradwarden_server.store.records import RunRecord

MS_NS = 1_000_000
RULE_REMOVED = "rule_removed"
RUN_DELETED = "run_deleted"
CONDITION = "condition"
_RUNBOOK = "runbook_url"

_ENDINGS = {"finished": lifecycle.RUN_FINISHED, "cancelled": lifecycle.RUN_CANCELLED}

Runs = Callable[[Mapping[str, str]], RunRecord | None]
"""The run that a label set names; None where it names none, or one that is gone."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What surrounds the alerts of a group.

    ``names`` are those of the group's alerts as its file has them now.
    """

    project: str
    group: str
    names: Collection[str]
    shadow: Shadow
    runs: Runs
    external_url: str


def dressed(project: str, labels: Mapping[str, str], run: RunRecord | None) -> dict[str, str]:
    """The labels of an alert with those that every alert has."""
    severity = labels.get("severity", "")
    urgent = severity if severity in SEVERITIES else "ticket"
    drill = {DRILL: "true"} if run is not None and run.labels.get(DRILL) == "true" else {}
    return {**labels, **drill, "project": project, "severity": urgent}


def over(run: RunRecord | None) -> bool:
    """Whether a run ended well: its alerts end with it."""
    return run is not None and run.status in _ENDINGS


def changes(
    standing: Mapping[str, Alert], alerts: Iterable[RuleAlert], setting: Setting, at_ns: int
) -> list[Change]:
    """What is to be written of the alerts of a group.

    Args:
        standing: Its open alerts in the ledger, by fingerprint.
        alerts: Those of its rules, after an evaluation.
        setting: What surrounds them.
        at_ns: The moment of the evaluation.
    """
    wanted: dict[str, RuleAlert] = {}
    for alert in alerts:
        told = _turned(alert, standing, setting)
        wanted[fingerprint(told.labels)] = told
    found: list[Change] = []
    promoted: set[str] = set()
    for key, alert in wanted.items():
        known = standing.get(key)
        if known is None and alert.labels["severity"] == "page":
            promoted.add(fingerprint({**alert.labels, "severity": "ticket"}))
        found.extend(_seen(known, alert, setting, at_ns))
    for key, known in standing.items():
        if key not in wanted:
            reason = PROMOTED if key in promoted else _reason(known, setting)
            closed = replace(known, state="resolved", resolved_ns=at_ns, reason=reason)
            found.append(Change(closed, known.state, at_ns, reason))
    return found


def reworded(
    standing: Mapping[str, Alert], alerts: Iterable[RuleAlert], setting: Setting
) -> dict[str, Alert]:
    """Open alerts whose rule says something else of them now, with its words.

    An alert that lasts is described anew in each evaluation, as Prometheus does.
    """
    found: dict[str, Alert] = {}
    for alert in alerts:
        told = _turned(alert, standing, setting)
        known = standing.get(fingerprint(told.labels))
        if known is not None:
            words = _words(told, setting.runs(told.labels), setting)
            if words != known.annotations:
                found[known.fingerprint] = replace(known, annotations=words)
    return found


def _turned(alert: RuleAlert, standing: Mapping[str, Alert], setting: Setting) -> RuleAlert:
    """As people are told it; what paged stays a page until it is over."""
    labels = alert.labels
    drill = labels.get(DRILL) == "true"
    if labels["severity"] != "page" or drill or not setting.shadow.holds(labels[ALERTNAME]):
        return alert
    if fingerprint(labels) in standing:
        return alert
    words = {**alert.annotations, SHADOW: WOULD_HAVE_PAGED}
    return replace(alert, labels={**labels, "severity": "ticket"}, annotations=words)


def _seen(known: Alert | None, alert: RuleAlert, setting: Setting, at_ns: int) -> Iterator[Change]:
    if known is None:
        run = setting.runs(alert.labels)
        known = Alert(
            id=None,
            project=setting.project,
            run=None if run is None else run.run,
            labels=alert.labels,
            annotations=_words(alert, run, setting),
            state="pending",
            active_ns=alert.active_ms * MS_NS,
            reason=CONDITION,
            rule_group=setting.group,
        )
        yield Change(known, "inactive", at_ns, CONDITION)
    if known.state == "pending" and alert.state == "firing":
        words = {**known.annotations, **_words(alert, None, setting)}
        fired = replace(known, state="firing", fired_ns=at_ns, annotations=words)
        yield Change(fired, "pending", at_ns, CONDITION)


def _words(alert: RuleAlert, run: RunRecord | None, setting: Setting) -> dict[str, str]:
    """With links; a runbook that is a path is one of this service."""
    words = dict(alert.annotations)
    if words.get(_RUNBOOK, "").startswith("/"):
        words[_RUNBOOK] = setting.external_url + words[_RUNBOOK]
    if run is None:
        return words
    return {"dashboard_url": setting.external_url + run_path(run.project, run.run), **words}


def _reason(known: Alert, setting: Setting) -> str:
    if known.alertname not in setting.names:
        return RULE_REMOVED
    if known.run is not None:
        run = setting.runs({"run": known.run})
        return RUN_DELETED if run is None else _ENDINGS.get(run.status, CONDITION)
    return CONDITION
