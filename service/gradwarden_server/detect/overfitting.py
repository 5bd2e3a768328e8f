"""26 Overfitting: the validation loss rises while the training loss falls.

Validation losses are known by their names: ``val_loss``, ``validation_loss``, ``eval_loss``, or any
with ``val``, ``valid``, ``validation`` or ``eval`` and ``loss``, ``nll`` or ``perplexity`` among
its parts, as ``c4/val_loss``. Each name is a set of its own. A best value that was luck is no
measure: medians of evaluations are compared, and by more than they differ from each other anyway.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.losses import marked, told
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_PART = re.compile(r"[/._\-\s]+")
_SET = {"val", "valid", "validation", "eval", "evaluation"}
_LOSS = {"loss", "nll", "perplexity", "ppl"}
_RECENT = 5
_NOISE = 1.4826 / math.sqrt(6)
"""Makes the median second difference the standard deviation of one of three."""
_NOISE_KEPT = 40
_TRAIN = 30
"""Losses of the exponential mean of the training loss."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loss_curves.yaml."""

    rise: float
    evaluations: int
    noise: float
    train_fall: float
    note_epochs: int


@dataclass(slots=True)
class _Curve:
    """One validation set: medians of its newest evaluations, and the best of them."""

    values: list[float] = field(default_factory=list)
    best: float = math.inf
    best_step: int = -1
    best_value: float = math.inf
    train_at_best: float = math.nan
    up: int = 0

    def observe(self, value: float, step: int, train: float) -> None:
        self.values = [*self.values, value][-_NOISE_KEPT:]
        if value < self.best_value:
            self.best_value, self.best_step = value, step
        middle = self.middle
        if middle < self.best:
            self.best, self.train_at_best = middle, train

    @property
    def middle(self) -> float:
        """The median of the newest evaluations; infinite while there are too few."""
        return median(self.values[-_RECENT:]) if len(self.values) >= _RECENT else math.inf

    @property
    def noise(self) -> float:
        """Standard deviation of one evaluation, by how far it lies off a line of its neighbours."""
        values = self.values
        bends = [
            abs(values[i - 1] - 2 * values[i] + values[i + 1]) for i in range(1, len(values) - 1)
        ]
        return _NOISE * median(bends) if bends else math.inf


class Overfitting(Detector):
    """See the module."""

    name: ClassVar[str] = "overfitting"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._begin()

    def _begin(self) -> None:
        self._curves: dict[str, _Curve] = {}
        self._sets: list[str] = []
        self._known = 0
        self._train, self._losses = math.nan, 0
        self._epoch: float | None = None
        self._loaders = 0
        """Steps in which a data loader began anew: at least as many as there were epochs."""

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._begin()
        self._loaders += told(step, "data_start") is not None
        if marked(step.events):
            self._curves = {}
        if step.eventful:
            return ()
        loss = ctx.loss
        if loss is not None and math.isfinite(loss):
            self._losses += 1
            share = max(2 / (_TRAIN + 1), 1 / self._losses)
            before = loss if self._losses == 1 else self._train
            self._train = before + share * (loss - before)
        if len(ctx.logged) != self._known:
            self._known = len(ctx.logged)
            self._sets = sorted(name for name in ctx.logged if is_validation_loss(name))
        looked = False
        for name in self._sets:
            value = step.scalar(name)
            if value is not None and math.isfinite(value):
                looked = True
                self._learn(name, value, step)
        return self._judge(step) if looked else ()

    def _learn(self, name: str, value: float, step: Step) -> None:
        epoch = step.scalar("epoch")
        if epoch is not None and math.isfinite(epoch):
            self._epoch = epoch
        p, curve = self.params, self._curves.setdefault(name, _Curve())
        curve.observe(value, step.step, self._train)
        margin = max(p.rise * abs(curve.best), p.noise * curve.noise)
        higher = min(value, curve.middle) > curve.best + margin
        fell = self._train < curve.train_at_best - p.train_fall * abs(curve.train_at_best)
        curve.up = curve.up + 1 if higher and fell else 0

    def _judge(self, step: Step) -> Sequence[Condition]:
        p = self.params
        worst = max(self._curves.items(), key=lambda held: held[1].up)
        if worst[1].up >= p.evaluations:
            few = (self._loaders or p.note_epochs) < p.note_epochs
            if self._epoch is not None:
                few = self._epoch < p.note_epochs
            severity: Severity = "note" if few else "ticket"
            if not self._incident.worse_than(severity):
                self._incident.sign(severity, self._words(step, *worst))
        elif worst[1].up == 0:
            self._incident.healthy_step(1)
        return self._incident.conditions(self)

    def _words(self, step: Step, name: str, curve: _Curve) -> dict[str, str]:
        return {
            "summary": f"{name} {curve.middle:.4g} at step {step.step}, {curve.best_value:.4g} at "
            f"step {curve.best_step}, while the training loss fell",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "best_step": str(curve.best_step),
            "best_value": f"{curve.best_value:.6g}",
            "set": name,
            "cause": f"in {self.params.evaluations} evaluations {name} was more than "
            f"{self.params.rise:.0%} above its best; the training loss went from "
            f"{curve.train_at_best:.4g} to {self._train:.4g}: the model learns its data by heart",
            "first_action": f"Keep the checkpoint of step {curve.best_step}, the best there is, "
            "and stop; then more data, augmentation, dropout or weight decay.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if not self._sets:
            if ctx.steps == 0:
                return Coverage(self.alert, "waiting", "0 of 1 evaluations")
            return Coverage(
                self.alert, "blind", "no validation loss is logged: add monitor.log(val_loss=loss)"
            )
        if "loss" not in ctx.logged:
            return Coverage(self.alert, "blind", "no loss is logged: add monitor.log(loss=loss)")
        wanted = _RECENT + self.params.evaluations
        count = max((len(curve.values) for curve in self._curves.values()), default=0)
        if count < wanted:
            return Coverage(self.alert, "waiting", f"{count} of {wanted} evaluations")
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "curves": {name: asdict(curve) for name, curve in self._curves.items()},
            "sets": self._sets,
            "train": [self._known, self._train, self._losses, self._epoch, self._loaders],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._curves = {name: _Curve(**held) for name, held in state["curves"].items()}
        self._sets = list(state["sets"])
        self._known, self._train, self._losses, self._epoch, self._loaders = state["train"]


def is_validation_loss(name: str) -> bool:
    """Whether a scalar's name says that it is the loss on data that is not trained on."""
    parts = set(_PART.split(name.lower()))
    return not parts.isdisjoint(_SET) and not parts.isdisjoint(_LOSS)
