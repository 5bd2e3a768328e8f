"""Which checkpoints are healthy: verified, finite, and enough clean steps behind them.

Pure bookkeeping: it touches no file. A checkpoint that was proven once stays so; one that is
not proven yet starts again at every finding, since the cause may already be in it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MOST = 1024
"""Checkpoints that are remembered; of a longer run the oldest are forgotten first."""


@dataclass(slots=True)
class Saved:
    """One checkpoint on disk and what is known of its health."""

    step: int
    path: Path
    sha256: str | None = None
    bytes: int = 0
    modified_ns: int = 0
    """When it was written, by its file system."""
    finite: bool | None = None
    """Whether all weights were finite when it was saved; None while that is unknown."""
    clean: int = 0
    """Clean steps in a row since it was saved."""
    proven: bool = False
    """Whether it had enough clean steps behind it once."""
    ours: bool = False
    """Whether the guard saved it, so that it may restore and delete it."""
    source: Literal["local", "server"] = "local"
    """Who says that it is healthy."""

    @property
    def healthy(self) -> bool:
        return self.proven and self.finite is True and self.sha256 is not None


class Ledger:
    """The checkpoints of one run, oldest first; fed by saves and by the verdict on each step."""

    def __init__(self, healthy_after_steps: int = 200) -> None:
        self._after = healthy_after_steps
        self._lock = threading.RLock()
        self._held: list[Saved] = []

    def saved(
        self,
        step: int,
        path: Path,
        finite: bool | None,
        *,
        proven: bool = False,
        ours: bool = False,
    ) -> Saved:
        """Enter a checkpoint; its checksum follows by :meth:`described`.

        ``proven`` holds for the state that training began with: nothing older can be had.
        """
        entry = Saved(step, path, finite=finite, proven=proven, ours=ours)
        with self._lock:
            self._held = [h for h in self._held if h.path != path][-MOST + 1 :]
            self._held.append(entry)
        return entry

    def described(self, path: Path, sha256: str, size: int, modified_ns: int = 0) -> None:
        """The checksum (SHA-256, hexadecimal) and size in bytes of what lies at ``path``."""
        with self._lock:
            for entry in self._held:
                if entry.path == path:
                    entry.sha256, entry.bytes, entry.modified_ns = sha256, size, modified_ns

    def step_ended(self, clean: bool) -> None:
        """One more step; a finding makes every checkpoint not yet proven start again."""
        with self._lock:
            for entry in reversed(self._held):
                if not entry.proven:
                    entry.clean = entry.clean + 1 if clean else 0
                    entry.proven = entry.clean >= self._after

    def healthy(self) -> list[Saved]:
        """Healthy checkpoints, newest first."""
        with self._lock:
            return [h for h in reversed(self._held) if h.healthy]

    def last_healthy(self) -> Saved | None:
        """The newest healthy checkpoint."""
        return next(iter(self.healthy()), None)

    def superfluous(self, keep: int) -> list[Saved]:
        """The guard's own that may go, all but the ``keep`` newest and two more.

        Never the last healthy one, and not the oldest after it either: were that deleted
        before it could prove itself, as each of a dense row would be, no newer one ever did.
        """
        with self._lock:
            own = [h for h in self._held if h.ours]
            # A checksum may still be on its way.
            last = max((i for i, h in enumerate(own) if h.proven and h.finite), default=-1)
            return [h for i, h in enumerate(own[:-keep]) if i not in (last, last + 1)]

    def holds(self, path: Path) -> bool:
        with self._lock:
            return any(h.path == path for h in self._held)

    def at(self, path: Path) -> Saved | None:
        """What is known of a path."""
        with self._lock:
            return next((h for h in reversed(self._held) if h.path == path), None)

    def drop(self, entry: Saved) -> None:
        """It is gone, or refused."""
        with self._lock:
            self._held = [h for h in self._held if h is not entry]

    def rewound(self, entry: Saved) -> list[Saved]:
        """Training went back to ``entry``: what was saved after it is dropped, and answered."""
        with self._lock:
            at = next((i for i, h in enumerate(self._held) if h is entry), len(self._held) - 1)
            self._held, after = self._held[: at + 1], self._held[at + 1 :]
        return after
