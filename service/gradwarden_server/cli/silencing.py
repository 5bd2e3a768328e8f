"""``gradwarden silence``: hold messages back for a while."""

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
        "duration_seconds": seconds(options.span),
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
    print(f"{page['past_7d']} fired in the past 7 days")
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


def extend(options: argparse.Namespace) -> int:
    """Let a silence last longer."""
    body = {"extend_seconds": seconds(options.span)}
    moved = Client(options).call("PATCH", f"/v1/silences/{options.id}", json=body)
    if options.json:
        print(json.dumps(moved, indent=2))
    else:
        print(f"silence {moved['id']} until {moved['ends_at'][:19]}Z")
    return DONE


def expire(options: argparse.Namespace) -> int:
    """End a silence."""
    ended = Client(options).call("DELETE", f"/v1/silences/{options.id}")
    print(json.dumps(ended, indent=2) if options.json else f"silence {ended['id']} is over")
    return DONE


def seconds(text: str) -> float:
    """A time as people write it.

    Raises:
        CommandError: it is none.
    """
    found = _DURATION.match(text)
    if found is None:
        raise CommandError(f"--for {text!r} is no time; write 30m, 2h or 1d", USAGE)
    return float(found[1]) * _UNITS[found[2]]
