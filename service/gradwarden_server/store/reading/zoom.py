"""Heatmaps straight from columns: roll-ups where they say what the steps would, else steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gradwarden import wire
from gradwarden_server.store.columns import rollup
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.log.segments import RAW, Segment, SegmentReader
from gradwarden_server.store.reading.curves import Buckets, Doubles, Ints
from gradwarden_server.store.reading.heat import Canvas
from gradwarden_server.store.reading.pieces import RMS, Quantity
from gradwarden_server.store.shelves.spine import Spine

Placed = Callable[[str], tuple[Ints, Doubles | None]]
"""Of a layout's hash: which rows of the picture its rows are, and their factors."""


class Zoom:
    """Which segments a picture takes from columns alone; ``rest`` need whole matrices.

    A segment is rolled up as a whole: of one that reaches beyond the picture's steps, or into
    what a later attempt redid, the steps are read. Shards have to be joined, and what another
    rank of the group told beside a segment must not count twice: these are the rest.
    """

    def __init__(
        self,
        grid: Buckets,
        until: Mapping[int, float],
        entries: Sequence[LogEntry],
        segments: Sequence[Segment],
    ) -> None:
        fitting = [width for width in rollup.WIDTHS if width <= grid.width]
        self.width = max(fitting, default=0)
        self._grid = grid
        beside = _Beside(entries, segments)
        self._until = until
        self._rolled: list[Segment] = []
        self._stepped: list[Segment] = []
        self.rest: list[Segment] = []
        for segment in segments:
            if not segment.matrices:
                continue
            last = min(grid.last, until.get(segment.ordinal, math.inf))
            inside = grid.first <= segment.step0 and segment.step1 <= last
            if segment.shards > 1 or beside.others(segment):
                self.rest.append(segment)
            else:
                (self._rolled if self.width and inside else self._stepped).append(segment)

    def paint(
        self, canvas: Canvas, quantity: Quantity, reader: SegmentReader, placed: Placed
    ) -> None:
        """Add what these segments hold.

        Raises:
            Damaged: one of them is.
        """
        column = "l2" if quantity.name == RMS else quantity.name
        whole = {segment.id for segment in self._rolled}
        rolled: dict[int, list[tuple[Segment, Spine]]] = defaultdict(list)
        for segment, told in reader.spines([*self._rolled, *self._stepped]):
            least = rollup.WIDTHS[segment.held == "coarse"]
            width = told.width_of(column, max(self.width, least))
            fits = segment.id in whole and width == self.width
            if width and (fits or segment.held != RAW):
                rolled[width].append((segment, told))
            elif segment.held == RAW:
                self._paint_steps(canvas, quantity, reader, segment, told, placed)
        for width, some in rolled.items():
            self._paint_rolled(canvas, quantity, reader, width, some, placed)

    def _paint_rolled(
        self,
        canvas: Canvas,
        quantity: Quantity,
        reader: SegmentReader,
        width: int,
        told: Sequence[tuple[Segment, Spine]],
        placed: Placed,
    ) -> None:
        spines = {segment.id: spine for segment, spine in told}
        column = "l2" if quantity.name == RMS else quantity.name
        newest = quantity.columns == wire.SLOW
        shown = "last" if newest else "max"
        wanted = (shown, "nonfinite") if newest else (shown,)
        for segment, numbers, found in reader.rollups(told, width, column, wanted):
            rows, scale = placed(segment.layout)
            kept, columns = self._within(numbers, width)
            values = found[shown][kept]
            if scale is not None:
                values = (values * scale).astype(np.float32)
            bad = found["nonfinite"][kept] if newest else None
            order = _last_steps(spines[segment.id], column, width)[kept]
            canvas.add_rolled(rows, columns, values, order, bad)
            canvas.mark_times(*_first_times(spines[segment.id], column, self._grid))
        for kind, name in enumerate(("nan", "inf")):
            bad_ones = [(s, p) for s, p in told if p.constants.get(name) != 0]
            summed = [(s, p) for s, p in bad_ones if p.width_of(name, width) == width]
            for segment, spine in bad_ones:
                if spine.width_of(name, width) != width and segment.held == RAW:
                    self._count_steps(canvas, reader, segment, spine, name, kind, placed)
            for segment, numbers, found in reader.rollups(summed, width, name, ("mean", "count")):
                rows, _ = placed(segment.layout)
                kept, columns = self._within(numbers, width)
                means = np.nan_to_num(found["mean"][kept]).astype(np.float64)
                canvas.add_counts(rows, columns, np.rint(means * found["count"][kept]), kind)

    def _paint_steps(
        self,
        canvas: Canvas,
        quantity: Quantity,
        reader: SegmentReader,
        segment: Segment,
        told: Spine,
        placed: Placed,
    ) -> None:
        """The same from the values of each step."""
        column = "l2" if quantity.name == RMS else quantity.name
        if column not in told.columns:
            return
        rows, scale = placed(segment.layout)
        frames = told.frames_of(column)
        order = np.argsort(told.steps[frames], kind="stable")
        steps = told.steps[frames][order]
        until = self._until.get(segment.ordinal, math.inf)
        kept, columns = self._grid.columns(steps, until)
        if not kept.size:
            return
        values = reader.column(segment, told, column)[order[kept]]
        if scale is not None:
            values = (values * scale).astype(np.float32)
        bad = np.isinf(values)
        values = np.where(bad, np.float32(np.nan), values)
        newest = quantity.columns == wire.SLOW
        canvas.add_rolled(rows, columns, values, steps[kept], bad if newest else None)
        times = told.series_times_ns()[frames][order[kept]]
        found, first = np.unique(columns, return_index=True)
        canvas.mark_times(found, times[first])
        for kind, name in enumerate(("nan", "inf")):
            if told.constants.get(name) != 0:
                self._count_steps(canvas, reader, segment, told, name, kind, placed)

    def _count_steps(
        self,
        canvas: Canvas,
        reader: SegmentReader,
        segment: Segment,
        told: Spine,
        name: str,
        kind: int,
        placed: Placed,
    ) -> None:
        if name not in told.columns:
            return
        rows, _ = placed(segment.layout)
        until = self._until.get(segment.ordinal, math.inf)
        steps = told.steps[told.frames_of(name)]
        order = np.argsort(steps, kind="stable")
        kept, columns = self._grid.columns(steps[order], until)
        if kept.size:
            counts = np.nan_to_num(reader.column(segment, told, name)[order[kept]])
            canvas.add_counts(rows, columns, counts.astype(np.float64), kind)

    def _within(self, numbers: Ints, width: int) -> tuple[Ints, Ints]:
        """Which buckets begin within the picture, and in which columns."""
        columns = (numbers * width - self._grid.origin) // self._grid.width
        kept = np.flatnonzero((columns >= 0) & (columns < self._grid.count))
        return kept, columns[kept]


