"""``gradwarden import``: old runs told to a service as a trainer would tell them.

Everything is read and checked before anything is sent. Frames keep their times and their seq,
so running the same again sends what is missing and stores nothing twice.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradwarden import wire
from gradwarden_server.cli.delivering import Delivery, Outcome
from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client
from gradwarden_server.transfer.faults import MissingExtra, Unreadable
from gradwarden_server.transfer.source import Source, of_file


def run(options: argparse.Namespace) -> int:
    """Import a file, the runs of a TensorBoard folder, or runs of MLflow."""
    try:
        return _import(options)
    except Unreadable as error:
        raise CommandError(str(error), USAGE) from None
    except MissingExtra as error:
        raise CommandError(str(error), USAGE) from None
    except OSError as error:
        raise CommandError(f"{error.filename or options.source}: {error.strerror}", USAGE) from None


def _import(options: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    client = Client(options)
    token = os.environ.get("GRADWARDEN_TOKEN") or None
    sources = _sources(options)
    if options.run and not wire.is_identifier(options.run):
        remedy = "letters, digits and . _ : + - only, at most 128 of them"
        raise CommandError(f"--run: {options.run!r}; {remedy}", USAGE)
    if options.run:  # so that nothing is stored under it if it would be one name for two
        sources = iter(_only(sources))
    for source in sources:
        delivery = Delivery(options.url, token, options.project or "default", client.knows)
        outcome = _send(delivery, source, options)
        outcomes.append(outcome)
        if not options.json:
            held = f", {outcome.duplicate} were there before" if outcome.duplicate else ""
            print(f"{outcome.run}: {outcome.stored} frames stored{held}; see {outcome.url}")
            for remark in source.remarks:
                print(f"  {remark}")
    if options.json:
        items = [
            {"run": o.run, "stored": o.stored, "duplicate": o.duplicate, "url": o.url}
            for o in outcomes
        ]
        print(json.dumps({"items": items}, indent=2))
    return DONE


def _sources(options: argparse.Namespace) -> Iterator[Source]:
    if options.origin == "mlflow":
        if (options.source is None) == (options.experiment is None):
            raise CommandError("--from mlflow: name a run id, or --experiment NAME", USAGE)
        from gradwarden_server.transfer import mlflow  # only now: it may not be installed

        return mlflow.runs(options.tracking_uri, options.source, options.experiment)
    if options.source is None:
        raise CommandError("name the file or folder to import; see --help", USAGE)
    if options.origin == "tensorboard":
        from gradwarden_server.transfer import tensorboard

        return tensorboard.runs(Path(options.source))
    return iter((of_file(Path(options.source), options.format),))


def _only(sources: Iterator[Source]) -> list[Source]:
    found = []
    for source in sources:
        found.append(source)
        if len(found) > 1:
            names = " and ".join(one.label for one in found)
            raise CommandError(f"--run names one run, and there are more: {names}", USAGE)
    return found


def _send(delivery: Delivery, source: Source, options: argparse.Namespace) -> Outcome:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = options.json or not sys.stderr.isatty()
    name = options.run or source.head.run.run
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=hidden, transient=True
    ) as bar:
        task = bar.add_task(f"checking {source.label}", total=None)
        total = source.checked()
        bar.update(task, description=name, total=total)
        try:
            return delivery.send(source, name, lambda count: bar.advance(task, count))
        finally:
            delivery.close()
