"""Steps in buckets, and one value over steps: what the reading of a run is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)

_MOST = 2**63 - 1
_NO_STEPS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """Per key and bucket: min, max and last of the finite values, and the non-finite count.

    ``reported`` names every series that is no layer's, asked for or not.
    """

    step: list[int]
    time_ns: list[int]
    keys: dict[str, dict[str, list[float | int | None]]]
    reported: list[str]


class Buckets:
    """Steps [first, last] in at most ``limit`` buckets of a power-of-two width."""

    def __init__(
        self, span: tuple[int, int], first: int | None, last: int | None, limit: int
    ) -> None:
        self.first = span[0] if first is None else max(first, span[0])
        self.last = max(self.first, span[1] if last is None else min(last, span[1]))
        self.width = 1
        while self._count(self.width) > limit:
            self.width *= 2
        self.count = self._count(self.width)
        self.origin = self.first // self.width * self.width
        self._shift = self.width.bit_length() - 1

    def _count(self, width: int) -> int:
        return self.last // width - self.first // width + 1

    def columns(self, steps: Ints, until: float) -> tuple[Ints, Ints]:
        """Indices of the steps within range and up to ``until``, by column, and the columns."""
        kept = np.flatnonzero((steps >= self.first) & (steps <= min(self.last, until)))
        columns = self.places(steps[kept])
        order = np.argsort(columns, kind="stable")
        return kept[order], columns[order]

    def places(self, steps: Ints) -> Ints:
        """In which column each of these steps falls; a shift costs less than a division."""
        places: Ints = (steps - self.origin) >> self._shift
        return places

    def starts(self) -> list[int]:
        """The first step of each bucket."""
        return [self.origin + i * self.width for i in range(self.count)]


class Curve:
    """Values of one key, batch after batch; a later one for the same step takes its place."""

    def __init__(self) -> None:
        self._steps: list[Ints] = []
        self._values: list[NDArray[np.generic]] = []
        self._origin: list[tuple[int, int, int]] = []

    def add(
        self,
        steps: Ints,
        values: NDArray[np.generic],
        rank: int,
        until: float,
        group: int = 0,
    ) -> None:
        """Take a batch of a rank of a group, of which steps up to ``until`` count."""
        if steps.size:
            self._steps.append(steps)
            self._values.append(values)
            self._origin.append((rank, int(min(until, _MOST)), group))

    def of_first_rank(self, grid: Buckets) -> tuple[Ints, NDArray[np.generic]]:
        """Per step in order, the value that the lowest rank gave."""
        of_rank = self._by_rank(grid)
        if not of_rank:
            return _NO_STEPS, np.zeros(0)
        first, *others = (of_rank[rank] for rank in sorted(of_rank))
        steps = _joined(first[0])
        if _rises(steps) and all(np.array_equal(steps, _joined(told)) for told, _ in others):
            return steps, _joined(first[1])  # ranks in step: the others have nothing to add
        steps, values, ranks, _ = self._flat(grid)
        order = np.lexsort((-ranks, steps))
        last = order[_ends(steps[order])]
        return steps[last], values[last]

    def summed(self, grid: Buckets) -> tuple[Ints, Doubles]:
        """Per step in order, the sum over groups of what the lowest rank of each gave."""
        steps, values, ranks, groups = self._flat(grid)
        if _rises(steps):
            return steps, values.astype(np.float64)
        order = np.lexsort((-ranks, groups, steps))
        lowest = order[_ends(steps[order]) | _ends(groups[order])]
        steps, numbers = steps[lowest], values[lowest].astype(np.float64)
        if not steps.size:
            return steps, numbers
        ends = np.flatnonzero(_ends(steps))
        starts = np.concatenate([[0], ends[:-1] + 1])
        return steps[ends], np.add.reduceat(numbers, starts)

    def _by_rank(self, grid: Buckets) -> dict[int, tuple[list[Ints], list[NDArray[np.generic]]]]:
        """Steps within the grid and their values, as each rank told them, batch after batch."""
        parts: dict[int, tuple[list[Ints], list[NDArray[np.generic]]]] = {}
        for steps, values, (rank, until, _) in zip(
            self._steps, self._values, self._origin, strict=True
        ):
            last = min(until, grid.last)
            of_rank = parts.setdefault(rank, ([], []))
            if steps.min() >= grid.first and steps.max() <= last:
                of_rank[0].append(steps)
                of_rank[1].append(values)
                continue
            kept = (steps >= grid.first) & (steps <= last)
            of_rank[0].append(steps[kept])
            of_rank[1].append(values[kept])
        return parts

    def _flat(self, grid: Buckets) -> tuple[Ints, NDArray[np.generic], Ints, Ints]:
        """Steps within the grid, their values, ranks and groups."""
        if not self._steps:
            return _NO_STEPS, np.zeros(0), _NO_STEPS, _NO_STEPS
        steps, values = np.concatenate(self._steps), np.concatenate(self._values)
        origin = np.array(self._origin, dtype=np.int64)
        origin = np.repeat(origin, [part.size for part in self._steps], axis=0)
        kept = (steps >= grid.first) & (steps <= np.minimum(origin[:, 1], grid.last))
        return steps[kept], values[kept], origin[kept, 0], origin[kept, 2]


def table(
    grid: Buckets,
    times: Curve,
    curves: dict[str, tuple[Ints, NDArray[np.generic]]],
    reported: list[str],
) -> SeriesTable:
    """All curves over the buckets in which any frame fell."""
    steps, when = times.of_first_rank(grid)
    of_step = grid.places(steps)
    first = np.flatnonzero(_begins(of_step))
    columns = of_step[first]
    slot_of = np.zeros(grid.count, np.int64)  # a search for each value would cost more
    slot_of[columns] = np.arange(columns.size)
    keys = {
        key: _bucketed(slot_of[grid.places(at)], values, columns)
        for key, (at, values) in curves.items()
    }
    starts = (grid.origin + columns * grid.width).tolist()
    return SeriesTable(starts, when[first].tolist(), keys, reported)


def empty(size: int = 0) -> dict[str, list[float | int | None]]:
    """The columns of a key that nobody reported."""
    return {
        "min": [None] * size,
        "max": [None] * size,
        "last": [None] * size,
        "nonfinite": [0] * size,
    }


def _bucketed(
    slots: Ints, values: NDArray[np.generic], columns: Ints
) -> dict[str, list[float | int | None]]:
    cell = empty(columns.size)
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        cell["nonfinite"] = np.bincount(slots[~finite], minlength=columns.size).tolist()
        slots, numbers = slots[finite], numbers[finite]
    if not slots.size:
        return cell
    starts = np.flatnonzero(_begins(slots))
    filled = {
        "min": np.minimum.reduceat(numbers, starts),
        "max": np.maximum.reduceat(numbers, starts),
        "last": numbers[np.append(starts[1:], slots.size) - 1],
    }
    for name, found in filled.items():
        if found.size == columns.size:
            cell[name] = found.tolist()
            continue
        column = np.full(columns.size, None, object)
        column[slots[starts]] = found.tolist()
        cell[name] = column.tolist()
    return cell


def _joined(parts: list[NDArray[Number]]) -> NDArray[Number]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _begins(ordered: Ints) -> NDArray[np.bool_]:
    """Where a run of equal numbers begins."""
    return np.append(ordered.size > 0, ordered[1:] != ordered[:-1])[: ordered.size]


def _ends(ordered: Ints) -> NDArray[np.bool_]:
    """Where a run of equal numbers ends."""
    return np.append(ordered[1:] != ordered[:-1], ordered.size > 0)[: ordered.size]


def _rises(steps: Ints) -> bool:
    return bool((steps[1:] > steps[:-1]).all())
