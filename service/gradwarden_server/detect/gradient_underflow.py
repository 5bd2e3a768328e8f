"""8 GradientUnderflow: gradients of half precision are too small for it and become zeros.

A value below 2^-14, float16's smallest normal number, loses precision, and one below 2^-24 is
gone. What counts is the value that backward computed: multiplied by the loss scale where one is
used. That backward computes in float16 is known from autocast, else from the parameters' own
type, else from a loss scale. The average over ranks is smaller than what each of them computed,
by up to the root of their number, and that is allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Flags, Floats
from gradwarden_server.detect.context import GroupView, LayoutView, RunContext
from gradwarden_server.detect.losses import told
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_KINDS = {"matrix", "head", "adapter", "expert"}
"""What is multiplied in the narrow type; norms and sums are computed in float32."""
_NARROW = ("float16", "float8")
_BINS = np.arange(len(wire.HISTOGRAM))
_LOWER: Floats = np.asarray(4.0 * _BINS - 42.0, np.float64)
"""log2 of the lower edges; the first bin has none, and counts only as a whole."""
_LARGEST_SCALE = 2.0**24


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/half_precision.yaml."""

    smallest_normal: float
    share: float
    steps: int
    observations: int
    least_values: int
    advised_share: float
    converged_share: float


@dataclass(slots=True)
class _Rows:
    """Since which step each row of a group has underflown, and how often it was seen to."""

    layout: str
    since: Floats
    times: Floats
    narrow: Flags
    concerned: bool
    """Whether any row is computed in a narrow type."""


