"""What all detectors of a run share: its layouts, baselines and the present step's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.detect.baseline import (
    Baseline,
    BaselineSettings,
    Flags,
    Floats,
    Judged,
    Restarts,
)
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.single import SingleBaseline
from gradwarden_server.detect.steps import GroupStep, Step

Layouts = Callable[[str], wire.Layout | None]
Rows = NDArray[np.int64]

_LARGEST = np.finfo(np.float32).max
_BEFORE = 5
"""How many steps' values an alert shows from before the onset."""


class LayoutView:
    """A layout with the orders and groupings that detectors walk along."""

    def __init__(self, layout: wire.Layout) -> None:
        self.layout = layout

    def __len__(self) -> int:
        return len(self.layout.parameters)

    @cached_property
    def backward(self) -> Rows:
        """Rows from the loss side on; the model's order turned round where none was seen."""
        known = self.layout.backward or range(len(self) - 1, -1, -1)
        return np.asarray(list(known), np.int64)

    @cached_property
    def sizes(self) -> Floats:
        return np.array([max(1, math.prod(p.shape)) for p in self.layout.parameters], np.float64)

    @cached_property
    def half(self) -> bool:
        """Whether any parameter is of a type of 16 bits."""
        dtypes = {p.dtype.removeprefix("torch.") for p in self.layout.parameters}
        return not dtypes.isdisjoint(("bfloat16", "float16"))

    @cached_property
    def pools(self) -> list[Rows]:
        """Rows of one block that are rarely used one by one: its experts, its embeddings."""
        pools: dict[tuple[str, str], list[int]] = {}
        for row, p in enumerate(self.layout.parameters):
            if p.kind in ("expert", "embedding"):
                pools.setdefault((p.block, p.kind), []).append(row)
        return [np.array(rows, np.int64) for rows in pools.values()]

    @cached_property
    def blocks(self) -> dict[str, Rows]:
        """Weight matrices by block, from input to output; layer by layer where blocks are few."""
        matrices = [(i, p) for i, p in enumerate(self.layout.parameters) if p.kind == "matrix"]
        by_layer = len({p.block for _, p in matrices}) < 4
        blocks: dict[str, list[int]] = {}
        for row, p in matrices:
            blocks.setdefault(p.layer if by_layer else p.block, []).append(row)
        return {name: np.array(rows, np.int64) for name, rows in blocks.items()}

    @cached_property
    def block_rows(self) -> Rows:
        """The rows of :attr:`blocks` as one padded table; a pad points one past the end."""
        blocks = list(self.blocks.values())
        table = np.full((len(blocks), max(map(len, blocks), default=0)), len(self), np.int64)
        for at, rows in enumerate(blocks):
            table[at, : len(rows)] = rows
        return table

    def name(self, row: int) -> str:
        return self.layout.parameters[row].name

    def layer(self, row: int) -> str:
        return self.layout.parameters[row].layer


@dataclass(eq=False)
class GroupView:
    """One replica group's present step, with its layout and its values just before.

    Its arrays are shared by all who read them; nobody changes them.
    """

    step: GroupStep
    layout: LayoutView
    observed: Flags
    bad: Flags
    before: tuple[tuple[int, NDArray[np.float32]], ...]
    judged: Judged | None = None
    spread: tuple[int, NDArray[np.float32]] | None = None
    """The newest histogram from before this step, [L, 16], and its step: few steps have one."""

    @cached_property
    def clean(self) -> bool:
        return not bool(self.bad.any())

    @cached_property
    def norms(self) -> Floats:
        """L2 norm by row; NaN where none was observed or the gradient is not finite.

        A norm above what its float32 column can hold counts as the largest that it can.
        """
        l2 = np.minimum(self.step.column("l2"), _LARGEST).astype(np.float64)
        if self.clean and self.observed.all():
            return l2
        return np.where(self.observed & ~self.bad, l2, np.nan)

    @cached_property
    def square(self) -> float:
        """Sum of the squares of those norms that are known."""
        squares = np.square(self.norms)
        total = float(squares.sum())
        return float(np.nansum(squares)) if math.isnan(total) else total


