"""10 LossDivergence: the loss rises away from the best that it reached, and stays there.

A loss that steps to another level from one step to the next, while neither learning rate nor
gradient gave reason, is other data (or other labels): it is a note, and judged from there on. One
that nothing gave reason for and that comes down again by itself is left alone while it does, and
where it came back from once it may go again: data in an order of their own make such waves. The
noise that it is held against is that of the time at its best: what diverges makes its own. A loss
that need not fall, of a game or a policy, or one below zero, raises notes only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.changes import Changes
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.loss_reference import Reference
from gradwarden_server.detect.loss_spike import waiting_for_loss
from gradwarden_server.detect.losses import Aim, LossTrack, marked
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_HELD = 500
"""Losses that are looked back over for where it began."""
_EDGE = 15
"""Losses on each side of a step that must be where the levels are ..."""
_NEAR = 5
"""... and those next to it too: what climbs, however fast, is on its way there."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loss.yaml."""

    gained_share: float
    spreads: float
    swings: float
    minimised_spreads: float
    ticket_steps: int
    return_steps: int
    page_start_steps: int
    page_ticket_steps: int
    settled_spreads: float
    falling_share: float
    falling_steps: int
    cause_steps: int
    told_steps: int
    smoothing_steps: int
    spread_steps: int
    spread_floor: float
    clean_steps: int


