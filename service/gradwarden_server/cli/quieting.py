"""The words of what people do about alerts: ``gradwarden alerts``, ``ack``, ``silence``,
``maintenance``.
"""

from __future__ import annotations

import argparse
import os

from gradwarden_server.cli.grammar import DEFAULT_URL, Group, Parser, add, add_service


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add them."""
    _alerts(commands)
    _maintenance(commands)
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
    extending = add(
        group.actions,
        "extend",
        "let one last longer",
        "gradwarden silence extend 12 --for 1h",
        "silencing:extend",
    )
    extending.add_argument("--for", dest="span", required=True, metavar="TIME", help="30m, 2h, 1d")
    extending.add_argument("id", type=int)
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
        "handling:ack",
    )
    ack.add_argument("id", type=int, help="as gradwarden alerts shows it")
    ack.add_argument("--note", default="", help="what you have to say")
    for command in (adding, preview, listing, extending, expiring, ack):
        add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
        command.add_argument("--json", action="store_true", help="print JSON")


def _alerts(commands: argparse._SubParsersAction[Parser]) -> None:
    alerts = add(
        commands,
        "alerts",
        "list alerts, show one with its timeline, take care of it, or look back",
        "gradwarden alerts --state firing\n"
        "  gradwarden alerts show 42\n"
        "  gradwarden alerts ack 42 --note 'node 7 is drained'\n"
        "  gradwarden alerts note 42 'a bad shard; skipped'\n"
        "  gradwarden alerts stats --days 7",
        "handling:alerts",
    )
    alerts.add_argument(
        "words",
        nargs="*",
        metavar="ACTION",
        help="list (default), show ID, ack ID, note ID TEXT, or stats; a number shows that alert",
    )
    alerts.add_argument("--state", default="pending,firing", help="default: pending,firing")
    alerts.add_argument("--run", help="of this run only, by its identifier or name")
    alerts.add_argument("--severity", choices=("page", "ticket", "note"), help="of this only")
    alerts.add_argument("--alertname", help="of this name only")
    alerts.add_argument("--limit", type=int, default=50, help="at most so many (50)")
    alerts.add_argument("--note", default="", help="with ack: what you have to say")
    alerts.add_argument("--days", type=float, default=30.0, help="with stats: how far back (30)")
    add_service(alerts, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
    alerts.add_argument("--json", action="store_true", help="print JSON")


def _maintenance(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "maintenance", "plan work during which messages wait")
    adding = add(
        group.actions,
        "add",
        "plan it, once or every week; what still fires when a window closes is told",
        "gradwarden maintenance add cluster=a --days sat,sun --at 02:00 --for 4h "
        "--zone Europe/Berlin --comment 'storage moves'\n"
        "  gradwarden maintenance add queue=gpu --from 2026-12-24T02:00 --for 3h --comment upgrade",
        "maintaining:add_maintenance",
    )
    adding.add_argument(
        "matchers", nargs="+", metavar="MATCHER", help="NAME=VALUE, or with !=, =~ or !~"
    )
    adding.add_argument("--for", dest="span", required=True, metavar="TIME", help="30m, 2h, 1d")
    adding.add_argument("--comment", required=True, help="why, for those who find it")
    adding.add_argument("--days", default="", help="every week on these, such as sat,sun")
    adding.add_argument("--at", default="", metavar="HH:MM", help="on those days, at this time")
    adding.add_argument("--zone", default="UTC", help="whose clocks, such as Europe/Berlin (UTC)")
    adding.add_argument("--from", dest="since", default="", metavar="TIME", help="default: now")
    adding.add_argument("--until", default="", metavar="TIME", help="with --days: none after this")
    listing = add(
        group.actions,
        "list",
        "what is planned",
        "gradwarden maintenance list --all",
        "maintaining:list_maintenance",
    )
    listing.add_argument("--all", action="store_true", help="those that are over too")
    ending = add(
        group.actions,
        "end",
        "end one for good; what still fires is told",
        "gradwarden maintenance end 3",
        "maintaining:end",
    )
    ending.add_argument("id", type=int)
    for command in (adding, listing, ending):
        add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
        command.add_argument("--json", action="store_true", help="print JSON")