class _Group:
    """The memory of one replica group."""

    def __init__(self, key: str, view: LayoutView, settings: BaselineSettings) -> None:
        self.key = key
        self.view = view
        self.baseline = Baseline(len(view) + len(view.pools), settings)
        self.seen = np.zeros(len(view), np.bool_)
        self.before: list[tuple[int, NDArray[np.float32]]] = []
        self.spread: tuple[int, NDArray[np.float32]] | None = None

    def judge(self, norms: Floats, open_: bool, complete: bool) -> Judged:
        pools = self.view.pools
        if not pools:
            return self.baseline.judge(norms, open_)
        count = len(self.view)
        values = np.full(count + len(pools), np.nan)
        values[:count] = norms
        if complete:
            for at, rows in enumerate(pools, start=count):
                held = norms[rows]
                square = float(held @ held)
                values[at] = math.sqrt(np.nansum(held**2) if math.isnan(square) else square)
        sparse = self.baseline.sparse  # as it was before this step
        judged = self.baseline.judge(values, open_)
        z, distance, armed = judged.z[:count], judged.distance[:count], judged.armed[:count]
        if sparse.any():
            z, distance, armed = z.copy(), distance.copy(), armed.copy()
            for at, rows in enumerate(pools, start=count):
                rare = rows[sparse[rows]]
                z[rare], distance[rare] = judged.z[at], judged.distance[at]
                armed[rare] = judged.armed[at]
        return Judged(z, distance, armed, judged.releveled[:count])


