"""Where ranks run: node, GPU and role, as each told in its event of the kind start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradwarden_server.detect.steps import Step

_MOST = 8
"""Ranks and nodes that are named one by one."""


class Places:
    """Remembers the place of each rank; a process that starts again tells it again."""

    def __init__(self) -> None:
        self._places: dict[int, Mapping[str, Any]] = {}

    def observe(self, step: Step) -> None:
        """Note who started."""
        for rank, event in step.events:
            place = event.get("place")
            if event.get("kind") == "start" and isinstance(place, Mapping):
                self._places[rank] = dict(place)

    def node(self, rank: int) -> str:
        """The node of a rank, else its host, else nothing."""
        place = self._places.get(rank, {})
        return str(place.get("node") or place.get("host") or "")

    def role(self, rank: int) -> str:
        """What the rank is for, where it was told (``GRADWARDEN_ROLE``)."""
        return str(self._places.get(rank, {}).get("role") or "")

    def words(self, ranks: Iterable[int]) -> dict[str, str]:
        """The annotations rank, node and gpu of these ranks; what is unknown is left out."""
        named = sorted(ranks)
        found = {"rank": some(named)}
        nodes = sorted({node for rank in named if (node := self.node(rank))})
        if nodes:
            found["node"] = some(nodes)
        gpu = self._places.get(named[0], {}).get("gpu") if len(named) == 1 else None
        if gpu not in (None, ""):
            found["gpu"] = str(gpu)
        return found

    def state(self) -> list[Any]:
        return [[rank, dict(place)] for rank, place in self._places.items()]

    def restore(self, state: Iterable[Any]) -> None:
        self._places = {int(rank): dict(place) for rank, place in state}


def some(names: Iterable[object]) -> str:
    """The first few by name, and how many more there are."""
    held = [str(name) for name in names]
    more = len(held) - _MOST
    return ", ".join(held[:_MOST]) + (f" and {more} more" if more > 0 else "")
