"""The words of what tries rules and the line to people: replay, backtest, tune, drill, promote."""

from __future__ import annotations

import argparse
import os

from gradwarden_server.cli.grammar import DEFAULT_URL, Parser, add, add_service


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add all of them."""
    _promote(commands)


def _promote(commands: argparse._SubParsersAction[Parser]) -> None:
    promote = add(
        commands,
        "promote",
        "let pages of a young project, or of one rule, wake people",
        "gradwarden promote --show\n"
        "  gradwarden promote                       # the project of GRADWARDEN_PROJECT\n"
        "  gradwarden promote LossDivergence        # this rule alone",
        "promoting:promote",
    )
    promote.add_argument(
        "what", nargs="?", metavar="PROJECT|ALERT", help="a rule's name, else a project's"
    )
    promote.add_argument("--show", action="store_true", help="change nothing")
    _service(promote)


def _service(command: Parser) -> None:
    add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
    command.add_argument("--json", action="store_true", help="print JSON")
