"""Receiver ``alertmanager``: pushes alerts to a real Alertmanager (API v2), which owns routing.

Alertmanager keeps alerts in memory and forgets them at its restart or at their ``endsAt``. So
a firing alert is pushed with an end one hour ahead and, through ``Sent.repeat_seconds``, told
again every minute until the group says something new: our own restart resolves nothing, and
its restart loses nothing for longer than a minute.

Of two ends it keeps the later one while it thinks, by its own clock, that neither has passed:
a resolve from a host whose clock is a second ahead would be ignored for an hour. So an end is
told a minute early.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from gradwarden_server.model import Queued
from gradwarden_server.notify.message import Outcome, Sent
from gradwarden_server.notify.payload import rfc3339
from gradwarden_server.notify.post import Poster

REPEAT_SECONDS = 60.0
LIFETIME_NS = 3600 * 1_000_000_000
CLOCK_SKEW = timedelta(seconds=60)
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
    starts, ends = alert["startsAt"], rfc3339(now_ns + LIFETIME_NS)
    if alert["status"] == "resolved":
        early = datetime.fromisoformat(alert["endsAt"]) - CLOCK_SKEW
        ends = early.isoformat()
        starts = min(datetime.fromisoformat(starts), early).isoformat()
    return {
        "labels": alert["labels"],
        "annotations": alert["annotations"],
        "startsAt": starts,
        "endsAt": ends,
        "generatorURL": alert["generatorURL"],
    }
