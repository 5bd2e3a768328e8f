"""The alert that always fires: while it arrives, the line from evaluator to receiver works."""

from __future__ import annotations

from collections.abc import Iterable

from gradwarden_server.model import Alert, Notification
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.spec import Receiver

ALERTNAME = "Watchdog"
SEVERITY = "none"


def watchdogs(receivers: Iterable[Receiver]) -> list[Receiver]:
    """The dead-man endpoints among the receivers."""
    return [receiver for receiver in receivers if receiver.watchdog_seconds is not None]


def watchdog(receiver: Receiver, project: str, since_ns: int, external_url: str) -> Notification:
    """The Watchdog message for one dead-man endpoint, firing since ``since_ns``."""
    labels = {"alertname": ALERTNAME, "severity": SEVERITY}
    alert = Alert(
        id=None,
        project=project,
        run=None,
        labels=labels,
        annotations={
            "summary": "gradwarden is alive. If this stops arriving, nobody watches the runs."
        },
        state="firing",
        active_ns=since_ns,
        fired_ns=since_ns,
        reason="always",
    )
    group = {"alertname": ALERTNAME}
    return Notification(
        project=project,
        receiver=receiver.name,
        group_key=group_key(group),
        severity=SEVERITY,
        payload=body(receiver.name, group, [alert], external_url),
    )
