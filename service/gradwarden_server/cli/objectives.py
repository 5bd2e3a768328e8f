"""The words of what is promised and what it cost: ``slo``, ``report``, ``prices`` and ``run``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gradwarden_server.cli.grammar import DEFAULT_URL, Group, Parser, add, add_service


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add them all."""
    _slo(commands)
    _report(commands)
    _prices(commands)
    _run(commands)


def _slo(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "slo", "see error budgets, and check or export objectives")
    listing = add(
        group.actions, "list", "what is left of each budget", "gradwarden slo list", "slos:listed"
    )
    show = add(
        group.actions,
        "show",
        "one objective: its parts, its burn, and who spends it",
        "gradwarden slo show finite-steps",
        "slos:show",
    )
    show.add_argument("id", help="as listed")
    for command in (listing, show):
        _asks(command)
    check = add(
        group.actions,
        "check",
        "report all mistakes of all objectives",
        "gradwarden slo check alert_rules/slo/",
        "slos:check",
    )
    export = add(
        group.actions,
        "export",
        "write objectives as rules of Prometheus, or for Sloth or Pyrra",
        "gradwarden slo export --format prometheus-rules > slo.rules.yaml",
        "slos:export",
    )
    export.add_argument(
        "--format", choices=("prometheus-rules", "sloth", "pyrra"), default="prometheus-rules"
    )
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the terminal")
    export.add_argument("--all", action="store_true", help="also those that are not switched on")
    for command in (check, export):
        command.add_argument("folder", nargs="?", type=Path, help="default: the shipped ones")


def _report(commands: argparse._SubParsersAction[Parser]) -> None:
    report = add(
        commands,
        "report",
        "incidents, wasted GPU-hours and times to react of a week",
        "gradwarden report --week\n  gradwarden report --from 2026-11-01 --to 2026-11-15 "
        "--format csv --output november.csv",
        "reporting:report",
    )
    report.add_argument(
        "--week",
        action="store_true",
        help="the last whole week, or in the first days the one so far",
    )
    report.add_argument("--from", dest="since", metavar="TIME", help="such as 2026-11-01")
    report.add_argument("--to", metavar="TIME", help="default: now")
    report.add_argument("--format", choices=("md", "html", "csv"), default="md")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the terminal")
    _asks(report)


def _prices(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "prices", "what an hour of a GPU costs")
    listing = add(
        group.actions, "list", "show the table", "gradwarden prices list", "reporting:prices"
    )
    setting = add(
        group.actions,
        "set",
        "replace the table; without prices, empty it",
        "gradwarden prices set 'NVIDIA H100 80GB HBM3=2.80' '*=1.50' --currency USD",
        "reporting:set_prices",
    )
    setting.add_argument("prices", nargs="*", metavar="GPU=PRICE", help="* is all others")
    setting.add_argument("--currency", default="USD", help="three letters (USD)")
    for command in (listing, setting):
        _asks(command)


def _run(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "run", "say how a run ended")
    mark = add(
        group.actions,
        "mark",
        "mark a run good or bad, for the objective on training success",
        "gradwarden run mark RUN --good --reason 'stopped early on purpose'",
        "reporting:mark",
    )
    mark.add_argument("run", help="the run's identifier, or its name")
    word = mark.add_mutually_exclusive_group(required=True)
    word.add_argument("--good", action="store_true")
    word.add_argument("--bad", action="store_true")
    mark.add_argument("--reason", default="", help="kept with it")
    _asks(mark)


def _asks(command: Parser) -> None:
    add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
    command.add_argument("--json", action="store_true", help="print JSON")
