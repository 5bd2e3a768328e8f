"""What a process of its own does: it judges histories, one after the other.

A patient process: what people try on old runs must not take the
processor from what watches the live ones. It reads ``(history, rule sets)`` and writes
:class:`Word` s, pickled, until nobody writes to it any more.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import time
from typing import NamedTuple

from gradwarden_server.alerting.findings import Finding
from gradwarden_server.transfer.faults import Unreadable

_EVERY_SECONDS = 0.25
_MOST_BYTES = 8 << 30  # of addresses: a long history of a large model takes some part of one GiB


class Word(NamedTuple):
    """How far it is; with ``found`` per rule set, or ``fault``, the history is done."""

    frames: int
    found: list[list[Finding]] | None = None
    fault: str = ""


def main() -> None:
    """Judge what standard input asks for until there is no more."""
    os.nice(19)
    _bound()
    asked, told = sys.stdin.buffer, sys.stdout.buffer

    def say(word: Word) -> None:
        pickle.dump(word, told)
        told.flush()

    while True:
        try:
            history, rules = pickle.load(asked)
        except EOFError:
            return
        last = 0.0

        def progress(_run: str, frames: int, _of: int) -> None:
            nonlocal last
            if time.monotonic() - last > _EVERY_SECONDS:
                last = time.monotonic()
                say(Word(frames))

        try:
            say(Word(history.frames, found=history.judge(rules, progress)))
        except Unreadable as error:
            say(Word(0, fault=str(error)))
        except MemoryError:
            say(Word(0, fault=f"with these numbers it takes more than {_MOST_BYTES >> 30} GiB"))
        except Exception as error:  # numbers that nobody thought of
            words = f"with these numbers it cannot be judged, {type(error).__name__}: {error}"
            say(Word(0, fault=words))


def _bound() -> None:
    """Keep memory for those who watch live runs; a tighter bound of the machine stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MOST_BYTES if hard == resource.RLIM_INFINITY else min(_MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
