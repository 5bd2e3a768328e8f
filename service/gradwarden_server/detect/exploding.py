"""3 ExplodingGradient: the norm leaves its baseline upwards, once, often, or for good.

Judged before clipping only; data captured after it reads 1.0 whatever happens. From birth the
norm is compared with the weights' own: what begins at zero has no size to be compared with and
is left out. Where weights are not measured (``preset="light"``) a parameter's norm is taken as
the square root of its rows, which is what unit-gain initialisation gives, and an embedding's as
the square root of its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import numpy as np

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Flags, Floats
from gradwarden_server.detect.context import GroupView, LayoutView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.detect.updates import Updates
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/exploding.yaml."""

    z: float
    ratio: float
    ticket_steps: int
    ticket_window_steps: int
    layer_steps: int
    negligible_share: float
    page_steps: int
    page_window_steps: int
    loss_z: float
    update_ratio: float
    update_values: int
    page_ratio: float
    page_ratio_steps: int
    birth_ratio: float
    birth_steps: int
    birth_window_steps: int
    clean_steps: int


class _High:
    """Which rows were high in the last steps, and how often."""

    def __init__(self, rows: int, window: int) -> None:
        self.ring = np.zeros((window, rows), np.bool_)
        self.times = np.zeros(rows, np.int64)
        self.at = self.quiet = 0

    def add(self, now: Flags, often: int) -> bool:
        """Take one step; whether a row is high now and was so often."""
        found = bool(now.any())
        self.quiet = 0 if found else self.quiet + 1
        if self.quiet > len(self.ring):
            return False  # the whole window is empty
        self.times += now
        self.times -= self.ring[self.at]
        self.ring[self.at] = now
        self.at = (self.at + 1) % len(self.ring)
        return found and bool((now & (self.times >= often)).any())

    def state(self) -> list[Any]:
        return [self.ring, self.times, self.at, self.quiet]

    @classmethod
    def restored(cls, state: Sequence[Any]) -> _High:
        made = cls(0, 0)
        made.ring, made.times, made.at, made.quiet = state
        return made


