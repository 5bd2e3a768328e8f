"""Budgets for those who ask over HTTP: read at most every few seconds, whoever looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gradwarden_server.promql.errors import ExecutionError, QueryError
from gradwarden_server.querying.budgets import Budgets, Share
from gradwarden_server.querying.storage import ProjectStorage, Sources
from gradwarden_server.slo.objective import Objective

_FRESH_SECONDS = 10.0
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Standing:
    """An objective with its parts, the worst first; ``error`` where it cannot be answered."""

    objective: Objective
    shares: tuple[Share, ...]
    error: str = ""


class BudgetDesk:
    """The objectives of the service, and how they stand in each project."""

    def __init__(self, objectives: Sequence[Objective], sources: Sources) -> None:
        self.objectives = tuple(objectives)
        self._sources = sources
        self._known: dict[str, tuple[float, list[Standing]]] = {}
        self._lock = threading.Lock()

    def adopt(self, objectives: Sequence[Objective]) -> None:
        """Speak of these from now on."""
        with self._lock:
            self.objectives = tuple(objectives)
            self._known.clear()

    def find(self, name: str) -> Objective | None:
        """The objective of that identifier; None where there is none."""
        return next((one for one in self.objectives if one.id == name), None)

    def standings(self, project: str) -> list[Standing]:
        """Every objective that is on, as it stands now or stood some seconds ago."""
        with self._lock:
            known = self._known.get(project)
        if known is not None and time.monotonic() - known[0] < _FRESH_SECONDS:
            return known[1]
        began = time.monotonic()
        reader = self.reader(project)
        found = [_standing(reader, one) for one in self.objectives if one.on]
        with self._lock:
            self._known[project] = began, found
        return found

    def standings_at(self, project: str, at_s: int) -> list[Standing]:
        """Every objective that is on now, as it stood at a moment, in seconds since the epoch."""
        reader = self.reader(project, at_s)
        return [_standing(reader, one) for one in self.objectives if one.on]

    def reader(self, project: str, at_s: int | None = None) -> Budgets:
        """The budgets of a project as of a moment, or as of now."""
        now_ns = time.time_ns()
        storage = ProjectStorage(self._sources, project, now_ns)
        return Budgets(storage, now_ns // _SECOND_NS if at_s is None else at_s)


def _standing(reader: Budgets, objective: Objective) -> Standing:
    try:
        return Standing(objective, tuple(reader.shares(objective)))
    except (QueryError, ExecutionError) as error:
        return Standing(objective, (), str(error))
