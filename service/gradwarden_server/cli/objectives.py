"""The words of what is promised and what it cost: ``slo``, ``report``, ``prices`` and ``run``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gradwarden_server.cli.grammar import Group, Parser, add


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add them all."""
    _slo(commands)


def _slo(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "slo", "see error budgets, and check or export objectives")
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
