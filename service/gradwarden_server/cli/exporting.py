"""``gradwarden export``: a run as one file, whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from gradwarden_server.cli.faults import DONE, UNREACHABLE, USAGE, CommandError
from gradwarden_server.cli.reading import Client

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".frames": "frames",
    ".html": "html",
}


def export(options: argparse.Namespace) -> int:
    """Write a run to a file or to standard output; a file appears when it is complete."""
    client = Client(options)
    options.run = client.run(options.run)
    form = options.format or _SUFFIXES.get(Path(options.output or "").suffix, "jsonl")
    target = _target(options, form)
    if target is None and options.json:
        raise CommandError("--json: the run itself goes to standard output; add -o FILE", USAGE)
    bounds = {"from": options.first, "to": options.last}
    params = {"format": form, **{n: v for n, v in bounds.items() if v is not None}}
    path = f"/v1/runs/{quote(options.run, safe='')}/export"
    with client.stream(path, params) as answer, _open(target) as file:
        size = _copy(answer, file, options, target)
    if target is not None:
        told = {"run": options.run, "format": form, "file": str(target), "bytes": size}
        print(json.dumps(told) if options.json else f"{target}: {size} bytes of {options.run}")
    return DONE


def _target(options: argparse.Namespace, form: str) -> Path | None:
    """Where the run goes; None is standard output."""
    if options.output == "-":
        return None
    if options.output is not None:
        return Path(options.output)
    if form in ("parquet", "frames", "html") or sys.stdout.isatty() or options.json:
        return Path(f"{options.run.replace(':', '-')}.{form}")
    return None


@contextmanager
def _open(target: Path | None) -> Iterator[IO[bytes]]:
    if target is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise CommandError(f"{target}: {error.strerror}; name another with -o", USAGE) from None
    finally:
        part.unlink(missing_ok=True)


def _copy(
    answer: httpx.Response, file: IO[bytes], options: argparse.Namespace, target: Path | None
) -> int:
    size = 0
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), DownloadColumn(), TimeElapsedColumn())
    hidden = options.json or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(options.run, total=None)
        try:
            for piece in answer.iter_raw():
                file.write(piece)
                size += len(piece)
                bar.advance(task, len(piece))
        except httpx.HTTPError as error:
            left = "nothing is kept" if target else "what was written is not the whole run"
            raise CommandError(
                f"the service broke off after {size} bytes ({error}); {left}, run the same again",
                UNREACHABLE,
            ) from None
    return size
