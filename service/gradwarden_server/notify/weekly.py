"""The key ``report`` of the receivers file: who gets the report of each week, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from gradwarden_server.model import Alert, Notification
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.spec import Receiver, ReceiversError

ALERTNAME = "WeeklyReport"
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_FIELDS = ("receiver", "weekday", "hour", "timezone")
# These hold on to what they are told until it is over, and a report is never over.
_STANDING = ("alertmanager", "pagerduty")
_LATE_NS = 3 * 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Weekly:
    """When the last week is told to a receiver: its weekday (0 is Monday), hour and time zone."""

    receiver: str
    weekday: int = 0
    hour: int = 8
    timezone: str = "UTC"

    def due(self, now_ns: int) -> str | None:
        """The Monday, as 2026-11-16, of the week to be told of now; None where none is due.

        A report that is three days late is left out: the next one is near.
        """
        now = datetime.fromtimestamp(now_ns // 1_000_000_000, ZoneInfo(self.timezone))
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        monday = midnight - timedelta(days=midnight.weekday())
        moment = monday + timedelta(days=self.weekday, hours=self.hour)
        late_ns = now_ns - round(moment.timestamp()) * 1_000_000_000
        if not 0 <= late_ns < _LATE_NS:
            return None
        return f"{monday - timedelta(days=7):%Y-%m-%d}"


def load(path: Path, receivers: Iterable[Receiver]) -> Weekly | None:
    """Read the key of a receivers file that was read before.

    Raises:
        ReceiversError: it has mistakes; all of them are told.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    held = document.get("report") if isinstance(document, Mapping) else None
    return None if held is None else parse(held, str(path), receivers)


def parse(held: Any, source: str, receivers: Iterable[Receiver]) -> Weekly:
    """Make the schedule of what the key holds; ``source`` names the file in mistakes.

    Raises:
        ReceiversError: it has mistakes.
    """
    if not isinstance(held, Mapping):
        raise ReceiversError([f"{source}: report: expected {', '.join(_FIELDS)}"])
    wrong = [
        f"{key}: unknown field; known are {', '.join(_FIELDS)}"
        for key in held
        if key not in _FIELDS
    ]
    named = {one.name: one for one in receivers}
    receiver = named.get(str(held.get("receiver")))
    if receiver is None:
        there = ", ".join(named) or "none"
        wrong.append(f"receiver: {held.get('receiver')!r}; there are {there}")
    elif receiver.type in _STANDING or receiver.watchdog_seconds is not None:
        wrong.append(
            f"receiver: {receiver.name!r} takes alerts alone; name a webhook, chat or mail"
        )
    weekday = str(held.get("weekday", "monday")).lower()
    if weekday not in DAYS:
        wrong.append(f"weekday: {held['weekday']!r}; one of {', '.join(DAYS)}")
    hour = held.get("hour", 8)
    if isinstance(hour, bool) or not isinstance(hour, int) or not 0 <= hour <= 23:
        wrong.append(f"hour: {hour!r}; a whole number from 0 to 23")
    zone = str(held.get("timezone", "UTC"))
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        wrong.append(f"timezone: {zone!r}; write for example UTC or Europe/Berlin")
    if wrong or receiver is None:
        raise ReceiversError([f"{source}: report: {mistake}" for mistake in wrong])
    return Weekly(receiver.name, DAYS.index(weekday), hour, zone)


def message(
    weekly: Weekly, project: str, period: str, summary: str, text: str, url: str, now_ns: int
) -> Notification:
    """The report of a week in the form in which receivers are told of everything."""
    labels = {"alertname": ALERTNAME, "severity": "note", "project": project, "week": period}
    alert = Alert(
        id=None,
        project=project,
        run=None,
        labels=labels,
        annotations={"summary": summary, "description": text, "dashboard_url": f"{url}/runs"},
        state="firing",
        active_ns=now_ns,
        fired_ns=now_ns,
        reason="weekly",
    )
    group = {"alertname": ALERTNAME, "project": project, "week": period}
    return Notification(
        project=project,
        receiver=weekly.receiver,
        group_key=group_key(group),
        severity="note",
        payload=body(weekly.receiver, group, [alert], url),
    )
