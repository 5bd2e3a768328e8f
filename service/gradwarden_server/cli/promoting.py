"""``gradwarden promote``: let pages wake people, or show how far the shadow period got."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table


def promote(options: argparse.Namespace) -> int:
    """End the shadow period of a project, or take one rule out of it."""
    client = Client(options)
    held = client.call("GET", "/v1/shadow")
    name = options.what
    alert = name if name in {rule["alert"] for rule in held["rules"]} else None
    if name is not None and alert is None:  # no rule has that name: a project
        options.project = name
        client = Client(options)
        held = client.call("GET", "/v1/shadow")
        if not held["days"]:
            raise CommandError(f"{name!r} is neither a rule nor a project of this service", USAGE)
    if not options.show:
        held = client.call("POST", "/v1/shadow/promote", json={"alert": alert})
    if options.json:
        print(json.dumps(held, indent=2))
        return DONE
    _tell(held)
    return DONE


def _tell(held: dict[str, Any]) -> None:
    print(f"{held['state']}: {held['why']}")
    rules = [r for r in held["rules"] if r["would_have_paged"] or not r["pages"]]
    if rules:
        rows = [{**r, "pages": "yes" if r["pages"] else "as tickets"} for r in rules]
        table(("alert", "pages", "would_have_paged", "promoted_at", "promoted_by"), rows, "")
