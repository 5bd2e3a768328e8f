"""``gradwarden sync``: needs the SDK alone; sends a dead node's spool from anywhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from gradwarden.sync import sync as send
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError


def sync(options: argparse.Namespace) -> int:
    """Send every spool under a folder; exit code 1 when something is left."""
    show = not options.json and sys.stderr.isatty()
    try:
        report = send(
            options.directory,
            options.url,
            os.environ.get("GRADWARDEN_TOKEN") or None,
            _progress if show else None,
            project=options.project or "default",
        )
    except FileNotFoundError as error:
        raise CommandError(f"{error}; name the folder that GRADWARDEN_SPOOL named", USAGE) from None
    if options.json:
        outcome = {
            "spools": report.spools,
            "acked": report.acked,
            "skipped": [str(p) for p in report.skipped],
            "failed": {str(p): reason for p, reason in report.failed.items()},
            "dropped": report.dropped,
        }
        print(json.dumps(outcome, indent=2))
        return DONE if report.ok else NO
    print(f"{report.acked} frames of {report.spools} spools are stored at {options.url}")
    for path in report.skipped:
        print(f"left alone: {path}: a live process delivers it")
    for reason, frames in report.dropped.items():
        print(f"refused for good: {frames} frames: {reason}", file=sys.stderr)
    for path, reason in report.failed.items():
        print(f"left behind: {path}: {reason}; run the same again", file=sys.stderr)
    return DONE if report.ok else NO


def _progress(spool: Path, done: int, total: int) -> None:
    share = 100 * done // max(1, total)
    end = "\n" if done >= total else "\r"
    print(f"{spool.name}: {share} % of {total / 1e6:.1f} MB", end=end, file=sys.stderr, flush=True)