class GradientUnderflow(Detector):
    """See the module."""

    name: ClassVar[str] = "gradient_underflow"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._begin()

    def _begin(self) -> None:
        self._groups: dict[int, _Rows] = {}
        self._autocast = ""
        self._scale: float | None = None
        self._binned = False
        self._concerned = False
        self._highest_loss = 0.0

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._begin()
        for _, event in step.events:
            if event.get("kind") == "manner":
                self._take(str(event.get("autocast") or ""))
        if not ctx.groups:
            return ()
        scale = told(step, "loss_scale")
        if scale is not None and scale > 0:
            if self._scale is None:
                self._groups = {}
            self._scale = scale
        if ctx.loss is not None and self._highest_loss < ctx.loss < math.inf:
            self._highest_loss = ctx.loss
        looked = sick = False
        for group, view in ctx.groups.items():
            known = self._groups.get(group)
            if known is not None and known.layout == view.step.layout and not known.concerned:
                continue
            counts = _histogram(view)
            if counts is None or ctx.capture == "post_clip" or not view.clean:
                continue
            rows = self._rows(group, view.layout, view.step.layout)
            if rows.concerned:
                looked = True
                sick = self._judge(step, ctx, view, rows, counts) or sick
        if not looked:
            return ()
        if not sick:
            self._incident.healthy_step(1)
        return self._incident.conditions(self)

    def _take(self, autocast: str) -> None:
        if autocast != self._autocast:
            self._autocast, self._groups = autocast, {}

    def _rows(self, group: int, view: LayoutView, layout: str) -> _Rows:
        self._binned = True
        held = self._groups.get(group)
        if held is None or held.layout != layout:
            narrow = np.array([self._computes_narrow(p) for p in view.layout.parameters], np.bool_)
            nothing = np.full(len(view), np.nan)
            held = _Rows(layout, nothing, np.zeros(len(view)), narrow, bool(narrow.any()))
            self._groups[group] = held
            self._concerned = held.concerned
        return held

    def _computes_narrow(self, parameter: wire.Parameter) -> bool:
        dtype = parameter.dtype.removeprefix("torch.")
        if parameter.kind not in _KINDS:
            return False
        if self._autocast:
            return self._autocast.startswith(_NARROW)
        return dtype.startswith(_NARROW) or (dtype == "float32" and self._scale is not None)

    def _judge(
        self, step: Step, ctx: RunContext, view: GroupView, rows: _Rows, counts: Floats
    ) -> bool:
        """Whether layers of this group are sick."""
        p = self.params
        total = counts.sum(axis=1)
        seen = rows.narrow & (total >= p.least_values)
        edge = math.log2(p.smallest_normal) - math.log2(self._scale or 1.0)
        edge -= 0.5 * math.log2(max(1, ctx.world_size))
        low = seen & (_below(counts, edge) > p.share * total) & self._learning(ctx)
        rows.times = np.where(low, rows.times + 1, np.where(seen, 0, rows.times))
        rows.since = np.where(low, np.where(rows.times == 1, step.step, rows.since), rows.since)
        lasting = low & (rows.times >= p.observations) & (step.step - rows.since >= p.steps)
        if not lasting.any():
            return False
        worst = np.flatnonzero(lasting)
        if not self._incident.worse_than("ticket"):
            self._incident.sign("ticket", self._words(step, view, worst, counts, edge))
        self._incident.clean = 0
        return True

    def _learning(self, ctx: RunContext) -> bool:
        """Where nothing is left to learn, small gradients are as they should be."""
        if ctx.loss is None or not self._highest_loss:
            return True
        return not 0 <= ctx.loss < self.params.converged_share * self._highest_loss

    def _words(
        self, step: Step, view: GroupView, rows: NDArray[np.int64], counts: Floats, edge: float
    ) -> dict[str, str]:
        share = _below(counts[rows], edge) / counts[rows].sum(axis=1)
        order = rows[np.argsort(-share)]
        layers = [view.layout.layer(int(row)) for row in order]
        more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
        return {
            "summary": f"{share.max():.0%} of the gradient values of {layers[0]} are too small for "
            f"float16, {len(layers)} layers",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": layers[0],
            "layers": ", ".join(layers[:5]) + more,
            "cause": f"more than {self.params.share:.0%} of the non-zero values lie below 2^-14 "
            + (f"at loss scale {self._scale:g}" if self._scale else "and no loss scale is used")
            + ": they lose precision or become zero",
            "first_action": self._advice(counts[rows], edge),
        }

    def _advice(self, counts: Floats, edge: float) -> str:
        scale = self._scale or 1.0
        total = counts.sum(axis=1)
        wanted = scale
        while wanted < _LARGEST_SCALE:
            wanted *= 2
            shift = math.log2(wanted / scale)
            if (_below(counts, edge - shift) <= self.params.advised_share * total).all():
                break
        if self._scale is None:
            return (
                "Scale the loss: torch.amp.GradScaler() starts at 65536 and finds its level; "
                f"{wanted:g} would do here. Or train in bfloat16, which needs no scale."
            )
        return (
            f"Raise the loss scale from {scale:g} to about {wanted:g} (init_scale, or a shorter "
            "growth_interval). Where that overflows, train in bfloat16."
        )

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._concerned:
            return Coverage(self.alert, "armed")
        if ctx.steps < self.params.steps:
            return Coverage(self.alert, "waiting", f"{ctx.steps} of {self.params.steps} steps")
        if self._binned:
            why = "nothing is computed in float16, so there is nothing to watch"
        else:
            why = (
                'no histogram was captured: gradwarden.watch(model, optimizer, preset="standard"); '
                "a fused optimizer's scaled gradients have none"
            )
        return Coverage(self.alert, "blind", why)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "groups": {
                group: [rows.layout, rows.since, rows.times, rows.narrow, rows.concerned]
                for group, rows in self._groups.items()
            },
            "autocast": self._autocast,
            "scale": self._scale,
            "told": [self._binned, self._concerned, self._highest_loss],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._groups = {int(group): _Rows(*held) for group, held in state["groups"].items()}
        self._autocast, self._scale = state["autocast"], state["scale"]
        self._binned, self._concerned, self._highest_loss = state["told"]


def _histogram(view: GroupView) -> Floats | None:
    """Counts by row and bin, zeros where a row has none; None where the step has none."""
    names = view.step.quantities
    if wire.HISTOGRAM[0] not in names:
        return None
    first = names.index(wire.HISTOGRAM[0])
    counts = view.step.values[:, first : first + len(wire.HISTOGRAM)]
    if np.isnan(counts[:, 0]).all():
        return None
    return np.nan_to_num(counts.astype(np.float64))


def _below(counts: Floats, edge: float) -> Floats:
    """How many values lie below 2^edge, by row; a bin that it cuts counts in part."""
    part = np.clip((edge - _LOWER) / 4.0, 0.0, 1.0)
    part[0] = float(edge >= _LOWER[1])
    return np.asarray(counts @ part, np.float64)
