"""The grammar of the command line: commands, groups of them, and options that many share."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from gradwarden_server.cli.faults import EXIT_CODES, USAGE

DEFAULT_URL = "http://127.0.0.1:8321"
_HANDLERS = "gradwarden_server.cli"
_HELP = ("-h", "--help")


def add(
    commands: argparse._SubParsersAction[Parser], name: str, does: str, example: str, runs: str
) -> Parser:
    command = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module, _, function = runs.partition(":")
    command.set_defaults(module=f"{_HANDLERS}.{module}", function=function)
    return command


def add_db(command: Parser) -> None:
    command.add_argument("--db", help="sqlite:///FILE or postgresql+psycopg://... (GRADWARDEN_DB)")


def add_service(command: Parser, default: str | None, note: str = "") -> None:
    shown = note or f"address of the service ({DEFAULT_URL}, GRADWARDEN_URL)"
    command.add_argument("--url", default=default, help=shown)
    command.add_argument(
        "--project", default=os.environ.get("GRADWARDEN_PROJECT"), help="GRADWARDEN_PROJECT"
    )


class Parser(argparse.ArgumentParser):
    """Says where the help is when the words are wrong; a group that can list does so by itself."""

    actions: argparse._SubParsersAction[Parser] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        options_only = not words or (words[0].startswith("-") and words[0] not in _HELP)
        if self.actions is not None and "list" in self.actions.choices and options_only:
            words.insert(0, "list")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(USAGE, f"gradwarden: {message}\nsee: {self.prog} --help\n")


class Group:
    """A command that only has commands of its own."""

    def __init__(self, commands: argparse._SubParsersAction[Parser], name: str, does: str) -> None:
        parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        self.actions = parser.actions = parser.add_subparsers(metavar="ACTION", required=True)
