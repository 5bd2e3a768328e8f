"""Receiver ``pagerduty``: the Events API v2. A group of alerts is one incident there.

The group's key, hashed, is the ``dedup_key``: every later message of the group finds the
incident that the first one opened, and a resolve of one that was never opened does nothing.
Limits are those of https://developer.pagerduty.com/docs/events-api-v2/overview/.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from gradwarden_server.model import Queued
from gradwarden_server.notify.brief import Brief, brief, place, shortened
from gradwarden_server.notify.fields import Fields
from gradwarden_server.notify.message import Failed, Outcome, Sent
from gradwarden_server.notify.post import Poster, json_object, printable, read_answer

PATH = "/v2/enqueue"
HOSTS = {"us": "https://events.pagerduty.com", "eu": "https://events.eu.pagerduty.com"}
SEVERITIES = {"page": "critical", "ticket": "warning", "note": "info"}
ACTIONS = {"firing": "trigger", "acknowledged": "acknowledge", "resolved": "resolve"}
MOST_SUMMARY = 1024
MOST_BYTES = 512_000
_ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}\Z")


@dataclass(frozen=True, slots=True)
class Options:
    """The integration key of one service; it is a credential."""

    routing_key: str = field(repr=False)


class PagerDuty:
    """Triggers, acknowledges and resolves incidents."""

    def __init__(self, poster: Poster, options: Options) -> None:
        self._poster = poster
        self._routing_key = options.routing_key

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        body = event(self._routing_key, queued.notification.group_key, queued.notification.payload)
        return self._poster.ask(body, {}, lambda answer: _read(answer, now_ns), PATH)


def read(fields: Fields) -> Options:
    """The fields of this type."""
    key = fields.secret("routing_key", "the integration key of an Events API v2 integration")
    if key and not _ROUTING_KEY.match(key):
        fields.mistakes.append("routing_key: expected 32 letters and digits")
    return Options(key)


def address(fields: Fields) -> str:
    """Where the account lives."""
    return HOSTS[fields.choice("region", tuple(HOSTS), "us")]


def dedup_key(group_key: str) -> str:
    """The name of a group's incident."""
    return hashlib.sha256(group_key.encode()).hexdigest()


def event(routing_key: str, group_key: str, payload: Mapping[str, Any]) -> bytes:
    """The event for a v4 body, within PagerDuty's limits: details go first where it is too big."""
    told = brief(payload)
    action = ACTIONS[told.state]
    head = {
        "routing_key": routing_key,
        "event_action": action,
        "dedup_key": dedup_key(group_key),
    }
    if action != "trigger":
        return json.dumps(head).encode()
    shown = len(told.alerts)
    while True:
        body = json.dumps({**head, **_trigger(told, shown)}).encode()
        if len(body) <= MOST_BYTES or shown == 0:
            return body
        shown //= 2


def _trigger(told: Brief, shown: int) -> dict[str, Any]:
    where = told.where
    details: dict[str, Any] = {
        **{name: shortened(text, MOST_SUMMARY) for name, text in where.items()},
        "first_action": shortened(told.first_action, MOST_SUMMARY),
        "firing": len(told.alerts) + told.truncated,
        "resolved": told.resolved,
        "labels": dict(told.labels) if shown else {},
        "alerts": [_line(alert) for alert in told.alerts[:shown]],
    }
    links = [{"href": href, "text": text} for text, href in told.links.items()]
    payload = {
        "summary": shortened(f"{told.title}: {told.summary}".removesuffix(": "), MOST_SUMMARY),
        "source": shortened(where.get("node") or told.run or "gradwarden", MOST_SUMMARY),
        "severity": SEVERITIES[told.severity],
        "custom_details": {name: value for name, value in details.items() if value not in ("", {})},
    }
    if told.alerts:
        payload["timestamp"] = told.alerts[0]["startsAt"]
        payload["class"] = told.alerts[0]["labels"].get("alertname", "")
    if told.run:
        payload["group"] = told.run
    if "layer" in where:
        payload["component"] = where["layer"]
    more = {"client": "gradwarden", "client_url": told.external_url} if told.external_url else {}
    return {"payload": payload, "links": links, **more}


def _line(alert: Mapping[str, Any]) -> str:
    at = ", ".join(f"{name} {value}" for name, value in place(alert).items())
    text = f"{alert['labels'].get('alertname', '')}: {alert['annotations'].get('summary', '')}"
    return shortened(f"{text} ({at})" if at else text, MOST_SUMMARY)


def _read(answer: httpx.Response, now_ns: int) -> Outcome:
    """What PagerDuty says beside the status goes into the receipt: it names the wrong field."""
    outcome = read_answer(answer, now_ns)
    document = json_object(answer)
    errors = document.get("errors")
    told = [document.get("message"), *(errors if isinstance(errors, list) else [])]
    words = "; ".join(text for text in map(printable, told) if text)
    detail = shortened(f"{outcome.detail}: {words}", 500) if words else outcome.detail
    if isinstance(outcome, Sent):
        return Sent(detail)
    return Failed(detail, outcome.retry, outcome.retry_after_seconds)