class ExplodingGradient(Detector):
    """See the module."""

    name: ClassVar[str] = "exploding_gradient"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._reset()

    def _reset(self) -> None:
        self._high: list[bool] = []
        self._layers: dict[int, _High] = {}
        self._row = 0
        self._births = 0
        self._weights: dict[int, Floats] = {}
        self._updates: dict[int, Updates] = {}
        self._excess: list[float] = []

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt or ctx.restarted:
            births, weights = self._births, self._weights
            self._reset()
            if not ctx.new_attempt:
                self._births, self._weights = births, weights
        judged = ctx.norm_judged
        if not ctx.groups or judged is None or ctx.capture == "post_clip":
            return ()
        p = self.params
        high = bool(judged.high(p.z, p.ratio)[0])
        self._high = [*self._high, high][-p.page_window_steps :]
        often = [self._one_layer(g, view) for g, view in ctx.groups.items()]  # all must learn
        excess = [self._farther(g, view, high) for g, view in ctx.groups.items()]
        farthest = max((e for e in excess if not math.isnan(e)), default=math.nan)
        self._excess = [*self._excess, farthest][-p.page_window_steps :]
        far = float(judged.distance[0]) > math.log10(p.page_ratio) and step.stepped is not False
        self._row = self._row + 1 if far and ctx.capture == "unclipped" else 0
        severity = self._weigh(ctx, high, any(often))
        born = self._from_birth(ctx)
        if severity is not None:
            if not self._incident.worse_than(severity):
                self._incident.sign(severity, self._words(step, ctx))
            self._incident.clean = 0
        elif born:
            if not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._birth_words(step, ctx))
            self._incident.clean = 0
        elif judged.releveled[0]:
            self._incident.sign("note", self._relevel_words(step, ctx))
        else:
            self._incident.healthy_step(p.clean_steps)
        return self._incident.conditions(self)

    def _one_layer(self, group: int, view: GroupView) -> bool:
        """Whether one layer is high now and was so often; a single spike of one is no news."""
        p = self.params
        now = self._rows(view)
        held = self._layers.get(group)
        if held is None or len(held.times) != len(now):
            held = self._layers[group] = _High(len(now), p.ticket_window_steps)
        return held.add(now, p.layer_steps)

    def _rows(self, view: GroupView) -> Flags:
        """Rows that are high, but for those that used to be nothing beside the whole.

        A bias before batch norm has a gradient of rounding errors alone until the norm is fixed.
        """
        p = self.params
        assert view.judged is not None
        now = view.judged.high(p.z, p.ratio)
        if not now.any():
            return now
        usual = view.norms / view.judged.ratio
        least = p.negligible_share * math.sqrt(float(np.nansum(np.square(usual))))
        return np.asarray(now & (usual > least), np.bool_)

    def _farther(self, group: int, view: GroupView, high: bool) -> float:
        """Decades by which weights moved farther than usual in this step; NaN if unknown."""
        found = view.step.updates
        if found is None:
            return math.nan
        known = self._updates.get(group)
        if known is None or known.layout != view.step.layout:
            known = self._updates[group] = Updates(view.step.layout, len(view.layout))
        excess = known.excess(*found)
        if not high:
            known.learn(*found)
        return excess

    def _moves_far(self) -> bool:
        """Whether the optimizer really takes larger steps: Adam and clipping may prevent it."""
        p = self.params
        told = [e for e in self._excess if not math.isnan(e)]
        return len(told) >= p.update_values and median(told) > math.log10(p.update_ratio)

    def _weigh(self, ctx: RunContext, high: bool, one_layer: bool) -> Severity | None:
        p = self.params
        loss = ctx.loss_judged
        loss_up = loss is not None and bool(loss.z[0] > p.loss_z)
        if self._row >= p.page_ratio_steps:
            return "page"
        if high and sum(self._high) >= p.page_steps and (loss_up or self._moves_far()):
            return "page"
        often = high and sum(self._high[-p.ticket_window_steps :]) >= p.ticket_steps
        if often or one_layer:
            return "ticket"
        return "note" if high else None

    def _from_birth(self, ctx: RunContext) -> bool:
        p = self.params
        if ctx.steps > p.birth_window_steps or not math.isfinite(ctx.norm):
            return False
        gradient = weights = 0.0
        for group, view in ctx.groups.items():
            sizes = self._sizes(group, view)
            sized = sizes > 0
            gradient += float(np.nansum(np.square(view.norms[sized])))
            weights += float(sizes[sized].sum())
        huge = gradient > p.birth_ratio**2 * weights > 0
        self._births += huge
        return huge and self._births >= p.birth_steps

    def _sizes(self, group: int, view: GroupView) -> Floats:
        """Square of each weight's norm as first measured: what was zero then stays zero."""
        known = self._weights.get(group)
        if known is None or len(known) != len(view.layout):
            known = self._weights[group] = np.full(len(view.layout), np.nan)
        now = np.square(view.step.column("weight_l2").astype(np.float64))
        fresh = np.isnan(known)
        known[fresh] = now[fresh]
        return np.where(np.isnan(known), _estimated(view.layout), known)

    def _words(self, step: Step, ctx: RunContext) -> dict[str, str]:
        p = self.params
        judged = ctx.norm_judged
        assert judged is not None
        ratio = float(judged.ratio[0])
        start, shares = "", ""
        for view in ctx.groups.values():
            assert view.judged is not None
            high = self._rows(view)
            walk = [int(r) for r in view.layout.backward if high[r]]
            if walk:
                start = view.layout.layer(walk[0])
                shares = f"{len(walk)} of {len(high)} parameters above {p.ratio:g}x"
                ratio = ratio if judged.high(p.z, p.ratio)[0] else view.judged.ratio[walk[0]]
                break
        where = f", growth starts at {start}" if start else ", over all layers alike"
        lr = "" if ctx.lr is None else f" (now {ctx.lr:g})"
        return _common(step, ctx) | {
            "summary": f"gradient {ratio:.3g}x its baseline at step {step.step}{where}",
            "layer": start or "all layers alike",
            "cause": f"norm {ctx.norm:.3g}, {ratio:.3g}x the median of the steps before"
            + (f"; {shares}" if shares else "")
            + (f"; updates of the weights above {p.update_ratio:g}x" if self._moves_far() else ""),
            "first_action": f"Lower the learning rate{lr} or turn on gradient clipping, from the "
            "last good checkpoint; if one batch did it, look at that batch.",
        }

    def _birth_words(self, step: Step, ctx: RunContext) -> dict[str, str]:
        view = max(ctx.groups.values(), key=lambda v: float(np.nansum(v.norms)))
        walk = view.layout.backward[np.isfinite(view.norms[view.layout.backward])]
        norms = np.maximum(view.norms[walk], np.finfo(np.float32).tiny)
        start = int(walk[int(np.argmax(norms[1:] / norms[:-1])) + 1] if len(walk) > 1 else walk[0])
        return _common(step, ctx) | {
            "summary": f"gradient norm {ctx.norm:.3g} from the first steps on",
            "layer": view.layout.layer(start),
            "cause": f"more than {self.params.birth_ratio:g}x the weights' own norm: "
            "initialisation too large, or a loss that is summed and not averaged",
            "first_action": "Scale the initialisation down (Xavier, Kaiming, orthogonal), average "
            "the loss, or clip the gradient.",
        }

    def _relevel_words(self, step: Step, ctx: RunContext) -> dict[str, str]:
        return _common(step, ctx) | {
            "summary": f"gradient norm {ctx.norm:.3g} became the new baseline",
            "cause": f"it stayed away from the old one for {ctx.settings.excluded_steps} steps",
            "first_action": "Nothing, if the change was meant; monitor.mark() says so next time.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.capture == "post_clip":
            return Coverage(
                self.alert,
                "blind",
                "captured after clipping: clip with torch.nn.utils.clip_grad_norm_, or call "
                "gradwarden.watch(model, optimizer) before clipping is wrapped",
            )
        if ctx.armed:
            return Coverage(self.alert, "armed")
        hint = "" if "lr" in ctx.logged or ctx.steps == 0 else "; monitor.log(lr=lr) arms it sooner"
        return Coverage(self.alert, "waiting", ctx.waiting + hint)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "high": self._high,
            "layers": {group: held.state() for group, held in self._layers.items()},
            "row": self._row,
            "births": self._births,
            "weights": self._weights,
            "updates": {group: known.state() for group, known in self._updates.items()},
            "excess": self._excess,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._high, self._row, self._births = state["high"], state["row"], state["births"]
        layers = state["layers"].items()
        self._layers = {int(group): _High.restored(held) for group, held in layers}
        self._weights = {int(group): held for group, held in state["weights"].items()}
        updates = state["updates"].items()
        self._updates = {int(group): Updates.restored(held) for group, held in updates}
        self._excess = state["excess"]


def _common(step: Step, ctx: RunContext) -> dict[str, str]:
    return {"step": str(step.step), "attempt": str(step.attempt)}


def _estimated(layout: LayoutView) -> Floats:
    """Square of each weight's norm as unit-gain initialisation gives it."""
    return np.array(
        [
            math.prod(p.shape) if p.kind == "embedding" else (p.shape[0] if p.shape else 1)
            for p in layout.layout.parameters
        ],
        np.float64,
    )
