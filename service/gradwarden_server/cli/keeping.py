"""``gradwarden retention`` and ``gradwarden runs delete``: what is kept, through a service."""

from __future__ import annotations

import argparse
import json
from urllib.parse import quote

from gradwarden_server.cli import reading
from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client

_WHAT = {
    "raw_days": "every value of every layer",
    "rollup_days": "roll-ups over 16 steps",
    "run_days": "runs with all that they have",
}


def retention(options: argparse.Namespace) -> int:
    """Show what a project keeps and for how long, or change it."""
    client = Client(options)
    held = client.call("GET", "/v1/retention")
    asked = {name: _days(name, getattr(options, name)) for name in _WHAT if getattr(options, name)}
    if asked:
        held = client.call("PUT", "/v1/retention", json={**held, **asked})
    if options.json:
        print(json.dumps(held, indent=2))
        return DONE
    for name, what in _WHAT.items():
        days = held[name]
        print(f"{what:<30} {'for ever' if days is None else f'{days:g} days'}")
    return DONE


def runs(options: argparse.Namespace) -> int:
    """List runs or show one; ``delete`` and a run deletes that."""
    if options.of_run is None:
        return reading.runs(options)
    if options.run != "delete":
        words = f"runs {options.run} {options.of_run}"
        raise CommandError(f"{words}: name one run, or say: runs delete RUN", USAGE)
    return _delete(options)


def _delete(options: argparse.Namespace) -> int:
    """Delete a run for good: one named by its identifier. A name may be another run's when the
    command is sent again after an answer broke off."""
    client = Client(options)
    run = client.run(options.of_run)
    if run != options.of_run and options.yes:
        raise CommandError(
            f"no run has the identifier {options.of_run}; one is called so: "
            f"repeat with its identifier {run}",
            USAGE,
        )
    if not options.yes:
        called = run if run == options.of_run else f"{run}, called {options.of_run},"
        raise CommandError(
            f"this deletes run {called} with all its frames and alerts, for good; "
            f"if so: gradwarden runs delete {run} --yes",
            USAGE,
        )
    client.call("DELETE", f"/v1/runs/{quote(run, safe='')}")
    if options.json:
        print(json.dumps({"deleted": run}))
    else:
        print(f"run {run} is deleted")
    return DONE


def _days(name: str, said: str) -> float | None:
    if said == "never":
        return None
    try:
        return float(said)
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise CommandError(f"{option}: {said!r}; give days, or never", USAGE) from None
