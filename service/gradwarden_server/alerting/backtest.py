"""What a rule would have raised in stored runs: one bounded trial at a time.

It can be cancelled at any moment. The newest trial of a project is kept in memory until its next
one, or the end of the process.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gradwarden import wire
from gradwarden_server.alerting.findings import Difference, Finding, compare
from gradwarden_server.alerting.judge import Word
from gradwarden_server.alerting.past import Face, known
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.transfer import framed
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.head import Head

MOST_FRAMES = 200_000
"""Of one trial: some minutes of one core."""
_PROGRAM = "from gradwarden_server.alerting.judge import main; main()"

State = Literal["running", "done", "cancelled", "failed"]
Read = Callable[[str], tuple[Face, Head, Iterable[wire.Batch]]]
"""A run by its name; raises LookupError where it was deleted meanwhile."""


class Busy(Exception):
    """A trial is under way; the text says whose."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One run under the rules as they are, and as they might be; of the rule in question alone."""

    run: str
    name: str
    old: list[Finding]
    new: list[Finding]

    @property
    def difference(self) -> Difference:
        """What the change does."""
        return compare(self.old, self.new)


@dataclass(slots=True)
class Trial:
    """A trial as it stands; times are UTC nanoseconds."""

    project: str
    alert: str
    asked: dict[str, Any]
    """Its parameters, days and the like, as they are told again."""
    runs: list[str]
    started_ns: int
    by: str
    state: State = "running"
    why: str = ""
    ended_ns: int | None = None
    run: str = ""
    frames: int = 0
    """Judged in the runs that are done and the one under way."""
    done: list[Tried] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


class Backtests:
    """Judges in a process of its own, one trial at a time, whoever asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, Trial] = {}
        self._running: Trial | None = None
        self._cancelled = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def newest(self, project: str) -> Trial | None:
        """The project's newest trial, under way or over."""
        return self._newest.get(project)

    def start(self, trial: Trial, rules: Sequence[RuleSet], read: Read, url: str) -> None:
        """Begin; ``rules`` are those that stand and those to try.

        Raises:
            Busy: another one is under way.
        """
        with self._lock:
            if self._running is not None:
                mine = self._running.project == trial.project
                whose = "a backtest of this project" if mine else "another project's backtest"
                raise Busy(whose)
            self._running = self._newest[trial.project] = trial
            self._cancelled.clear()
            self._thread = threading.Thread(
                target=self._work, args=(trial, rules, read, url), name="backtest", daemon=True
            )
            self._thread.start()

    def cancel(self, project: str) -> bool:
        """End the project's trial; False where none is under way."""
        with self._lock:
            trial = self._running
            if trial is None or trial.project != project:
                return False
            self._cancelled.set()
            if self._process is not None:
                self._process.kill()
            return True

    def stop(self) -> None:
        """The service ends."""
        if self._running is not None:
            self.cancel(self._running.project)
        if self._thread is not None:
            self._thread.join(10)

    def _work(self, trial: Trial, rules: Sequence[RuleSet], read: Read, url: str) -> None:
        try:
            with self._judge() as process:
                for run in trial.runs:
                    if self._cancelled.is_set():
                        break
                    trial.run = run
                    self._try(trial, process, rules, read, url)
            state: State = "done"
        except (EOFError, BrokenPipeError):
            state, trial.why = "failed", "the process that judges was ended; try fewer runs or days"
        except Exception as error:
            state, trial.why = "failed", f"{type(error).__name__}: {error}"
        if self._cancelled.is_set():
            state, trial.why = "cancelled", ""
        with self._lock:
            trial.state, trial.run, trial.ended_ns = state, "", time.time_ns()
            self._running = self._process = None

    def _judge(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _PROGRAM]
        with self._lock:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                close_fds=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each reserves memory
            )
            return self._process

    def _try(
        self,
        trial: Trial,
        process: subprocess.Popen[bytes],
        rules: Sequence[RuleSet],
        read: Read,
        url: str,
    ) -> None:
        """Judge one run; what cannot be is left out, with the reason."""
        assert process.stdin is not None
        assert process.stdout is not None
        before = trial.frames
        with tempfile.NamedTemporaryFile(prefix="gradwarden-", suffix=".frames") as file:
            try:
                face, head, batches = read(trial.run)
                for piece in framed.write(head, self._bounded(batches, MOST_FRAMES - before)):
                    file.write(piece)
                file.flush()
                history = known(face, Path(file.name), url)
            except (LookupError, Unreadable) as error:
                trial.left_out[trial.run] = str(error)
                return
            pickle.dump((history, list(rules)), process.stdin)
            process.stdin.flush()
            while True:
                word: Word = pickle.load(process.stdout)
                trial.frames = before + word.frames
                if word.fault:
                    trial.left_out[trial.run] = word.fault
                    return
                if word.found is not None:
                    break
        old, new = ([f for f in found if f.alert == trial.alert] for found in word.found)
        trial.done.append(Tried(trial.run, str(face["name"]), old, new))

    def _bounded(self, batches: Iterable[wire.Batch], left: int) -> Iterator[wire.Batch]:
        for batch in batches:
            left -= len(batch.frames)
            if left < 0:
                raise LookupError(f"more than {MOST_FRAMES:,} frames with those before it")
            if self._cancelled.is_set():
                raise LookupError("cancelled")
            yield batch
