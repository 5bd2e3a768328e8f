"""``gradwarden command`` and ``gradwarden halt``: ask something of a run's ranks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.cli.reading import Client

_RUN = "/v1/runs/{}"
_DOES = {
    "checksums": "send full checksums",
    "capture": "capture now",
    "speak": "speak for its replicas, or to stop it",
    "pause": "capture nothing until it is resumed",
    "resume": "capture again",
    "schedule": "capture by this schedule",
    "halt": "halt; it does where its Guard allows it, within two steps",
}


def command(options: argparse.Namespace) -> int:
    """Ask one rank, or every rank of the newest attempt that has not ended."""
    args = dict(_argument(text) for text in options.args)
    client = Client(options)
    options.run = client.run(options.run)
    if options.rank is not None:
        return _ask(client, options, [options.rank], options.kind, args)
    return _ask(client, options, _alive(client, options.run), options.kind, args)


def halt(options: argparse.Namespace) -> int:
    """Ask a run to end; one rank is enough, since its Guard tells the others."""
    args = {"reason": options.reason} if options.reason else {}
    client = Client(options)
    options.run = client.run(options.run)
    alive = _alive(client, options.run)
    ranks = [options.rank] if options.rank in alive else alive[:1]
    return _ask(client, options, ranks, "halt", args)


def _alive(client: Client, run: str) -> list[int]:
    """The ranks of the newest attempt that have not ended."""
    face = client.call("GET", _RUN.format(quote(run, safe="")))
    return [rank["rank"] for rank in face["ranks"] if not rank["ended"]]


def _ask(
    client: Client,
    options: argparse.Namespace,
    ranks: Sequence[int],
    kind: str,
    args: dict[str, Any],
) -> int:
    path = f"{_RUN.format(quote(options.run, safe=''))}/commands"
    asked = [
        {"rank": rank, **client.call("POST", path, json={"rank": rank, "kind": kind, "args": args})}
        for rank in ranks
    ]
    if options.json:
        print(json.dumps({"items": asked}, indent=2))
    elif asked:
        some = f"rank {asked[0]['rank']}" if len(asked) == 1 else f"{len(asked)} ranks"
        print(f"asked {some} of {options.run} to {_DOES.get(kind, kind)}")
    else:
        print(f"every rank of {options.run} has ended; nobody was asked")
    return DONE if asked else NO


def _argument(text: str) -> tuple[str, Any]:
    """``name=value``; a value that is JSON is taken as such, anything else as text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise CommandError(f"{text!r}: write arguments as NAME=VALUE, such as steps=8", USAGE)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