class LossDivergence(Detector):
    """See the module."""

    name: ClassVar[str] = "loss_divergence"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._track = LossTrack(params.smoothing_steps, params.spread_steps, params.spread_floor)
        self._reference, self._changes, self._aim = Reference(), Changes(), Aim()
        self._gained = 0.0
        self._quiet = math.nan
        self._highest_start = -math.inf
        """Of the levels that it was judged from in this attempt."""
        self._swing = 0.0
        """The farthest above what was expected from which it came back."""
        self._held: deque[tuple[int, float, float]] = deque(maxlen=_HELD)
        self._begin()

    def _begin(self) -> None:
        """The level is to be found anew."""
        self._reference.restart()
        self._over = self._above_start = self._standing = self._back = 0
        self._first = self._onset = 0
        self._away = 0.0
        self._held.clear()

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._highest_start = -math.inf
            self._track.restart()
            self._changes.restart()
            self._begin()
        self._changes.observe(step, ctx)
        self._aim.hear(step)
        declared = ctx.restarted and not self._changes.lr_moved(step.step)
        if declared or marked(step.events):
            self._track.relevel()
            self._begin()
        loss = ctx.loss
        if loss is None or not math.isfinite(loss):
            return ()
        self._track.observe(loss)
        self._aim.observe(step, ctx, self._track)
        return self._judge(step, ctx, loss)

    def _judge(self, step: Step, ctx: RunContext, loss: float) -> Sequence[Condition]:
        p, track = self.params, self._track
        expected = self._reference.observe(track.mean, ctx.lr)
        self._held.append((step.step, loss, track.level))
        if not track.armed:
            return ()
        caused = ctx.lr is None or self._changes.reason(self._first or step.step, p.told_steps)
        limit = self._limit(expected) if caused else self._noisy_limit(expected)
        self._away = max(self._away, track.level - expected)
        if track.level - expected <= track.quiet:
            self._swing, self._away = max(self._swing, self._away), 0.0
        if not (track.mean if caused else track.level) > limit:
            self._calm(expected)
            if not self._over:
                self._incident.healthy_step(p.clean_steps)
            return self._incident.conditions(self)
        self._first = self._first or step.step
        self._over += 1
        self._back = 0
        severity = self._weigh(expected, caused)
        if severity is not None and not self._incident.worse_than(severity):
            self._onset, sharp = self._began(expected)
            if sharp and ctx.lr is not None and not self._culprit():
                self._stepped(step)
                return self._incident.conditions(self)
        if severity is not None:
            if not self._incident.worse_than(severity):
                self._incident.sign(severity, self._words(step, ctx, expected))
            self._incident.clean = 0
        return self._incident.conditions(self)

    def _calm(self, expected: float) -> None:
        """It is low enough: whether it is back for good, and what is learned from it.

        A loss that left its best dips now and then; it is back once it was low for as long as
        the mean remembers. What it does until then says nothing about the usual noise.
        """
        self._back += 1
        if self._over and self._back < self.params.return_steps:
            return
        track, known = self._track, self._quiet
        self._over = self._above_start = self._standing = self._first = 0
        self._gained = max(self._gained, self._reference.gained)
        self._highest_start = max(self._highest_start, self._reference.start)
        if math.isnan(known) or track.mean - expected <= self.params.settled_spreads * known:
            self._quiet = track.quiet

    def _limit(self, expected: float) -> float:
        """The level above which it is too high; infinite where it was never brought down."""
        p = self.params
        gained = max(self._gained, self._reference.gained)
        quiet = self._track.quiet if math.isnan(self._quiet) else self._quiet
        if gained < quiet:
            return math.inf
        return expected + max(p.gained_share * gained, p.spreads * quiet, p.swings * self._swing)

    def _noisy_limit(self, expected: float) -> float:
        """That level where the learning rate gave no reason.

        A smaller batch makes a loss noisier and lifts it, as a larger learning rate does, and
        nobody need have told. So its present noise counts, unless it is worse than at the start.
        """
        p, track = self.params, self._track
        quiet = track.quiet if math.isnan(self._quiet) else self._quiet
        noisy = min(expected + p.spreads * track.spread, self._highest_start + 2 * quiet)
        return max(self._limit(expected), noisy)

    def _weigh(self, expected: float, caused: bool) -> Severity | None:
        p, level = self.params, self._track.level
        higher = level > self._highest_start + 2 * self._quiet
        improved = self._reference.gained >= p.minimised_spreads * self._quiet
        self._above_start = self._above_start + 1 if higher and improved else 0
        falling = self._falling(expected)
        severity: Severity | None = None
        if self._over >= p.ticket_steps and (caused or not falling or self._standing):
            self._standing += 1
            severity = "ticket"
        if self._standing > p.page_ticket_steps and not falling:
            severity = "page"
        if self._above_start >= p.page_start_steps:
            severity = "page"
        return "note" if severity is not None and self._aim.reason else severity

    def _falling(self, expected: float) -> bool:
        """Whether it is on its way back: the gap shrinks."""
        p = self.params
        if len(self._held) <= p.falling_steps:
            return False
        gap, before = self._track.level - expected, self._held[-1 - p.falling_steps][2] - expected
        return gap < (1 - p.falling_share) * before

    def _began(self, low: float) -> tuple[int, bool]:
        """The step from which losses are high, and whether they were from one step to the next."""
        held = list(self._held)
        over = next((i for i, one in enumerate(held) if one[0] >= self._first), len(held) - 1)
        held = held[: over + self.params.smoothing_steps]  # what it grew to later hides the edge
        steps, losses = [one[0] for one in held], [one[1] for one in held]
        high = median(losses[over:])
        middle = (low + high) / 2
        at, worth, best = over, 0, 0
        for i in range(len(losses) - 1, -1, -1):  # the split that divides high from low best
            worth += 1 if losses[i] > middle else -1
            if worth > best and i <= over:
                at, best = i, worth
        before, after = losses[max(0, at - _EDGE) : at], losses[at : at + _EDGE]
        if not len(before) == _EDGE == len(after):
            return steps[at], False
        lows, highs = (
            (median(before), median(before[-_NEAR:])),
            (median(after), median(after[:_NEAR])),
        )
        still_low, high_enough = low + 0.25 * (high - low), low + 0.6 * (high - low)
        return steps[at], max(lows) < still_low and min(highs) > high_enough

    def _culprit(self) -> bool:
        return self._changes.culprit(self._onset, self.params.cause_steps)

    def _stepped(self, step: Step) -> None:
        """Other data, as far as anything tells: a note, and a new level."""
        high, onset = self._track.median, self._onset
        words = {
            "summary": f"loss stepped from {self._track.mean:.4g} to {high:.4g} at step {onset}",
            "step": str(onset),
            "attempt": str(step.attempt),
            "cause": "neither the learning rate nor the gradient gave reason before it: other "
            "data, labels, or another way to sum the loss",
            "first_action": "Look at what the loader gives since that step. If the change was "
            "meant, monitor.mark() says so.",
        }
        if not self._incident.worse_than("note"):
            self._incident.sign("note", words)
        self._incident.clean = 0
        self._track.relevel()
        self._begin()

    def _words(self, step: Step, ctx: RunContext, expected: float) -> dict[str, str]:
        level, start = self._track.level, self._reference.start
        before = self._changes.before(self._onset, self.params.told_steps)
        lr = "" if ctx.lr is None else f" (now {ctx.lr:.3g})"
        words = {
            "summary": f"loss rises since step {self._onset}: {level:.4g}, after {expected:.4g}"
            + (", worse than at the start" if level > start else ""),
            "step": str(self._onset),
            "attempt": str(step.attempt),
            "loss": f"{level:.6g}",
            "best_loss": f"{expected:.6g}",
            "start_loss": f"{start:.6g}",
            "changed_before": before,
            "cause": before,
            "first_action": f"Go back to the last good checkpoint before step {self._onset}, with "
            f"a lower learning rate{lr}, or without what changed before it.",
        }
        if self._aim.reason:
            words["note"] = f"not more than a note: {self._aim.reason}"
        return words

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._aim.reason:
            why = f"{self._aim.reason}, so a rising loss need not be a sickness and is a note; "
            return Coverage(self.alert, "blind", why + "monitor.log(loss=...) of one that falls")
        return waiting_for_loss(self.alert, ctx, self._track.count, self.params.smoothing_steps)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "track": self._track.state(),
            "reference": self._reference.state(),
            "changes": self._changes.state(),
            "aim": self._aim.state(),
            "gained": self._gained,
            "quiet": self._quiet,
            "swing": [self._swing, self._away, self._highest_start],
            "held": list(self._held),
            "counts": [
                self._over,
                self._above_start,
                self._standing,
                self._onset,
                self._back,
                self._first,
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._track.restore(state["track"])
        self._reference.restore(state["reference"])
        self._changes.restore(state["changes"])
        self._aim.restore(state["aim"])
        self._gained, self._quiet = state["gained"], state["quiet"]
        self._swing, self._away, self._highest_start = state["swing"]
        self._held = deque(((h[0], h[1], h[2]) for h in state["held"]), maxlen=_HELD)
        (
            self._over, self._above_start, self._standing, self._onset, self._back, self._first,
        ) = state["counts"]  # fmt: skip
