"""Budgets of objectives, read from what is stored: the counters, and the tiles of five minutes.

Windows of six hours and more add up tiles where the service has recorded some for so long; where
it has not, everything is younger than that and the counters themselves are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradwarden_server.promql.engine import Engine
from gradwarden_server.promql.shape import split
from gradwarden_server.promql.storage import Storage
from gradwarden_server.promql.vector import NAME, Labels
from gradwarden_server.slo import budget as budgets
from gradwarden_server.slo import compile as compiling
from gradwarden_server.slo import windows
from gradwarden_server.slo.budget import Budget, Events
from gradwarden_server.slo.objective import WINDOW, Objective

_OWN = (NAME, "sloth_id", "sloth_service", "sloth_slo", "sloth_window")
_SPENDERS = ("run", "run_name", "owner")
_Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Share:
    """The budget of one part of an objective, such as one environment."""

    labels: Labels
    budget: Budget


@dataclass(frozen=True, slots=True)
class Moment:
    """A budget at one moment; ``left`` None where nothing had happened in its period."""

    time_s: int
    left: float | None
    good: float
    total: float


@dataclass(frozen=True, slots=True)
class Spender:
    """A run that spent some of a budget, and its share of all that was spent."""

    labels: Labels
    bad: float
    share: float


class Budgets:
    """The budgets of one project at one moment."""

    def __init__(self, storage: Storage, now_s: int) -> None:
        self._engine = Engine(storage)
        self._now_s = now_s

    def shares(self, objective: Objective) -> list[Share]:
        """The parts of an objective, the one with the least left first; at least one.

        Raises:
            QueryError, ExecutionError: its queries cannot be answered.
        """
        if objective.count is not None:
            found = list(self._counted(objective))
        else:
            found = list(self._burning(objective))
        if not found:
            found = [Share({}, budgets.of(objective, Events(0, 0), {}))]
        return sorted(found, key=_least_left)

    def history(self, objective: Objective, points: int) -> list[Moment]:
        """How much was left at so many moments of the last period, by the period before each.

        Parts are added up. A calendar period begins full.

        Raises:
            QueryError, ExecutionError: its queries cannot be answered.
        """
        if objective.count is not None:
            return self._counted_history(objective, points)
        period_s = round(objective.period.days * windows.DAY)
        step_s = max(compiling.TILE_S, -(-period_s // points))
        tiled = self._tiled(objective)
        spent = {
            kind: self._by_step(objective, kind, step_s, period_s, tiled)
            for kind in ("bad", "total")
        }
        moments = []
        for at_s in range(self._now_s - (points - 1) * step_s, self._now_s + 1, step_s):
            since_s = objective.period.since(at_s)
            events = Events(
                *(
                    sum(v for t, v in spent[kind].items() if since_s < t <= at_s)
                    for kind in ("bad", "total")
                )
            )
            rate = budgets.burn_rate(objective, events)
            left = None if rate is None else 1 - rate
            moments.append(Moment(at_s, left, events.total - events.bad, events.total))
        return moments

    def spenders(self, objective: Objective, most: int = 10) -> list[Spender]:
        """The runs that spent most of the present period's budget.

        None where the objective is not a sum or a count over runs.

        Raises:
            QueryError, ExecutionError: its queries cannot be answered.
        """
        period_s = self._period_s(objective)
        if objective.count is not None:
            by_run = f"max by ({', '.join(_SPENDERS)}) ({compiling.bad_of_last(objective)})"
            bad = dict.fromkeys(self._vector(by_run), 1.0)
        else:
            bad = self._bad_by_run(objective, period_s)
        total = sum(bad.values())
        ranked = sorted(bad.items(), key=lambda held: -held[1])[:most]
        return [Spender(dict(key), value, value / total) for key, value in ranked if value > 0]

    def _counted(self, objective: Objective) -> Iterator[Share]:
        totals = self._vector(compiling.counted_total(objective))
        bad = self._vector(compiling.counted_bad(objective))
        for key, total in totals.items():
            events = Events(bad.get(key, 0.0), total)
            yield Share(dict(key), budgets.of(objective, events, {}))

    def _burning(self, objective: Objective) -> Iterator[Share]:
        tiled = self._tiled(objective)
        held = {w: self._events(objective, w, tiled) for w in windows.all_windows(objective.pairs)}
        period = self._events(objective, self._period_s(objective), tiled)
        for key, events in period.items():
            mine = {w: found[key] for w, found in held.items() if key in found}
            yield Share(dict(key), budgets.of(objective, events, mine))

    def _events(self, objective: Objective, window_s: int, tiled: bool) -> dict[_Key, Events]:
        if tiled and window_s >= compiling.TILED_FROM_S:
            queries = [compiling.tiled(objective, kind, window_s) for kind in ("bad", "total")]
        elif objective.slice_s:
            queries = list(_sliced(objective, window_s))
        else:
            queries = [compiling.bad(objective, window_s), compiling.total(objective, window_s)]
        bad, total = (self._vector(query) for query in queries)
        return {key: Events(bad.get(key, 0.0), value) for key, value in total.items()}

    def _tiled(self, objective: Objective) -> bool:
        """Whether tiles were recorded for as long as the shortest window that reads them."""
        series = f'slo:sli_total:increase5m{{sloth_id="{objective.id}"}}'
        period = windows.words(round(objective.period.days * windows.DAY))
        return bool(self._vector(f"count_over_time({series}[{period}:1h] offset 6h)"))

    def _by_step(
        self, objective: Objective, kind: str, step_s: int, period_s: int, tiled: bool
    ) -> dict[int, float]:
        """Events of each step of the last two periods, by its end; all parts together."""
        if tiled:
            query = compiling.tiled(objective, kind, step_s)
        elif objective.slice_s:
            query = _sliced(objective, step_s)[0 if kind == "bad" else 1]
        else:
            told = compiling.bad if kind == "bad" else compiling.total
            query = told(objective, step_s)
        return self._by_time(query, self._now_s - 2 * period_s // step_s * step_s, step_s)

    def _by_time(self, query: str, start_s: int, step_s: int) -> dict[int, float]:
        """The sum over all series, by time."""
        answer = self._engine.range(query, start_s * 1000, self._now_s * 1000, step_s * 1000)
        if answer.vector is None:
            return {}
        sums = np.where(answer.vector.present, answer.vector.values, 0.0).sum(axis=0)
        return dict(zip((answer.times // 1000).tolist(), sums.tolist(), strict=True))

    def _counted_history(self, objective: Objective, points: int) -> list[Moment]:
        step_s = max(60, -(-round(objective.period.days * windows.DAY) // points))
        start_s = self._now_s - (points - 1) * step_s
        queries = compiling.counted_bad(objective), compiling.counted_total(objective)
        bad, total = (self._by_time(query, start_s, step_s) for query in queries)
        moments = []
        for at_s in range(start_s, self._now_s + 1, step_s):
            events = Events(bad.get(at_s, 0.0), total.get(at_s, 0.0))
            left = budgets.of(objective, events, {}).left
            moments.append(Moment(at_s, left, events.total - events.bad, events.total))
        return moments

    def _bad_by_run(self, objective: Objective, window_s: int) -> dict[_Key, float]:
        window = windows.words(window_s)
        parts = {}
        for name in ("bad", "good", "total"):
            query = getattr(objective, name)
            if query:
                whole = split(query.replace(WINDOW, window), _SPENDERS)
                if whole is None:
                    return {}
                parts[name] = self._vector(whole)
        if "bad" in parts:
            return parts["bad"]
        return {k: v - parts["good"].get(k, 0.0) for k, v in parts["total"].items()}

    def _period_s(self, objective: Objective) -> int:
        return max(compiling.TILE_S, round(self._now_s - objective.period.since(self._now_s)))

    def _vector(self, query: str) -> dict[_Key, float]:
        vector = self._engine.instant(query, self._now_s * 1000).vector
        if vector is None:
            return {}
        return {
            tuple(sorted((k, v) for k, v in labels.items() if k not in _OWN)): float(
                vector.values[row, 0]
            )
            for row, labels in enumerate(vector.labels)
        }


def _sliced(objective: Objective, window_s: int) -> tuple[str, str]:
    every = f"[{windows.words(window_s)}:{windows.words(objective.slice_s)}]"
    share = compiling.slice_share(objective)
    return f"sum_over_time(({share}){every})", f"count_over_time(({share}){every})"


def _least_left(share: Share) -> tuple[bool, float]:
    left = share.budget.left
    return left is None, 0.0 if left is None else left
