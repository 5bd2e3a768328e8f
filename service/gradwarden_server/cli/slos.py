"""``gradwarden slo``: objectives as files, and budgets of a running service."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from gradwarden_server import assets
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.promql.parse import parse
from gradwarden_server.promql.shape import summed
from gradwarden_server.slo import export as exporting
from gradwarden_server.slo import openslo
from gradwarden_server.slo.objective import Objective


def check(options: argparse.Namespace) -> int:
    """Report all mistakes of all files of objectives."""
    folder = _folder(options)
    try:
        found = openslo.load(folder, parse)
    except openslo.SloError as error:
        print(error, file=sys.stderr)
        return NO
    on = sum(objective.on for objective in found)
    print(f"{folder}: {len(found)} objectives, {on} of them on, no mistakes")
    return DONE


def export(options: argparse.Namespace) -> int:
    """Write objectives in the format of another tool."""
    try:
        found = openslo.load(_folder(options), parse)
    except openslo.SloError as error:
        raise CommandError(str(error), USAGE) from None
    wanted: list[Objective] = [one for one in found if one.on or options.all]
    match options.format:
        case "sloth":
            made = exporting.sloth(wanted)
        case "pyrra":
            made = exporting.pyrra(wanted, summed)
        case _:
            made = exporting.prometheus(wanted)
    text = yaml.safe_dump_all(made.documents, sort_keys=False, width=10_000, allow_unicode=True)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    for line in made.left_out:
        print(f"left out: {line}", file=sys.stderr)
    return DONE


def _folder(options: argparse.Namespace) -> Path:
    folder: Path = options.folder or assets.ALERT_RULES / "slo"
    if not folder.is_dir():
        raise CommandError(f"{folder}: is no folder; name one with files of OpenSLO", USAGE)
    return folder
