"""The words of what people say about alerts: ``gradwarden silence`` and ``gradwarden ack``."""

from __future__ import annotations

import argparse
import os

from gradwarden_server.cli.grammar import DEFAULT_URL, Group, Parser, add, add_service


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add both."""
    group = Group(commands, "silence", "hold messages of some alerts back for a while")
    adding = add(
        group.actions,
        "add",
        "hold messages back; alerts fire on and are told when it ends, if they still do",
        "gradwarden silence add alertname=RunStalled run_name=~'gpt.*' --for 2h "
        "--comment 'storage moves'",
        "silencing:add_silence",
    )
    adding.add_argument("--for", dest="span", required=True, metavar="TIME", help="30m, 2h, 1d")
    adding.add_argument("--comment", required=True, help="why, for those who find it")
    preview = add(
        group.actions,
        "preview",
        "show the open alerts that it would hold back",
        "gradwarden silence preview team=vision",
        "silencing:preview",
    )
    for command in (adding, preview):
        command.add_argument(
            "matchers", nargs="+", metavar="MATCHER", help="NAME=VALUE, or with !=, =~ or !~"
        )
    listing = add(
        group.actions,
        "list",
        "silences that are not over",
        "gradwarden silence list --all",
        "silencing:list_silences",
    )
    listing.add_argument("--all", action="store_true", help="those that are over too")
    expiring = add(
        group.actions,
        "expire",
        "end one now; what still fires is told",
        "gradwarden silence expire 12",
        "silencing:expire",
    )
    expiring.add_argument("id", type=int)
    ack = add(
        commands,
        "ack",
        "say that you take care of an alert",
        "gradwarden ack 42",
        "silencing:acknowledge",
    )
    ack.add_argument("id", type=int, help="as gradwarden alerts shows it")
    for command in (adding, preview, listing, expiring, ack):
        add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
        command.add_argument("--json", action="store_true", help="print JSON")
