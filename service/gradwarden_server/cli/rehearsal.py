"""The words of what tries rules and the line to people: test, replay, backtest, tune, drill."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gradwarden_server.cli.grammar import DEFAULT_URL, Group, Parser, add, add_service


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add all of them."""
    _test(commands)
    _replay(commands)
    _backtest(commands)
    _tune(commands)
    _drill(commands)
    _promote(commands)


def _test(commands: argparse._SubParsersAction[Parser]) -> None:
    group = Group(commands, "test", "run unit tests of rules")
    rules = add(
        group.actions,
        "rules",
        "run unit tests of Prometheus's rules, in the file format of promtool test rules",
        "gradwarden test rules alert_rules/tests.yml",
        "trying:rules",
    )
    rules.add_argument("files", nargs="+", type=Path, metavar="FILE")
    rules.add_argument("--json", action="store_true", help="print JSON")


def _replay(commands: argparse._SubParsersAction[Parser]) -> None:
    replay = add(
        commands,
        "replay",
        "judge a stored run anew, and tell how that differs from what was raised live",
        "gradwarden replay RUN --rules my_rules/\n"
        "  gradwarden replay RUN --rules looser.yaml --json\n"
        "  gradwarden replay --spool /mnt/dead-node/gradwarden/spool",
        "replaying:replay",
    )
    replay.add_argument("run", nargs="?", help="the run's identifier; with --spool: of all runs")
    replay.add_argument(
        "--rules", type=Path, metavar="PATH", help="a folder, or a file over the shipped rules"
    )
    replay.add_argument("--spool", type=Path, metavar="DIR", help="a spool, without any service")
    _service(replay)


def _backtest(commands: argparse._SubParsersAction[Parser]) -> None:
    backtest = add(
        commands,
        "backtest",
        "judge many stored runs by old and new rules, side by side",
        "gradwarden backtest my_rules/\n"
        "  gradwarden backtest looser.yaml --against my_rules/ --state finished,failed\n"
        "  gradwarden backtest looser.yaml --runs run-7 run-8 --json",
        "backtesting:backtest",
    )
    backtest.add_argument("rules", type=Path, help="new: a folder, or a file over the shipped ones")
    backtest.add_argument(
        "--against", type=Path, metavar="PATH", help="old: likewise; default: the shipped rules"
    )
    _runs(backtest)
    _service(backtest)


def _runs(command: Parser) -> None:
    command.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="these alone")
    command.add_argument("--state", default="", help="such as finished,failed; default: all")
    command.add_argument("--query", default="", help="part of run, name, job, model or owner")
    command.add_argument("--limit", type=int, default=100, help="at most so many, newest (100)")


def _tune(commands: argparse._SubParsersAction[Parser]) -> None:
    tune = add(
        commands,
        "tune",
        "propose thresholds that keep stored good runs quiet, as a diff of the rules",
        "gradwarden tune\n"
        "  gradwarden tune vision --rules my_rules/ | patch -p1\n"
        "  gradwarden tune --good run-1 run-2 run-3 run-4 run-5 --sick run-9 --json",
        "tuning:tune",
    )
    tune.add_argument("of_project", nargs="?", metavar="PROJECT", help="GRADWARDEN_PROJECT")
    tune.add_argument(
        "--rules", type=Path, metavar="PATH", help="a folder, or a file over the shipped rules"
    )
    tune.add_argument(
        "--good", nargs="+", default=[], metavar="RUN", help="runs without fault (all finished)"
    )
    tune.add_argument(
        "--sick", nargs="+", default=[], metavar="RUN", help="runs that were ill (all failed)"
    )
    tune.add_argument("--limit", type=int, default=100, help="at most so many of each (100)")
    _service(tune)


def _drill(commands: argparse._SubParsersAction[Parser]) -> None:
    drill = add(
        commands,
        "drill",
        "make a synthetic run fall ill, and see its page arrive",
        "gradwarden drill                       # a NaN; takes a second\n"
        "  gradwarden drill --list\n"
        "  gradwarden drill rank_silent --json\n"
        "  gradwarden drill nan --listen 9099    # a receiver of the service is 127.0.0.1:9099",
        "drilling:drill",
    )
    drill.add_argument("fault", nargs="?", default="nan", help="as --list names them (nan)")
    drill.add_argument("--list", action="store_true", help="which faults there are; inject none")
    drill.add_argument(
        "--listen", type=int, metavar="PORT", help="be the webhook receiver at 127.0.0.1:PORT"
    )
    drill.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="beyond what it takes (60)"
    )
    drill.add_argument("--delete", action="store_true", help="delete the run in the end")
    _service(drill)


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
