"""The Alertmanager webhook body, version 4: what every receiver of ours is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gradwarden_server.model import Alert, Labels

MAX_ALERTS = 50
MAX_PUSHED = 5000
"""Of an Alertmanager, which groups by itself: it must know each alert, not the worst of them."""
NEVER = "0001-01-01T00:00:00Z"


def group_key(group: Labels, route: str = "") -> str:
    """The name of a group, in Alertmanager's form: ``{}/{ROUTE}:{alertname="X", run="r"}``."""
    path = "{}/{" + route + "}:{" if route else "{}:{"
    inner = ", ".join(f"{k}={json.dumps(group[k], ensure_ascii=False)}" for k in sorted(group))
    return path + inner + "}"


def body(
    receiver: str,
    group: Labels,
    alerts: Sequence[Alert],
    external_url: str,
    key: str = "",
    most: int = MAX_ALERTS,
) -> dict[str, Any]:
    """The v4 body for one group: firing alerts first, those beyond ``most`` counted as truncated.

    ``key`` names the group where it is more than its labels.
    """
    ordered = sorted(alerts, key=lambda a: (a.state != "firing", a.alertname, a.fingerprint))
    shown = ordered[:most]
    return {
        "version": "4",
        "groupKey": key or group_key(group),
        "truncatedAlerts": len(ordered) - len(shown),
        "status": "firing" if any(a.state == "firing" for a in alerts) else "resolved",
        "receiver": receiver,
        "groupLabels": dict(group),
        "commonLabels": _common([a.labels for a in alerts]),
        "commonAnnotations": _common([a.annotations for a in alerts]),
        "externalURL": external_url,
        "alerts": [_alert(a, external_url) for a in shown],
    }


def rfc3339(ns: int) -> str:
    """UTC nanoseconds as RFC 3339 text, to the millisecond."""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000 // 1_000_000:03d}Z"


def _alert(alert: Alert, external_url: str) -> dict[str, Any]:
    resolved = alert.resolved_ns is not None
    started_ns = alert.active_ns if alert.fired_ns is None else alert.fired_ns
    return {
        "status": "resolved" if resolved else "firing",
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": rfc3339(started_ns),
        "endsAt": NEVER if alert.resolved_ns is None else rfc3339(alert.resolved_ns),
        "generatorURL": alert.annotations.get("dashboard_url", external_url),
        "fingerprint": alert.fingerprint,
    }


def _common(maps: Sequence[Mapping[str, str]]) -> dict[str, str]:
    shared = dict(maps[0])
    for other in maps[1:]:
        shared = {k: v for k, v in shared.items() if other.get(k) == v}
    return shared
