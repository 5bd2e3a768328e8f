"""A v4 body in short, as people are told it: one title, one state, the facts, and the links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["firing", "acknowledged", "resolved"]
ACKED_BY = "acknowledged_by"
ACK_URL = "ack_url"
SILENCE_URL = "silence_url"

_GRAVITY = ("note", "ticket", "page")
_WHERE = ("layer", "rank", "node", "gpu", "step")


@dataclass(frozen=True, slots=True)
class Brief:
    """What a message says. ``alerts`` are those that fire; of a group that is over, all."""

    state: State
    severity: str
    title: str
    alerts: tuple[Mapping[str, Any], ...]
    resolved: int
    truncated: int
    acknowledged_by: str
    labels: Mapping[str, str]
    external_url: str

    @property
    def summary(self) -> str:
        """What the first alert says of itself."""
        return self._first("summary")

    @property
    def first_action(self) -> str:
        """What to do first."""
        return self._first("first_action")

    @property
    def run(self) -> str:
        """What people call the run, or nothing where several are meant."""
        return self.labels.get("run_name") or self.labels.get("run", "")

    @property
    def where(self) -> dict[str, str]:
        """Layer, rank, node, GPU and step of the first alert, as far as they are known."""
        return place(self.alerts[0]) if self.alerts else {}

    @property
    def links(self) -> dict[str, str]:
        """Where to go, by what it is called: first what acts, then what explains."""
        names = {
            "Acknowledge": ACK_URL,
            "Silence 1 h": SILENCE_URL,
            "Runbook": "runbook_url",
            "Open": "dashboard_url",
        }
        found = {title: self._first(name) for title, name in names.items()}
        found["Open"] = found["Open"] or self.external_url
        return {title: url for title, url in found.items() if url.startswith("http")}

    def _first(self, name: str) -> str:
        return next((a["annotations"][name] for a in self.alerts if name in a["annotations"]), "")


def brief(payload: Mapping[str, Any]) -> Brief:
    """Read a v4 body."""
    alerts = payload["alerts"]
    firing = [alert for alert in alerts if alert["status"] == "firing"]
    told = firing or alerts
    labels = payload.get("commonLabels", {})
    severities = {alert["labels"].get("severity") for alert in told}
    ackers = [alert["annotations"].get(ACKED_BY, "") for alert in firing]
    state: State = "firing" if payload["status"] == "firing" else "resolved"
    if state == "firing" and ackers and all(ackers):
        state = "acknowledged"
    truncated = payload.get("truncatedAlerts", 0)
    return Brief(
        state=state,
        severity=next((s for s in reversed(_GRAVITY) if s in severities), "note"),
        title=_title(told, labels, truncated),
        alerts=tuple(told),
        resolved=len(alerts) - len(firing),
        truncated=truncated,
        acknowledged_by=ackers[0] if state == "acknowledged" else "",
        labels=labels,
        external_url=payload.get("externalURL", ""),
    )


def place(alert: Mapping[str, Any]) -> dict[str, str]:
    """Where in a run an alert points to."""
    return {name: alert["annotations"][name] for name in _WHERE if alert["annotations"].get(name)}


def shortened(text: str, longest: int) -> str:
    """A text of at most so many characters, with a mark where something is missing."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _title(told: list[Any], labels: Mapping[str, str], truncated: int) -> str:
    names = list(dict.fromkeys(alert["labels"].get("alertname", "") for alert in told))
    title = names[0] if names else "Alerts"
    if len(names) > 1:
        title += f" and {len(names) - 1} more"
    elif len(told) + truncated > 1:
        title += f" ({len(told) + truncated} alerts)"
    run = labels.get("run_name") or labels.get("run")
    return f"{title} on {run}" if run else title
