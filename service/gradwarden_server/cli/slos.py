"""``gradwarden slo``: objectives as files, and budgets of a running service."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from gradwarden_server import assets
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table
from gradwarden_server.promql.parse import parse
from gradwarden_server.promql.shape import summed
from gradwarden_server.slo import export as exporting
from gradwarden_server.slo import openslo
from gradwarden_server.slo.budget import told_left
from gradwarden_server.slo.objective import Objective


def listed(options: argparse.Namespace) -> int:
    """What is left of each budget."""
    page = Client(options).call("GET", "/v1/slos")
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    columns = ("id", "target", "now", "left", "burn", "alerts", "sentence")
    table(columns, [_line(one) for one in page["items"]], "no objectives; see docs/slo.md")
    return DONE


def show(options: argparse.Namespace) -> int:
    """One objective: its parts, its burn, and who spends it."""
    client = Client(options)
    path = f"/v1/slos/{quote(options.id, safe='')}"
    face = client.call("GET", path)
    spenders = client.call("GET", f"{path}/spenders")["items"]
    if options.json:
        print(json.dumps({**face, "spenders": spenders}, indent=2))
        return DONE
    state = "" if face["on"] else " (not switched on)"
    print(f"{face['name']}{state}: {face['description']}")
    print(face["error"] or face["sentence"])
    for part in face["parts"]:
        labels = ", ".join(f"{k}={v}" for k, v in sorted(part["labels"].items()))
        left = _left(part["budget_left"]) or "-"
        print(f"\n{labels or 'all'}: budget left: {left}. {part['sentence']}")
        rows = [
            {**burn, "windows": f"{burn['long_s'] // 60}/{burn['short_s'] // 60} min"}
            for burn in part["burn"]
        ]
        if rows:
            columns = ("severity", "windows", "long", "short", "limit", "word")
            table(columns, rows, "")
    if spenders:
        print()
        rows = [{**one, "share": _percent(one["share"])} for one in spenders]
        table(("run", "run_name", "owner", "bad", "share"), rows, "")
    return DONE


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


def _line(face: dict[str, Any]) -> dict[str, Any]:
    words = [burn["word"] for burn in face["burn"]]
    worst = next((w for w in ("Critical", "Increasing", "Recovering") if w in words), None)
    return {
        "id": face["id"],
        "target": face["at_most"] or f"{face['target'] * 100:g} %",
        "now": None if face["current"] is None else f"{face['current'] * 100:.3g} %",
        "left": _left(face["budget_left"]),
        "burn": worst or ("Acceptable" if words else None),
        "alerts": len(face["alerts"]),
        "sentence": face["error"] or face["sentence"],
    }


def _left(left: float | None) -> str | None:
    return None if left is None else told_left(left)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share * 100:.0f} %"


def _folder(options: argparse.Namespace) -> Path:
    folder: Path = options.folder or assets.ALERT_RULES / "slo"
    if not folder.is_dir():
        raise CommandError(f"{folder}: is no folder; name one with files of OpenSLO", USAGE)
    return folder
