"""18 RunStalled: heartbeats come, steps do not.

Measured against this run's own pace, with room for start-up and for phases that need no steps
(evaluation, checkpoint, compile). The service's own downtime is no evidence, and a run of
which nobody is heard is RankSilent's and RunFailed's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Liveness
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.pace import Pace, duration, known_phase
from gradwarden_server.detect.places import Places, some
from gradwarden_server.detect.stacks import Stacks, phases
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, RunFacts, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/silent_run.yaml. Factors come as ticket, then page."""

    start_ticket_seconds: float
    start_page_seconds: float
    phase_ticket_seconds: float
    phase_ticket_longest: float
    phase_page_seconds: float
    phase_page_longest: float
    ticket_seconds: float
    ticket_medians: float
    ticket_gaps: float
    page_seconds: float
    page_medians: float
    page_gaps: float
    heard_seconds: float


class RunStalled(Detector):
    """See the module."""

    name: ClassVar[str] = "run_stalled"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._pace = Pace()
        self._places = Places()
        self._stacks = Stacks()

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        self._stacks.observe(step)
        if step.events:
            self._places.observe(step)
        self._pace.observe(step, longest_good=self._limits(None, started=True)[1])
        return ()

    def tick(self, now_ns: int, facts: RunFacts, liveness: Liveness) -> Sequence[Condition]:
        living = liveness.living
        if facts.status != "running" or not living:
            return self.calm("run_ended") if facts.status != "running" else ()
        heard = liveness.since(max(r.last_seen_ns for r in living))
        if (now_ns - heard) / 1e9 >= self.params.heard_seconds:
            return ()
        stepped = [r.last_step_ns for r in liveness.ranks if r.last_step_ns is not None]
        phases = Counter(p for r in living if (p := known_phase(r.phase)) is not None)
        phase = phases.most_common(1)[0][0] if phases else None
        moment = max(stepped) if stepped else liveness.attempt_started_ns
        standing = (now_ns - liveness.since(moment)) / 1e9
        ticket, page = self._limits(phase, started=bool(stepped))
        severity: Severity | None = (
            "page" if standing >= page else "ticket" if standing >= ticket else None
        )
        if severity is None:
            return self.calm("steps_again")
        return self.say(severity, self._words(standing, ticket, phase, facts, liveness))

    def _limits(self, phase: str | None, started: bool) -> tuple[float, float]:
        """Seconds of standing before ticket and page."""
        p, pace = self.params, self._pace
        if phase is not None:
            longest = pace.phases.get(phase, 0.0)
            return (
                max(p.phase_ticket_seconds, p.phase_ticket_longest * longest),
                max(p.phase_page_seconds, p.phase_page_longest * longest),
            )
        if not started:
            return p.start_ticket_seconds, p.start_page_seconds
        median, gap = pace.median, pace.longest_gap
        return (
            max(p.ticket_seconds, p.ticket_medians * median, p.ticket_gaps * gap),
            max(p.page_seconds, p.page_medians * median, p.page_gaps * gap),
        )

    def _words(
        self, standing: float, limit: float, phase: str | None, facts: RunFacts, alive: Liveness
    ) -> dict[str, str]:
        steps = {r.rank: r.last_step for r in alive.ranks if r.last_step is not None}
        last = max(steps.values(), default=None)
        behind = sorted(rank for rank, at in steps.items() if last is not None and at < last)
        doing = (
            f"in phase {phase}" if phase else "between steps" if steps else "before its first step"
        )
        doings = {r.rank: known_phase(r.phase) or "train" for r in alive.living}
        words = {
            "summary": f"no step for {duration(standing)}, {doing}; its processes are alive",
            "phase": phases(doings) if doings else phase or "train",
            "cause": f"it usually goes on within {duration(limit)}: a hang in a collective, in "
            "the data loader or on storage",
            "first_action": "Look at one process with py-spy dump --pid PID before anything is "
            "killed; then restart from the last good checkpoint.",
        }
        if last is not None:
            words["step"] = str(last)
        apart = self._stacks.apart()
        blamed, why = (behind, "behind the others") if behind else (apart, "not in the collective")
        if blamed:
            hosts = {r.rank: r.host for r in alive.ranks}
            nodes = {self._places.node(rank) or hosts.get(rank, "") for rank in blamed} - {""}
            words["rank"] = f"{some(blamed)} ({why})"
            if nodes:
                words["node"] = some(sorted(nodes))
        return words | self._stacks.words()

    def coverage(self, ctx: RunContext) -> Coverage:
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "pace": self._pace.state(),
            "places": self._places.state(),
            "stacks": self._stacks.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._pace.restore(state["pace"])
        self._places.restore(state["places"])
        self._stacks.restore(state["stacks"])
