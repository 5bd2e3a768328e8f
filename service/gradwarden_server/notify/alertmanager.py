"""Receiver ``alertmanager``: pushes alerts to a real Alertmanager (API v2), which owns routing.

Alertmanager keeps alerts in memory and forgets them at its restart or at their ``endsAt``. So
a firing alert is pushed with an end one hour ahead and, through ``Sent.repeat_seconds``, told
again every minute until the group says something new: our own restart resolves nothing, and
its restart loses nothing for longer than a minute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradwarden_server.model import Queued
from gradwarden_server.notify.message import Outcome, Sent
from gradwarden_server.notify.payload import rfc3339
from gradwarden_server.notify.post import Poster

REPEAT_SECONDS = 60.0
LIFETIME_NS = 3600 * 1_000_000_000
PATH = "/api/v2/alerts"


class AlertmanagerPush:
    """Pushes the alerts of each message. The receiver's URL is the Alertmanager's base URL."""

    def __init__(self, poster: Poster) -> None:
        self._poster = poster

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        payload = queued.notification.payload
        body = json.dumps([_postable(alert, now_ns) for alert in payload["alerts"]]).encode()
        outcome = self._poster.post(body, {}, now_ns)
        if isinstance(outcome, Sent) and payload["status"] == "firing":
            return replace(outcome, repeat_seconds=REPEAT_SECONDS)
        return outcome


def _postable(alert: Mapping[str, Any], now_ns: int) -> dict[str, Any]:
    firing = alert["status"] == "firing"
    return {
        "labels": alert["labels"],
        "annotations": alert["annotations"],
        "startsAt": alert["startsAt"],
        "endsAt": rfc3339(now_ns + LIFETIME_NS) if firing else alert["endsAt"],
        "generatorURL": alert["generatorURL"],
    }