class RunContext:
    """The present step of a run as detectors read it; advanced once a step, before them."""

    def __init__(
        self, layouts: Layouts, settings: BaselineSettings, environment: str, world_size: int
    ) -> None:
        self.environment = environment
        self.world_size = world_size
        self.settings = settings
        self._layouts = layouts
        self._views: dict[str, LayoutView] = {}
        self.places = Places()
        self.attempt = 0
        self._begin(0)

    def _begin(self, attempt: int) -> None:
        self.attempt = attempt
        self.steps = 0
        self.new_attempt = True
        self.restarted = False
        self.capture: wire.Capture = ""
        self.logged: set[str] = set()
        self.groups: Mapping[int, GroupView] = {}
        self.norm = math.nan
        self.loss: float | None = None
        self.norm_judged: Judged | None = None
        self.loss_judged: Judged | None = None
        self.restarts = Restarts(self.settings)
        self._smooth: float | None = None
        self._groups: dict[int, _Group] = {}
        self._run = (SingleBaseline(self.settings), SingleBaseline(self.settings))

    @property
    def lr(self) -> float | None:
        return self.restarts.lr

    @property
    def peak_lr(self) -> float:
        return self.restarts.peak_lr

    @property
    def armed(self) -> bool:
        """Whether the global norm is judged."""
        enough = self._run[0].known >= self.settings.armed_after
        return self.restarts.open and enough

    @property
    def waiting(self) -> str:
        """How far the baseline is from being armed, in words."""
        known, wanted = self._run[0].known, self.settings.armed_after
        if known < wanted:
            return f"{known} of {wanted} steps"
        return f"the learning rate to stop rising, or step {self.settings.armed_by_step}"

    def look(self, step: Step) -> dict[int, GroupView]:
        """The groups of a step with nothing learned from it."""
        views = {}
        for group, held in step.groups.items():
            known = self._groups.get(group)
            before = known.before if known is not None and known.key == held.layout else []
            views[group] = GroupView(
                step=held,
                layout=self._view(held),
                observed=held.observed,
                bad=held.bad,
                before=tuple(before),
                spread=known.spread if known is not None and known.key == held.layout else None,
            )
        return views

    def observe(self, step: Step) -> None:
        """Make ``step`` the present one: restart, judge and learn."""
        self.new_attempt = step.attempt != self.attempt
        if self.new_attempt:
            self._begin(step.attempt)
        if step.events:
            self.places.observe(step)
        views = self.look(step)
        self.loss = step.scalar("loss")
        for rank in step.ranks.values():
            self.logged.update(rank.scalars)
        marked = any(event.get("kind") == "mark" for _, event in step.events)
        self.restarted = False
        if step.eventful and not marked:
            self.groups, self.norm, self.norm_judged, self.loss_judged = {}, math.nan, None, None
            return
        changed = self._changed(views)
        if step.eventful:
            again = self.restarts.observe(None, None, marked)
        else:
            again = self.restarts.observe(step.scalar("lr"), step.scalar("tokens"), marked)
        if again or changed:
            self._restart()
        self._judge(step, views)

    def _changed(self, views: Mapping[int, GroupView]) -> bool:
        """Whether other parameters train now than before; also enrols new groups."""
        changed = False
        for group, view in views.items():
            known = self._groups.get(group)
            if known is None or known.key != view.step.layout or len(known.seen) != len(view.bad):
                changed = changed or known is not None
                known = _Group(view.step.layout, view.layout, self.settings)
                self._groups[group] = known
            if known.seen.all():
                continue
            fresh = view.observed & ~known.seen
            if fresh.any() and known.seen.any():
                kinds = [view.layout.layout.parameters[i].kind for i in np.flatnonzero(fresh)]
                changed = changed or not set(kinds) <= {"expert", "embedding"}
            known.seen |= view.observed
        return changed

    def _restart(self) -> None:
        self.restarted = True
        for single in self._run:
            single.restart()
        for known in self._groups.values():
            known.baseline.restart()

    def _judge(self, step: Step, views: dict[int, GroupView]) -> None:
        open_ = self.restarts.open
        squares, whole = 0.0, bool(views) and len(views) == len(self._groups)
        for group, view in views.items():
            known = self._groups[group]
            view.judged = known.judge(view.norms, open_, view.step.complete)
            squares += view.square
            whole = whole and view.clean and view.step.complete
            known.before = [*known.before, (step.step, view.step.column("absmax").copy())][
                -_BEFORE:
            ]
            known.spread = _histogram(step.step, view.step) or known.spread
            self.capture = view.step.capture
        self.groups = views
        self.norm = math.sqrt(squares) if whole else math.nan
        self.norm_judged = self.loss_judged = None
        if views:
            self.steps += 1
            self.norm_judged = self._run[0].judge(self.norm, open_)
        if self.loss is not None and math.isfinite(self.loss):
            share = 2 / (self.settings.loss_steps + 1)
            last = self.loss if self._smooth is None else self._smooth
            self._smooth = (1 - share) * last + share * self.loss
            self.loss_judged = self._run[1].judge(self._smooth, open_)

    def _view(self, held: GroupStep) -> LayoutView:
        view = self._views.get(held.layout)
        if view is None or len(view) != len(held.values):
            layout = self._layouts(held.layout)
            if layout is None or len(layout.parameters) != len(held.values):
                rows = range(len(held.values))
                layout = wire.Layout(
                    tuple(wire.Parameter(f"row {i}", (), "", "", "other") for i in rows)
                )
            view = self._views[held.layout] = LayoutView(layout)
        return view

    def state(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "steps": self.steps,
            "capture": self.capture,
            "logged": sorted(self.logged),
            "smooth": self._smooth,
            "places": self.places.state(),
            "restarts": self.restarts.state(),
            "run": [b.state() for b in self._run],
            "groups": {
                group: {
                    "layout": g.key,
                    "rows": len(g.seen),
                    "baseline": g.baseline.state(),
                    "seen": g.seen,
                    "before": [[at, values] for at, values in g.before],
                    "spread": g.spread,
                }
                for group, g in self._groups.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin(state["attempt"])
        self.steps, self.capture = state["steps"], state["capture"]
        self.logged, self._smooth = set(state["logged"]), state["smooth"]
        self.restarts.restore(state["restarts"])
        self.places.restore(state["places"])
        for baseline, held in zip(self._run, state["run"], strict=True):
            baseline.restore(held)
        for group, held in state["groups"].items():
            empty = np.zeros((held["rows"], 0), np.float32)
            view = self._view(GroupStep(empty, (), held["layout"], 0))
            made = _Group(held["layout"], view, self.settings)
            made.baseline.restore(held["baseline"])
            made.seen = held["seen"]
            made.before = [(at, values) for at, values in held["before"]]
            if held["spread"] is not None:
                made.spread = held["spread"][0], held["spread"][1]
            self._groups[int(group)] = made


def _histogram(number: int, held: GroupStep) -> tuple[int, NDArray[np.float32]] | None:
    """The step's number and its histogram, [L, 16]; None where it has none."""
    first = wire.HISTOGRAM[0]
    if first not in held.quantities:
        return None
    column = held.column(first)
    if not (column == column).any():
        return None
    at = held.quantities.index(first)
    return number, held.values[:, at : at + len(wire.HISTOGRAM)].copy()
