"""All detectors of one run, advanced over joined steps. Live and replay are this same code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from gradwarden_server.detect.base import Coverage, Detector, Liveness, Request, Rule, rank_of
from gradwarden_server.detect.baseline import settings_from
from gradwarden_server.detect.context import Layouts, RunContext
from gradwarden_server.detect.registry import build
from gradwarden_server.detect.speakers import Speakers
from gradwarden_server.detect.state import BadState, pack, unpack
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, RunFacts, Severity

_VERSION = 5
_Said = dict[tuple[str, Severity], Condition]


@dataclass(frozen=True, slots=True)
class DerivedPoint:
    """One value of a derived series."""

    name: str
    labels: Mapping[str, str]
    time_ns: int
    value: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detectors said of one step.

    Conditions that did not change since the last verdict of the same call are left out.
    ``eventful`` marks a carrier of events, which may share its number with a step.
    ``requests`` are commands to be given to its ranks. ``sound`` says that its gradients and its
    loss were finite, or that a loss scaler skipped it, which is what a scaler is for.
    """

    attempt: int
    step: int
    time_ns: int
    conditions: tuple[Condition, ...] = ()
    points: tuple[DerivedPoint, ...] = field(default=())
    eventful: bool = False
    requests: tuple[Request, ...] = ()
    sound: bool = True


