"""What operators say to the database: ``gradwarden db`` and ``gradwarden retention``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gradwarden_server.cli.grammar import (
    DEFAULT_URL,
    Group,
    Parser,
    add,
    add_db,
    add_service,
)


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add both."""
    retention = add(
        commands,
        "retention",
        "show or change what a project keeps, and for how long",
        "gradwarden retention --raw-days 30 --run-days never",
        "keeping:retention",
    )
    for name, what in (
        ("raw", "every value of every layer"),
        ("rollup", "roll-ups over 16 steps; wider ones stay with their run"),
        ("run", "runs with all that they have"),
    ):
        retention.add_argument(f"--{name}-days", metavar="DAYS", help=f"{what}; days, or never")
    add_service(retention, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
    _json(retention)
    _database(commands)


def add_deletion(runs: Parser) -> None:
    """``gradwarden runs delete RUN``: the second word after ``runs``, which has a first."""
    runs.add_argument("of_run", nargs="?", metavar="RUN", help="after the word delete: this run")
    runs.add_argument("--yes", action="store_true", help="with delete: yes, for good")


def _database(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "db", "look after the database")
    migrate = add(
        group.actions,
        "migrate",
        "bring it to the newest schema",
        "gradwarden db migrate --db sqlite:////var/lib/gw.sqlite",
        "serving:migrate",
    )
    copy = add(
        group.actions,
        "copy",
        "copy it into another, such as PostgreSQL; goes on where it was cut off",
        "gradwarden db copy --from sqlite:////var/lib/gw.sqlite --to postgresql+psycopg://gw@db/gw",
        "db:copy",
    )
    copy.add_argument("--from", dest="source", required=True, metavar="URL", help="the database")
    copy.add_argument("--to", dest="target", required=True, metavar="URL", help="an empty one")
    check = add(
        group.actions,
        "check",
        "verify every checksum, and name what is damaged",
        "gradwarden db check",
        "db:check",
    )
    stats = add(
        group.actions,
        "stats",
        "tell what is stored and its weight",
        "gradwarden db stats",
        "db:stats",
    )
    vacuum = add(
        group.actions,
        "vacuum",
        "give the room of deleted rows back to the disk",
        "gradwarden db vacuum --url http://127.0.0.1:8321",
        "db:give_back",
    )
    add_service(vacuum, default=None, note="through the service that holds the SQLite file")
    retain = add(
        group.actions,
        "retain",
        "drop now what no project wants to keep",
        "gradwarden db retain",
        "db:retain",
    )
    backup = add(
        group.actions,
        "backup",
        "write all of it to one file, also while it is in use",
        "gradwarden db backup gradwarden-monday.sqlite",
        "db:backup",
    )
    backup.add_argument("file", type=Path, help="a file that is not there yet")
    restore = add(
        group.actions,
        "restore",
        "make it what a backup says",
        "gradwarden db restore gradwarden-monday.sqlite --force",
        "db:restore",
    )
    restore.add_argument("file", type=Path, help="what gradwarden db backup wrote")
    restore.add_argument("--force", action="store_true", help="replace what is there, for good")
    for command in (migrate, check, stats, vacuum, retain, backup, restore):
        add_db(command)
    for command in (copy, check, stats, vacuum, retain, backup, restore):
        _json(command)


def _json(command: Parser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")
