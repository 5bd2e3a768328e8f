"""``gradwarden maintenance``: planned work, once or every week, during which messages wait."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table
from gradwarden_server.cli.silencing import seconds

_COLUMNS = ("id", "state", "matchers", "when", "next", "author", "comment")


def add_maintenance(options: argparse.Namespace) -> int:
    """Plan one."""
    body: dict[str, Any] = {"matchers": options.matchers, "comment": options.comment}
    if options.days:
        if not options.at:
            raise CommandError("--days sat,sun needs --at 02:00", USAGE)
        body["weekly"] = {
            "days": [day.strip().lower()[:3] for day in options.days.split(",")],
            "at": options.at,
            "duration_seconds": round(seconds(options.span)),
            "time_zone": options.zone,
        }
    elif options.at:
        raise CommandError("--at is for --days; say --from 2026-12-24T02:00 for one time", USAGE)
    else:
        body["duration_seconds"] = seconds(options.span)
    for name, said in (("starts_at", options.since), ("ends_at", options.until)):
        if said:
            body[name] = _moment(said, options.zone)
    made = Client(options).call("POST", "/v1/maintenance", json=body)
    if options.json:
        print(json.dumps(made, indent=2))
        return DONE
    window = made["open"] or made["next"]
    shown = (
        "never" if window is None else f"{window['starts_at'][:19]}Z to {window['ends_at'][:19]}Z"
    )
    print(f"maintenance {made['id']}, {shown}: {', '.join(made['matchers'])}")
    return DONE


def list_maintenance(options: argparse.Namespace) -> int:
    """List them."""
    items = Client(options).call("GET", "/v1/maintenance")["items"]
    shown = [one for one in items if options.all or one["state"] != "ended"]
    if options.json:
        print(json.dumps(shown, indent=2))
        return DONE
    rows = [
        {
            **one,
            "matchers": ", ".join(one["matchers"]),
            "when": _when(one),
            "next": None if one["next"] is None else f"{one['next']['starts_at'][:19]}Z",
        }
        for one in shown
    ]
    table(_COLUMNS, rows, "no work is planned")
    return DONE


def end(options: argparse.Namespace) -> int:
    """End one for good."""
    ended = Client(options).call("DELETE", f"/v1/maintenance/{options.id}")
    print(json.dumps(ended, indent=2) if options.json else f"maintenance {ended['id']} is over")
    return DONE


def _when(one: dict[str, Any]) -> str:
    weekly = one["weekly"]
    if weekly is None:
        return _span(one)
    hours = weekly["duration_seconds"] / 3600
    return f"{','.join(weekly['days'])} {weekly['at']} {weekly['time_zone']} for {hours:g} h"


def _span(window: dict[str, Any]) -> str:
    return f"{window['starts_at'][:19]}Z to {window['ends_at'][:19]}Z"


def _moment(text: str, zone: str) -> str:
    """A time as the API takes it; one without an offset is of the zone."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(zone))
    except (ValueError, ZoneInfoNotFoundError):
        raise CommandError(
            f"{text!r} in {zone!r} is no time; write 2026-12-24T02:00", USAGE
        ) from None
    return moment.isoformat()
