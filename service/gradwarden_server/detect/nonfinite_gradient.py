"""1 NonFiniteGradient: NaN or Inf in a gradient, applied or skipped, with its origin.

An applied one poisons the weights: page at once. A skipped one is a note; several are a
ticket, many in a row a page. Where a loss scale governs (``loss_scale`` is logged), skips are
how it finds its level, and LossScaleCollapse alone speaks of them. The layer is not named from
data that clipping changed, since one NaN makes all of it NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect import origin
from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import GroupView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import PROOF, Condition, Severity

_APPLIED = "the optimizer applied NaN or Inf to the weights"
UNKNOWN_RANK = "rank unknown: local attribution off"


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/nonfinite.yaml."""

    clean_steps: int
    skipped_ticket: int
    skipped_window_steps: int
    skipped_in_a_row: int
    overflow_share: float


class NonFiniteGradient(Detector):
    """See the module."""

    name: ClassVar[str] = "nonfinite_gradient"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._skips: list[bool] = []
        self._row = 0
        self._scaled = False

    def peek(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if self._incident.worse_than("page"):
            return ()
        views = _bad(ctx.look(step))
        if not views or step.stepped is False:
            return ()
        return self.say("page", self._words(step, ctx, views, applied=True))

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        blind = not ctx.groups and _told_only(step)
        if not (ctx.groups or blind):
            return ()
        views = _bad(ctx.groups)
        applied = step.stepped is not False
        self._scaled = self._scaled or step.scalar("loss_scale") is not None
        skipped = (bool(views) or blind) and not applied
        if skipped and self._scaled:
            return self._incident.conditions(self)
        self._skips = [*self._skips, skipped][-self.params.skipped_window_steps :]
        if not (views or blind):
            self._row = 0
            self._incident.healthy_step(self.params.clean_steps)
        else:
            self._row = 0 if applied else self._row + 1
            severity: Severity = "page" if applied else self._weigh_skips()
            if not self._incident.worse_than(severity):
                self._incident.sign(severity, self._words(step, ctx, views, applied))
            if applied and PROOF not in self._incident.annotations:  # what was skipped had paged
                self._incident.annotations = {**self._incident.annotations, PROOF: _APPLIED}
            self._incident.clean = 0
        return self._incident.conditions(self)

    def _weigh_skips(self) -> Severity:
        if self._row >= self.params.skipped_in_a_row:
            return "page"
        return "ticket" if sum(self._skips) > self.params.skipped_ticket else "note"

    def _words(
        self, step: Step, ctx: RunContext, views: Mapping[int, GroupView], applied: bool
    ) -> dict[str, str]:
        rank = _rank(step, ctx)
        words = {"step": str(step.step), "attempt": str(step.attempt)}
        if rank is not None:
            words["rank"] = rank
        words |= origin.batch(step)
        if not views:
            where = "layer unknown"
            words |= {
                "layer": "unknown: this step was not captured",
                "cause": "a NaN or Inf on a device, in a step that the schedule left out",
            }
            action = "Resume from the last good checkpoint; capture more often with watch(every=1)."
            return words | self._verdict(step, where, action, applied)
        view = next(iter(views.values()))
        at = origin.find(view.bad, view.observed, view.layout.backward.tolist())
        losses = [r.bad_loss for r in step.ranks.values() if "loss" in r.scalars]
        scale = step.scalar("loss_scale")
        if view.step.capture == "post_clip":
            where = "layer unknown"
            words |= {
                "layer": "post_clip: layer unknown",
                "bracket": "post_clip: clipping spread it over all layers",
                "cause": "non-finite before clipping; captured after it",
            }
            action = "Resume from the last good checkpoint; let gradwarden watch before clipping."
        else:
            bad_loss = any(losses) if losses else None
            cause = origin.explain(at, view, bad_loss, self.params.overflow_share, scale)
            layer = view.layout.layer(at.first_bad)
            where = "all layers" if origin.from_outside(at, view, bad_loss) else f"layer {layer}"
            words |= {
                "layer": layer,
                "parameter": view.layout.name(at.first_bad),
                "bracket": origin.bracket(at, view, bad_loss),
                "cause": cause.words,
                "values_before": origin.values_before(at, view),
            }
            action = cause.first_action
        return words | self._verdict(step, where, action, applied)

    def _verdict(self, step: Step, where: str, action: str, applied: bool) -> dict[str, str]:
        """What happened to the weights, and what to do."""
        if applied:
            return {
                PROOF: _APPLIED,
                "summary": f"NaN or Inf applied to the weights at step {step.step}, {where}",
                "first_action": f"Stop the run: weights are poisoned. {action}",
            }
        if self._row > 1:
            return {
                "summary": f"{self._row} steps in a row skipped up to {step.step}, {where}",
                "first_action": f"The weights are unharmed. {action}",
            }
        return {
            "summary": f"NaN or Inf in the gradient of skipped step {step.step}, {where}",
            "first_action": "Nothing now: the step was skipped and the weights are unharmed.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.steps == 0:
            return Coverage(self.alert, "waiting", "0 of 1 steps")
        if ctx.capture == "post_clip":
            return Coverage(
                self.alert,
                "armed",
                "layer unknown: captured after clipping; call gradwarden.watch(model, optimizer) "
                "before clip_grad_norm_ is wrapped",
            )
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "skips": self._skips,
            "row": self._row,
            "scaled": self._scaled,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._skips, self._row = state["skips"], state["row"]
        self._scaled = state["scaled"]


def _bad(views: Mapping[int, GroupView]) -> dict[int, GroupView]:
    return {group: view for group, view in views.items() if not view.clean}


def _told_only(step: Step) -> bool:
    """Whether a rank says that it saw a NaN or Inf in this step, without a matrix to show."""
    said = (e for _, e in step.events if e.get("kind") == "nonfinite")
    return bool(step.ranks) and any(e.get("step", step.step) == step.step for e in said)


def _rank(step: Step, ctx: RunContext) -> str | None:
    """The rank that local evidence names: alone in the run, or bad before the ranks were summed.

    That is a bad loss of its own, or its word that its own gradients were bad. None from an
    early look: the other ranks' losses are not in yet.
    """
    if max(ctx.world_size, len(step.ranks)) == 1:
        return str(next(iter(step.ranks)))
    if step.partial:
        return None
    told = {rank for rank, event in step.events if _of_this(event, step)}
    bad = sorted(told | {r for r, said in step.ranks.items() if said.bad_loss or said.bad_alone})
    if len(bad) == len(step.ranks):
        what = "loss is" if all(s.bad_loss for s in step.ranks.values()) else "gradients are"
        return f"rank unknown: the {what} non-finite on every rank"
    if bad:
        return ", ".join(map(str, bad))
    if not step.missing and all(said.bad_alone is False for said in step.ranks.values()):
        return "no rank: finite on each of them, and too large when they were summed"
    return UNKNOWN_RANK


def _of_this(event: Mapping[str, Any], step: Step) -> bool:
    at = event.get("step", step.step)
    return event.get("kind") == "local_nonfinite" and at == step.step