def _last_steps(told: Spine, column: str, width: int) -> Ints:
    """The last step of each bucket: a bucket that two segments share is newer in the later."""
    steps = np.sort(told.steps[told.frames_of(column)])
    _, starts = rollup.buckets(steps, width)
    last: Ints = steps[np.append(starts[1:], steps.size) - 1]
    return last


def _first_times(told: Spine, column: str, grid: Buckets) -> tuple[Ints, Ints]:
    """Columns of the picture and the time of the first frame in each."""
    at = told.frames_of(column)
    steps, times = told.steps[at], told.series_times_ns()[at]
    columns = (steps - grid.origin) // grid.width
    inside = (columns >= 0) & (columns < grid.count)
    found, first = np.unique(columns[inside], return_index=True)
    return found, times[inside][first]


class _Beside:
    """Who else of a group told matrices, and of which steps."""

    def __init__(self, entries: Sequence[LogEntry], segments: Sequence[Segment]) -> None:
        self._told: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for entry in entries:
            if entry.layout:
                key = entry.ordinal, entry.group
                self._told[key].append((entry.rank, entry.step0, entry.step1))
        for segment in segments:
            if segment.matrices:
                key = segment.ordinal, segment.group
                self._told[key].append((segment.rank, segment.step0, segment.step1))

    def others(self, segment: Segment) -> bool:
        return any(
            rank != segment.rank and step0 <= segment.step1 and step1 >= segment.step0
            for rank, step0, step1 in self._told[segment.ordinal, segment.group]
        )
