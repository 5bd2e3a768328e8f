"""``gradwarden diagnose``: what ails a run, of a service or of a spool."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from gradwarden_server import assets
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.cli.telling import SICK, tell


def diagnose(options: argparse.Namespace) -> int:
    """Diagnose one run of a service, or every run of a spool; exit code 1 if one is ill."""
    if options.spool is not None:
        return _spool(options)
    if not options.run:
        raise CommandError("name a run, or a spool with --spool DIR", USAGE)
    from gradwarden_server.cli.reading import Client  # a spool needs no HTTP client

    client = Client(options)
    run = client.run(options.run)
    told = client.call("GET", f"/v1/runs/{quote(run, safe='')}/diagnosis")
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        tell(told, options.url.rstrip("/"))
    return _code([told])


def _spool(options: argparse.Namespace) -> int:
    from gradwarden_server.cli.spool_case import diagnoses
    from gradwarden_server.detect import registry
    from gradwarden_server.rules import spec

    rules = spec.load(assets.ALERT_RULES, registry.schemas(), registry.BASELINE_SCHEMA)
    found: list[Mapping[str, Any]] = []
    try:
        for one, diagnosis in diagnoses(options.spool, rules):
            if options.run in (None, one.facts.run):
                found.append(asdict(diagnosis))
                if not options.json:
                    if len(found) > 1:
                        print()
                    tell(found[-1])
                    if one.damaged:
                        print(f"  {one.damaged} batches could not be read and are left out")
    except FileNotFoundError as error:
        raise CommandError(f"{error}; name the folder that GRADWARDEN_SPOOL named", USAGE) from None
    if not found:
        which = f"no run {options.run}" if options.run else "no run"
        raise CommandError(f"{which} in {options.spool}", USAGE)
    if options.json:
        print(json.dumps(found, indent=2))
    return _code(found)


def _code(found: list[Mapping[str, Any]]) -> int:
    return NO if any(told["verdict"] in SICK for told in found) else DONE
