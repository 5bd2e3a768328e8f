"""``gradwarden silence`` and ``gradwarden ack``: hold messages back, or say who takes care."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])\Z")
_COLUMNS = ("id", "state", "matchers", "starts_at", "ends_at", "author", "comment")


def add_silence(options: argparse.Namespace) -> int:
    """Make a silence."""
    body = {
        "matchers": options.matchers,
        "duration_seconds": _seconds(options.span),
        "comment": options.comment,
    }
    made = Client(options).call("POST", "/v1/silences", json=body)
    if options.json:
        print(json.dumps(made, indent=2))
    else:
        print(f"silence {made['id']} until {made['ends_at'][:19]}Z: {', '.join(made['matchers'])}")
    return DONE


def preview(options: argparse.Namespace) -> int:
    """Show what matches."""
    page = Client(options).call("GET", "/v1/silences/preview", params={"matcher": options.matchers})
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    items = [
        {**a, "run": a["labels"].get("run"), "summary": a["annotations"].get("summary")}
        for a in page["items"]
    ]
    table(("id", "severity", "state", "alertname", "run", "summary"), items, "no open alert")
    return DONE


def list_silences(options: argparse.Namespace) -> int:
    """List silences."""
    items = Client(options).call("GET", "/v1/silences")["items"]
    shown = [one for one in items if options.all or one["state"] != "expired"]
    if options.json:
        print(json.dumps(shown, indent=2))
        return DONE
    rows: list[dict[str, Any]] = [{**s, "matchers": ", ".join(s["matchers"])} for s in shown]
    table(_COLUMNS, rows, "nothing is silenced")
    return DONE


def expire(options: argparse.Namespace) -> int:
    """End a silence."""
    ended = Client(options).call("DELETE", f"/v1/silences/{options.id}")
    print(json.dumps(ended, indent=2) if options.json else f"silence {ended['id']} is over")
    return DONE


def acknowledge(options: argparse.Namespace) -> int:
    """Acknowledge an alert."""
    alert = Client(options).call("POST", f"/v1/alerts/{options.id}/ack")
    if options.json:
        print(json.dumps(alert, indent=2))
    else:
        words = f"{alert['alertname']} of {alert['labels'].get('run', 'no run')}"
        print(f"alert {alert['id']}, {words}: taken care of by {alert['acknowledged_by']}")
    return DONE


def _seconds(text: str) -> float:
    found = _DURATION.match(text)
    if found is None:
        raise CommandError(f"--for {text!r} is no time; write 30m, 2h or 1d", USAGE)
    return float(found[1]) * _UNITS[found[2]]
