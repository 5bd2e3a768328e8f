"""``gradwarden check``: what the service would refuse, told before it starts."""

from __future__ import annotations

import argparse
import os
import sys

from gradwarden_server import assets
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.detect import registry
from gradwarden_server.notify import routefile, weekly
from gradwarden_server.notify.spec import ReceiversError
from gradwarden_server.querying.grammar import Grammar, doubts
from gradwarden_server.rules import spec as rules_spec
from gradwarden_server.rules.nodes import RulesError


def rules(options: argparse.Namespace) -> int:
    """Report all mistakes of all rule files, and what is doubtful about the others."""
    wrong = False
    for place in options.paths or [assets.ALERT_RULES]:
        try:
            found = rules_spec.load(place, registry.schemas(), registry.BASELINE_SCHEMA, Grammar())
        except OSError as error:
            what = f"{place}: {error.strerror}; name a folder or a file"
            raise CommandError(what, USAGE) from None
        except RulesError as error:
            print(error, file=sys.stderr)
            wrong = True
            continue
        for doubt in doubts(found):
            print(f"warning: {doubt}", file=sys.stderr)
        ruled = sum(len(group.rules) for group in found.groups)
        count = f"{len(found.detectors)} detector rules"
        count += f", {ruled} rules of Prometheus in {len(found.groups)} groups"
        print(f"{place}: {count}, no mistakes")
    return NO if wrong else DONE


def receivers(options: argparse.Namespace) -> int:
    """Report all mistakes of a receivers file."""
    try:
        found = routefile.load(options.file, os.environ)
        weekly.load(options.file, found.receivers)
    except ReceiversError as error:
        print(error, file=sys.stderr)
        return NO
    print(f"{len(found.receivers)} receivers, {len(found.routes)} routes, no mistakes")
    return DONE