class RunDetectors:
    """The detectors of one run and what they share.

    Args:
        layouts: Finds a layout by its hash.
        rules: One detector each; see :class:`gradwarden_server.detect.base.Rule`.
        baseline: The numbers of the baseline, as the rules files give them.
        world_size: Ranks of the run, as far as known.
    """

    def __init__(
        self,
        layouts: Layouts,
        rules: Iterable[Rule],
        baseline: Mapping[str, Any],
        environment: str = "",
        world_size: int = 1,
    ) -> None:
        held = list(rules)
        self._caps = {rule.alert: rule.severity for rule in held}
        self._detectors: dict[str, Detector] = {rule.alert: build(rule) for rule in held}
        self._context = RunContext(layouts, settings_from(baseline), environment, world_size)
        self._speakers = Speakers()
        self._early: dict[str, tuple[int, int]] = {}
        self._known: dict[str, tuple[Sequence[Condition], _Said]] = {}
        self._asking = {a for a, d in self._detectors.items() if _overwrites(d, "requests")}
        self._peeking = [d for d in self._detectors.values() if _overwrites(d, "peek")]
        self._ticking = [d for d in self._detectors.values() if _overwrites(d, "tick")]

    @property
    def judged(self) -> tuple[int, int]:
        """Attempt ordinal and number of captured steps of it that were judged."""
        return self._context.attempt, self._context.steps

    def start(self, world_size: int) -> None:
        """Tell how many ranks the newest attempt has."""
        self._context.world_size = world_size

    def recall(self, alert: str, attempt: int, step: int) -> None:
        """Told after a restart: ``alert`` already stands for ``step``, which is still joining."""
        if alert in self._detectors:
            self._early.setdefault(alert, (attempt, step))

    def peek(self, steps: Iterable[Step]) -> list[Verdict]:
        """Judge partial steps early, learning nothing; they come again in full."""
        verdicts = []
        for step in steps:
            if step.attempt < self._context.attempt:
                continue
            said: list[Condition] = []
            for detector in self._peeking:
                conditions = detector.peek(step, self._context)
                if any(c.active for c in conditions):
                    self._early.setdefault(detector.alert, (step.attempt, step.step))
                said += conditions
            if said:
                conditions = tuple(self._capped(said).values())
                verdicts.append(Verdict(step.attempt, step.step, step.time_ns, conditions))
        return verdicts

    def advance(self, steps: Iterable[Step]) -> list[Verdict]:
        """Judge released steps in order and learn from them.

        Returns:
            One verdict a step; steps of attempts older than the newest give none.
        """
        verdicts = []
        before: _Said = {}
        last: dict[str, Sequence[Condition]] = {}
        for step in steps:
            if step.attempt < self._context.attempt:
                continue
            self._context.observe(step)
            fresh: list[Condition] = []
            requests = self._speakers.observe(step)
            for alert, detector in self._detectors.items():
                said = detector.advance(step, self._context)
                if self._early:
                    said = self._unless_early(alert, step, said)
                if said and said is not last.get(alert):
                    last[alert] = said
                    for key, condition in self._again(alert, said).items():
                        if before.get(key) != condition:
                            before[key] = condition
                            fresh.append(condition)
                if alert in self._asking:
                    requests += detector.requests()
            points = () if step.eventful else self._points(step)
            at = (step.attempt, step.step, step.time_ns)
            asked = tuple(requests)
            sound = self._sound(step)
            verdicts.append(Verdict(*at, tuple(fresh), points, step.eventful, asked, sound))
        return verdicts

    def tick(self, now_ns: int, facts: RunFacts, liveness: Liveness) -> list[Condition]:
        """Judge what only time can tell."""
        said: list[Condition] = []
        for detector in self._ticking:
            said += detector.tick(now_ns, facts, liveness)
        return list(self._capped(said).values())

    def coverage(self) -> list[Coverage]:
        """Per alert, whether this run gives it what it needs."""
        return [detector.coverage(self._context) for detector in self._detectors.values()]

    def state(self) -> bytes:
        """All that :meth:`restore` needs to go on as if never stopped."""
        return pack(
            {
                "version": _VERSION,
                "baseline": asdict(self._context.settings),
                "context": self._context.state(),
                "early": self._early,
                "speakers": self._speakers.state(),
                "detectors": {
                    alert: [d.name, asdict(d.params), d.state()]
                    for alert, d in self._detectors.items()
                },
            }
        )

    def restore(self, data: bytes) -> None:
        """Go on from a snapshot.

        Raises:
            BadState: it is of another version or of other rules; advance from the log's start.
        """
        state = unpack(data)
        if state.get("version") != _VERSION:
            raise BadState(f"snapshot version {state.get('version')}, this is {_VERSION}")
        mine = {a: [d.name, asdict(d.params)] for a, d in self._detectors.items()}
        theirs = {alert: held[:2] for alert, held in state["detectors"].items()}
        if mine != theirs or state["baseline"] != asdict(self._context.settings):
            raise BadState("the rules changed since the snapshot")
        self._context.restore(state["context"])
        self._speakers.restore(state["speakers"])
        self._early = {alert: (at[0], at[1]) for alert, at in state["early"].items()}
        for alert, held in state["detectors"].items():
            self._detectors[alert].restore(held[2])

    def _unless_early(
        self, alert: str, step: Step, conditions: Sequence[Condition]
    ) -> Sequence[Condition]:
        """Steps from before an early finding cannot take it back; its own step can."""
        early = self._early.get(alert)
        if early is None or step.eventful:
            return conditions
        if (step.attempt, step.step) >= early:
            del self._early[alert]
            return conditions
        return [c for c in conditions if c.active]

    def _again(self, alert: str, conditions: Sequence[Condition]) -> _Said:
        """What :meth:`_capped` gives; most detectors return the same list step after step."""
        known = self._known.get(alert)
        if known is None or known[0] is not conditions:
            known = self._known[alert] = conditions, self._capped(conditions)
        return known[1]

    def _capped(self, conditions: Iterable[Condition]) -> _Said:
        """By identity, with the rule's cap on severity; one that sees the sickness wins."""
        said: _Said = {}
        for condition in map(self._placed, conditions):
            cap = self._caps[condition.alertname]
            if cap is not None and rank_of(condition.severity) < rank_of(cap):
                condition = replace(condition, severity=cap)
            key = condition.alertname, condition.severity
            if key not in said or (condition.active and not said[key].active):
                said[key] = condition
        return said

    def _placed(self, condition: Condition) -> Condition:
        """The condition with the node of the ranks that it names: one cordons a node."""
        words = condition.annotations
        named = words.get("rank", "").split(", ") if condition.active else []
        if "node" in words or not named or not all(rank.isdigit() for rank in named):
            return condition
        found = self._context.places.words(map(int, named))
        return replace(condition, annotations={**found, **words})

    def _sound(self, step: Step) -> bool:
        if step.stepped is False and step.scalar("loss_scale") is not None:
            return True
        finite = self._context.loss is None or math.isfinite(self._context.loss)
        return finite and all(view.clean for view in self._context.groups.values())

    def _points(self, step: Step) -> tuple[DerivedPoint, ...]:
        labels = {"attempt": str(step.attempt)}
        points = []
        for group, view in self._context.groups.items():
            own = labels | {"group": str(group)}
            bad = 0.0
            if not view.clean:
                counts = view.step.column("nan"), view.step.column("inf")
                bad = float(sum(np.nansum(c, dtype=np.float64) for c in counts))
            total = math.sqrt(view.square) if view.clean else math.nan
            if view.step.complete or not view.clean:
                points.append(DerivedPoint("gradwarden_gradient_norm", own, step.time_ns, total))
            points.append(DerivedPoint("gradwarden_nonfinite_gradients", own, step.time_ns, bad))
        if self._context.loss is not None:
            points.append(DerivedPoint("gradwarden_loss", labels, step.time_ns, self._context.loss))
        return tuple(points)


def _overwrites(detector: Detector, method: str) -> bool:
    """Whether a detector does anything when it is asked so."""
    return getattr(type(detector), method) is not getattr(Detector, method)
