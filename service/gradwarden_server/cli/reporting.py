"""``gradwarden report``, ``prices`` and ``run mark``: a week in figures, and what turns them."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table


def report(options: argparse.Namespace) -> int:
    """The report of a week, or of the time between two moments."""
    if options.week and (options.since or options.to):
        raise CommandError("--week: leave it out, or leave out --from and --to", USAGE)
    params = {"from": options.since, "to": options.to}
    asked = {name: value for name, value in params.items() if value}
    client = Client(options)
    if not asked:
        asked = _begun(client, datetime.now(UTC))
    if options.json:
        text = json.dumps(client.call("GET", "/v1/report", params=asked), indent=2) + "\n"
    else:
        with client.stream("/v1/report", {**asked, "format": options.format}) as answer:
            text = answer.read().decode()
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    return DONE


def _begun(client: Client, now: datetime) -> dict[str, str]:
    """The times to ask for where none were named: none for the last whole week, but in the first
    days of use, when that has nothing to tell, the week so far."""
    last = client.call("GET", "/v1/report")
    if _tells(last):
        return {}
    monday = (now - timedelta(days=now.weekday())).replace(hour=0, minute=0, second=0)
    until = now + timedelta(seconds=1)  # the second under way is whole: no week so far is empty
    asked = {"from": f"{monday:%Y-%m-%dT%H:%M:%SZ}", "to": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
    none = f"no run reported between {last['since'][:10]} and {last['until'][:10]}"
    if _tells(client.call("GET", "/v1/report", params=asked)):
        print(f"{none}; this is the week so far, since {monday:%A}", file=sys.stderr)
        return asked
    print(
        f"{none}, nor since. A run reports when its code calls gradwarden.watch(model, optimizer); "
        "for other times say --from and --to",
        file=sys.stderr,
    )
    return {}


def _tells(report: dict[str, Any]) -> bool:
    return bool(report["runs"] or report["incidents"])


def prices(options: argparse.Namespace) -> int:
    """Show the price table."""
    return _prices(Client(options).call("GET", "/v1/prices"), options)


def set_prices(options: argparse.Namespace) -> int:
    """Replace the price table."""
    items = [_price(text, options.currency) for text in options.prices]
    return _prices(Client(options).call("PUT", "/v1/prices", json={"items": items}), options)


def mark(options: argparse.Namespace) -> int:
    """Say how a run ended."""
    body = {"outcome": "good" if options.good else "bad", "reason": options.reason}
    client = Client(options)
    run = client.run(options.run)
    told = client.call("POST", f"/v1/runs/{quote(run, safe='')}/outcome", json=body)
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{run} counts as {told['outcome']}: {told['reason']}")
    return DONE


def _prices(page: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(page, indent=2))
    else:
        none = "no prices; reports tell GPU-hours. Set some: gradwarden prices set '*=2.50'"
        table(("gpu", "per_hour", "currency"), page["items"], none)
    return DONE


def _price(text: str, currency: str) -> dict[str, Any]:
    gpu, _, price = text.rpartition("=")
    try:
        return {"gpu": gpu, "per_hour": float(price), "currency": currency}
    except ValueError:
        raise CommandError(
            f"{text!r}: write prices as GPU=PRICE, such as '*=2.50'", USAGE
        ) from None
