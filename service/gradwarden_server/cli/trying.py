"""``gradwarden test rules``: unit tests of Prometheus's rules as data, in promtool's format."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.promql.notation import Unreadable
from gradwarden_server.querying import trials
from gradwarden_server.rules.groups import PromGroup, load_groups
from gradwarden_server.rules.nodes import RulesError


def rules(options: argparse.Namespace) -> int:
    """Run every test of every file; exit code 1 where one does not hold."""
    report = {str(path): list(_tried(path)) for path in options.files}
    failed = [test for tests in report.values() for test in tests if test["wrong"]]
    if options.json:
        files = [{"file": name, "tests": tests} for name, tests in report.items()]
        print(json.dumps({"files": files, "failed": len(failed)}, indent=2))
        return NO if failed else DONE
    for name, tests in report.items():
        print(f"Unit Testing:  {name}")
        for test in tests:
            print(f"  {'FAILED' if test['wrong'] else 'ok':6}  {test['name']}")
            for line in test["wrong"]:
                print(f"          {line}")
    return NO if failed else DONE


def _tried(path: Path) -> Iterator[dict[str, Any]]:
    try:
        # Every scalar is the text that stands there, as for promtool: 0x60 is a zero, sixty times.
        document = yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: cannot be read: {error}", USAGE) from None
    except yaml.YAMLError as error:
        raise CommandError(f"{path}: not YAML: {error}", USAGE) from None
    if not isinstance(document, dict) or not isinstance(document.get("tests"), list):
        raise CommandError(f"{path}: expected rule_files and tests, as promtool has them", USAGE)
    try:
        for trial in trials.run(document, list(_groups(path, document))):
            yield {"name": trial.name, "wrong": list(trial.wrong)}
    except Unreadable as error:
        raise CommandError(f"{path}: {error}", USAGE) from None


def _groups(path: Path, document: dict[str, Any]) -> Iterator[PromGroup]:
    for pattern in document.get("rule_files") or ():
        found = sorted(glob.glob(str(path.parent / str(pattern))))
        if not found:
            raise CommandError(f"{path}: rule_files: no file matches {pattern!r}", USAGE)
        for name in found:
            try:
                yield from load_groups(Path(name))
            except RulesError as error:
                print(error, file=sys.stderr)
                raise CommandError(f"{path}: the rules of {name} are wrong", USAGE) from None
