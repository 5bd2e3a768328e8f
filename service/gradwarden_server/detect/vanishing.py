"""4 VanishingGradient: the gradient fades block by block towards the input.

Weight matrices only. The median RMS of each block, smoothed over steps, must fall from the
last quarter of the blocks to the first, step by step over several blocks, and it must matter.
Neither the update ratio nor Adam's eps is captured yet, so *real in effect* is judged by the
gradient alone: the first quarter's RMS is below ten times Adam's default eps (where Adam
stops), or the fall is so deep that plain SGD cannot move the first blocks.
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
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/vanishing.yaml."""

    ratio: float
    monotone_blocks: int
    negligible_rms: float
    severe_ratio: float
    steps: int
    birth_steps: int
    lr_share: float
    smoothing_steps: int
    clean_steps: int


@dataclass(slots=True)
class _Fade:
    """One group's smoothed log10 RMS by block, and for how long it has been sick."""

    layout: str
    smooth: Floats
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

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._groups = {}
        if not ctx.groups:
            return ()
        if ctx.lr is not None and ctx.lr <= self.params.lr_share * ctx.peak_lr:
            return self._incident.conditions(self)
        sick = None
        for group, view in ctx.groups.items():
            if self._lasting(group, view, ctx):
                sick = sick or (group, view)
        if sick is not None:
            self._incident.sign("ticket", self._words(step, ctx, *sick))
        else:
            self._incident.healthy_step(self.params.clean_steps)
        return self._incident.conditions(self)

    def _lasting(self, group: int, view: GroupView, ctx: RunContext) -> bool:
        p = self.params
        blocks = view.layout.blocks
        self._judgeable = len(blocks) > p.monotone_blocks
        if not self._judgeable:
            return False
        fade = self._groups.get(group)
        if fade is None or fade.layout != view.step.layout:
            fade = _Fade(view.step.layout, np.full(len(blocks), np.nan))
            self._groups[group] = fade
        log_rms = _block_rms(view)
        share = 2 / (p.smoothing_steps + 1)
        moved = fade.smooth + share * (log_rms - fade.smooth)
        fade.smooth = np.where(
            np.isnan(log_rms), fade.smooth, np.where(np.isnan(fade.smooth), log_rms, moved)
        )
        fade.steps += 1
        fade.sick = fade.sick + 1 if self._fades(fade.smooth) else 0
        from_birth = fade.sick == fade.steps and fade.sick >= p.birth_steps
        return from_birth or (ctx.armed and fade.sick >= p.steps)

    def _fades(self, log_rms: Floats) -> bool:
        p = self.params
        if np.isnan(log_rms).any():
            return False
        first, last = _quarters(log_rms)
        fall = last - first
        if fall <= -np.log10(p.ratio):
            return False
        length, rise = _longest_rise(log_rms)
        if length < p.monotone_blocks or rise < fall / 2:
            return False
        return bool(first < np.log10(p.negligible_rms) or fall > -np.log10(p.severe_ratio))

    def _words(self, step: Step, ctx: RunContext, group: int, view: GroupView) -> dict[str, str]:
        fade = self._groups[group]
        names = list(view.layout.blocks)
        first, last = _quarters(fade.smooth)
        # From the loss down, the first block that lies well below the last quarter.
        limit = last + np.log10(self.params.ratio) / 2
        start = max((i for i, v in enumerate(fade.smooth) if v < limit), default=0)
        return {
            "summary": f"gradient fades from block {names[start]} down to {names[0]}: "
            f"RMS {10**last:.2g} near the loss, {10**first:.2g} near the input",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": names[start],
            "cause": f"median RMS of the first blocks is {10 ** (first - last):.1g} of the last: "
            "saturating activations, missing residuals or normalisation, or small initialisation",
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
            "groups": {g: [f.layout, f.smooth, f.steps, f.sick] for g, f in self._groups.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._judgeable = state["judgeable"]
        self._groups = {int(group): _Fade(*held) for group, held in state["groups"].items()}


def _block_rms(view: GroupView) -> Floats:
    """log10 of the median RMS of each block; NaN for a block without a positive one."""
    with np.errstate(divide="ignore"):
        rms = np.log10(view.norms / np.sqrt(view.layout.sizes))
    rms[~np.isfinite(rms)] = np.nan
    table = np.append(rms, np.nan)[view.layout.block_rows]
    return row_medians(table, (~np.isnan(table)).sum(axis=1))


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
