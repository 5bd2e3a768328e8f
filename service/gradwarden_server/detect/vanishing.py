"""4 VanishingGradient: the gradient fades block by block towards the input.

Weight matrices only: an adapter, say, begins with no gradient at all and is none. The median
RMS of each block, smoothed over steps, must fall from the last quarter of the blocks to the
first, step by step over several blocks, and it must matter: the weights of the first quarter
move far less than those of the last, each as a share of itself, or the gradient there is below
ten times Adam's default eps (where Adam stops). Where updates are not measured
(``preset="light"``) a fall so deep that plain SGD cannot move the first blocks stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import numpy as np

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Floats, row_medians
from gradwarden_server.detect.context import GroupView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.detect.updates import Updates
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/vanishing.yaml."""

    ratio: float
    monotone_blocks: int
    update_ratio: float
    negligible_rms: float
    severe_ratio: float
    steps: int
    birth_steps: int
    lr_share: float
    every_steps: int
    smoothing_steps: int
    clean_steps: int


@dataclass(slots=True)
class _Fade:
    """One group's smoothed log10 RMS by block, and for how long it has been sick."""

    smooth: Floats
    updates: Updates
    steps: int = 0
    sick: int = 0


class VanishingGradient(Detector):
    """See the module."""

    name: ClassVar[str] = "vanishing_gradient"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._groups: dict[int, _Fade] = {}
        self._judgeable = False
        self._count = 0

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._groups, self._count = {}, 0
        if not ctx.groups:
            return ()
        for group, view in ctx.groups.items():
            self._learn(group, view)
        if ctx.lr is not None and ctx.lr <= self.params.lr_share * ctx.peak_lr:
            return self._incident.conditions(self)
        self._count += 1
        if self._count % self.params.every_steps:
            return self._incident.conditions(self)
        sick = None
        for group, view in ctx.groups.items():
            if self._lasting(group, view, ctx):
                sick = sick or (group, view)
        if sick is not None:
            if not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._words(step, ctx, *sick))
            self._incident.clean = 0
        else:
            self._incident.healthy_step(self.params.clean_steps // self.params.every_steps)
        return self._incident.conditions(self)

    def _learn(self, group: int, view: GroupView) -> None:
        """Take the updates of this step: they come for few rows at a time."""
        fade = self._groups.get(group)
        if fade is None or fade.updates.layout != view.step.layout:
            blank = np.full(len(view.layout.blocks), np.nan)
            updates = Updates(view.step.layout, len(view.layout))
            fade = self._groups[group] = _Fade(blank, updates)
        if view.step.updates is not None:
            fade.updates.learn(*view.step.updates)

    def _lasting(self, group: int, view: GroupView, ctx: RunContext) -> bool:
        p = self.params
        self._judgeable = len(view.layout.blocks) > p.monotone_blocks
        if not self._judgeable:
            return False
        fade = self._groups[group]
        log_rms = _block_rms(view)
        share = min(1.0, 2 * p.every_steps / (p.smoothing_steps + 1))
        moved = fade.smooth + share * (log_rms - fade.smooth)
        fade.smooth = np.where(
            np.isnan(log_rms), fade.smooth, np.where(np.isnan(fade.smooth), log_rms, moved)
        )
        fade.steps += p.every_steps
        fade.sick = fade.sick + p.every_steps if self._fades(fade.smooth) else 0
        from_birth = fade.sick == fade.steps and fade.sick >= p.birth_steps
        lasts = from_birth or (ctx.armed and fade.sick >= p.steps)
        return lasts and self._matters(fade, view)

    def _fades(self, log_rms: Floats) -> bool:
        p = self.params
        if np.isnan(log_rms).any():
            return False
        first, last = _quarters(log_rms)
        fall = last - first
        if fall <= -np.log10(p.ratio):
            return False
        length, rise = _longest_rise(log_rms)
        return length >= p.monotone_blocks and rise >= fall / 2

    def _matters(self, fade: _Fade, view: GroupView) -> bool:
        """Whether a lasting fade keeps the first blocks from learning; updates come in turn."""
        p = self.params
        first, last = _quarters(fade.smooth)
        if first < np.log10(p.negligible_rms):
            return True
        lag = _lag(fade, view)
        if np.isnan(lag):
            return bool(last - first > -np.log10(p.severe_ratio))
        return bool(lag > -np.log10(p.update_ratio))

    def _words(self, step: Step, ctx: RunContext, group: int, view: GroupView) -> dict[str, str]:
        fade = self._groups[group]
        names = list(view.layout.blocks)
        first, last = _quarters(fade.smooth)
        lag = _lag(fade, view)
        moves = "" if np.isnan(lag) else f"; its weights move {10**-lag:.1g} as far"
        # From the loss down, the first block that lies well below the last quarter.
        limit = last + np.log10(self.params.ratio) / 2
        start = max((i for i, v in enumerate(fade.smooth) if v < limit), default=0)
        return {
            "summary": f"gradient fades from block {names[start]} down to {names[0]}: "
            f"RMS {10**last:.2g} near the loss, {10**first:.2g} near the input",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": names[start],
            "cause": f"median RMS of the first blocks is {10 ** (first - last):.1g} of the last"
            f"{moves}: saturating activations, missing residuals or normalisation, or small "
            "initialisation",
            "first_action": "Nothing is lost yet. Before more is spent: add normalisation or "
            "residual connections, or change activation or initialisation, and start again.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.steps == 0:
            return Coverage(self.alert, "waiting", f"0 of {self.params.birth_steps} steps")
        if not self._judgeable:
            wanted = self.params.monotone_blocks + 1
            few = f"the model has fewer than {wanted} layers with weight matrices below its head"
            return Coverage(self.alert, "blind", few)
        if ctx.steps < self.params.birth_steps:
            return Coverage(
                self.alert, "waiting", f"{ctx.steps} of {self.params.birth_steps} steps"
            )
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "judgeable": self._judgeable,
            "count": self._count,
            "groups": {
                g: [f.smooth, f.updates.state(), f.steps, f.sick] for g, f in self._groups.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._judgeable, self._count = state["judgeable"], state["count"]
        self._groups = {
            int(group): _Fade(held[0], Updates.restored(held[1]), held[2], held[3])
            for group, held in state["groups"].items()
        }


def _block_rms(view: GroupView) -> Floats:
    """log10 of the median RMS of each block; NaN for a block without a positive one."""
    with np.errstate(divide="ignore"):
        rms = np.log10(view.norms / np.sqrt(view.layout.sizes))
    rms[~np.isfinite(rms)] = np.nan
    return _by_block(rms, view)


def _by_block(rows: Floats, view: GroupView) -> Floats:
    """The median of each block's rows that are numbers."""
    table = np.append(rows, np.nan)[view.layout.block_rows]
    return row_medians(table, (~np.isnan(table)).sum(axis=1))


def _lag(fade: _Fade, view: GroupView) -> float:
    """Decades by which the first quarter's weights move less than the last's, in proportion.

    NaN where updates of either are not known.
    """
    updates = _by_block(fade.updates.level, view)
    count = max(1, len(updates) // 4)
    first, last = updates[:count], updates[-count:]
    first, last = first[~np.isnan(first)], last[~np.isnan(last)]
    if not (len(first) and len(last)):
        return float("nan")
    return float(np.median(last) - np.median(first))


def _quarters(log_rms: Floats) -> tuple[float, float]:
    count = max(1, len(log_rms) // 4)
    return median(log_rms[:count].tolist()), median(log_rms[-count:].tolist())


def _longest_rise(log_rms: Floats) -> tuple[int, float]:
    """Blocks in the monotone run towards the loss that rises most, and how much it rises."""
    best, start = (1, 0.0), 0
    for i in range(1, len(log_rms)):
        if log_rms[i] <= log_rms[i - 1]:
            start = i
        best = max(best, (i - start + 1, float(log_rms[i] - log_rms[start])), key=lambda b: b[1])
    return best
