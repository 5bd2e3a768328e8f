"""What a run told of its checkpoints: which were saved, and which of them are good."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gradwarden_server.detect.steps import Step

_MOST = 256
"""Checkpoints that are remembered, the newest."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event of the kind checkpoint: a save, or a look at a file (``checked``).

    ``step`` is the training step whose state it holds; ``seconds`` is what the save blocked the
    training. ``sound`` is what the look found: None where nothing was known to compare with;
    ``whole`` that the file itself tells that nothing of it is missing.
    """

    rank: int
    path: str
    step: int
    at_ns: int
    ok: bool
    seconds: float | None = None
    bytes: int = 0
    sha256: str = ""
    finite: bool | None = None
    modified_ns: int = 0
    checked: bool = False
    whole: bool = False
    sound: bool | None = None
    error: str = ""

    @property
    def good(self) -> bool:
        """Whole on disk, with finite weights."""
        return self.ok and bool(self.sha256) and self.finite is True


def told(step: Step) -> list[Told]:
    """What the events of a step say of checkpoints."""
    found = []
    for rank, event in step.events:
        if event.get("kind") == "checkpoint":
            saved = _whole(event.get("saved_step"))
            seconds = event.get("seconds")
            timed = isinstance(seconds, (int, float)) and math.isfinite(seconds)
            found.append(
                Told(
                    rank=rank,
                    path=str(event.get("path") or ""),
                    step=step.step if saved is None else saved,
                    at_ns=step.time_ns,
                    ok=event.get("ok") is True,
                    seconds=float(seconds) if timed else None,  # type: ignore[arg-type]
                    bytes=_whole(event.get("bytes")) or 0,
                    sha256=str(event.get("sha256") or ""),
                    finite=_flag(event.get("finite")),
                    modified_ns=_whole(event.get("modified_ns")) or 0,
                    checked="verified" in event,
                    whole=event.get("whole") is True,
                    sound=_flag(event.get("verified")),
                    error=str(event.get("error") or event.get("reason") or ""),
                )
            )
    return found


class Saves:
    """The checkpoints of a run, over its attempts, oldest first."""

    def __init__(self) -> None:
        self._held: list[Told] = []

    def add(self, save: Told) -> None:
        """Remember a save; what lay under its path before is gone."""
        if save.ok and not save.checked:
            same = (save.path, save.rank)
            self._held = [h for h in self._held if (h.path, h.rank) != same][-_MOST + 1 :]
            self._held.append(save)

    def drop(self, path: str) -> None:
        """It is not what was saved."""
        self._held = [h for h in self._held if h.path != path]

    def at(self, path: str) -> Told | None:
        """What was saved under a path last."""
        return next((h for h in reversed(self._held) if h.path == path), None)

    @property
    def last(self) -> Told | None:
        """The newest, good or not."""
        return self._held[-1] if self._held else None

    def last_good(self, before: int | None = None) -> Told | None:
        """The newest good one, of a step up to ``before``."""
        found = (h for h in reversed(self._held) if h.good and (before is None or h.step <= before))
        return next(found, None)

    def words(self, before: int | None = None) -> dict[str, str]:
        """The annotations that name the last good checkpoint, else the last one."""
        good = self.last_good(before)
        if good is not None:
            return {"last_good_checkpoint": named(good)}
        return {"last_checkpoint": named(self.last)} if self.last is not None else {}

    def state(self) -> list[dict[str, Any]]:
        return [asdict(save) for save in self._held]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        self._held = [Told(**save) for save in state]


def named(save: Told) -> str:
    """A checkpoint for people."""
    return f"{save.path} (step {save.step})"


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
