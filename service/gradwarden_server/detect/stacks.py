"""Where ranks stood when no step ended: the stacks that they told, until a step ends again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradwarden_server.detect.places import some
from gradwarden_server.detect.steps import Step

_FRAMES = 6
_RANKS = 4096
_STACKS = 4
"""Different stacks that are told."""


class Stacks:
    """The newest stack, collective and phase of each rank since the last step ended."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[str, str, str]] = {}

    def observe(self, step: Step) -> None:
        """Take what a carrier of events says; a step that ended makes all of it old."""
        if not step.eventful and self._held:
            self._held = {}
        for rank, event in step.events:
            if event.get("kind") != "stack" or len(self._held) >= _RANKS:
                continue
            lines = event.get("stack")
            frames = [_short(str(line)) for line in lines] if isinstance(lines, list) else []
            shown = " > ".join(frames[-_FRAMES:])
            told = str(event.get("collective") or ""), str(event.get("phase") or "")
            self._held[rank] = (shown, *told)

    def words(self, ranks: Iterable[int] | None = None) -> dict[str, str]:
        """The annotations stack and collective, of these ranks or of all that told."""
        chosen = (
            self._held if ranks is None else {r: self._held[r] for r in ranks if r in self._held}
        )
        found = {}
        by_stack: dict[str, list[int]] = {}
        by_collective: dict[str, list[int]] = {}
        for rank, (stack, collective, _) in sorted(chosen.items()):
            if stack:
                by_stack.setdefault(stack, []).append(rank)
            if collective:
                by_collective.setdefault(collective, []).append(rank)
        for name, by in (("stack", by_stack), ("collective", by_collective)):
            shown = list(by.items())[:_STACKS]
            if shown:
                found[name] = "; ".join(f"rank {some(at)}: {text}" for text, at in shown)
        return found

    def apart(self) -> list[int]:
        """Ranks that are in no collective while others are: those that are waited for."""
        outside = [rank for rank, (_, collective, _) in self._held.items() if not collective]
        return sorted(outside) if len(outside) < len(self._held) else []

    def state(self) -> list[Any]:
        return [[rank, *told] for rank, told in self._held.items()]

    def restore(self, state: Iterable[Any]) -> None:
        self._held = {int(rank): (s, c, p) for rank, s, c, p in state}


def _short(line: str) -> str:
    """``loop.py:12 train`` of ``/srv/loop.py:12 train``."""
    place, _, function = line.rpartition(" ")
    return f"{place.replace(chr(92), '/').rpartition('/')[2]} {function}"


def phases(by_rank: Mapping[int, str]) -> str:
    """What ranks do: one phase, or each with its ranks."""
    found: dict[str, list[int]] = {}
    for rank, phase in sorted(by_rank.items()):
        found.setdefault(phase, []).append(rank)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{phase} on rank {some(ranks)}" for phase, ranks in found.items())
