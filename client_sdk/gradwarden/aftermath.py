"""The diagnosis behind a run that no service saw: made here where the server extra is installed,
else by the command that is printed.

It runs in a process of its own with a time limit, so that it can neither harm this one nor keep
it for long, and only where one rank was the whole run: other ranks may still be writing.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

from gradwarden.errors import say
from gradwarden.identity import Identity

SECONDS = 4.0
"""The longest that the end of a process waits for its diagnosis."""
MOST_BYTES = 8 << 20
"""A larger spool would hardly be judged in that time."""
_EXTRA = ("gradwarden_server", "numpy", "rich", "yaml", "zstandard")


def tell(spool: Path, identity: Identity, status: str, seconds: float) -> None:
    """Print what ailed the run, or how to find out.

    Args:
        spool: This process's own spool, which nobody writes any more.
        identity: Of the run and of this rank; other ranks than 0 are silent.
        status: How the run ended; who stops it by hand or takes its place back is in a hurry.
        seconds: How long this may take.
    """
    if identity.rank != 0:
        return
    if identity.world > 1:
        where = f"{identity.run} --spool {shlex.quote(str(spool.parent))}"
        say(f"when all ranks have ended, what ailed the run: gradwarden diagnose {where}")
        return
    command = f"gradwarden diagnose --spool {shlex.quote(str(spool))}"
    if not _installed():
        say(f"what ailed the run, if anything: pip install 'gradwarden[server]' && {command}")
        return
    hurry = status not in ("finished", "failed") or seconds < 1.0
    told = None if hurry or _bytes(spool) > MOST_BYTES else _diagnosed(spool, min(seconds, SECONDS))
    if told is None:
        say(f"what ailed the run, if anything: {command}")
        return
    print(told.rstrip(), file=sys.stderr, flush=True)
    say(f"the same again, or as JSON: {command} --json")


def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _EXTRA)


def _bytes(spool: Path) -> int:
    return sum(path.stat().st_size for path in spool.glob("*.spool"))


def _diagnosed(spool: Path, seconds: float) -> str | None:
    """What the command prints; None where it fails or does not end in time."""
    command = [sys.executable, "-m", "gradwarden_server.cli", "diagnose", "--spool", str(spool)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a Ctrl-C is ours to see
    )
    try:
        told, _ = process.communicate(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()  # and it is not waited for: it may hang on a disk
        return None
    return told if process.returncode in (0, 1) else None
