"""18 RankSilent: a rank that has not said goodbye is not heard any more.

Heartbeats come every 10 s from a thread of their own, so that a busy loop is not silence. The
service's own downtime is no evidence.
"""

from __future__ import annotations

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
    """Values and sources: alert_rules/silent_run.yaml."""

    ticket_seconds: float
    page_seconds: float
    standing_page_seconds: float
    standing_gaps: float


class RankSilent(Detector):
    """See the module."""

    name: ClassVar[str] = "rank_silent"
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
        self._pace.observe(step, longest_good=self.params.page_seconds)
        return ()

    def tick(self, now_ns: int, facts: RunFacts, liveness: Liveness) -> Sequence[Condition]:
        p = self.params
        if facts.status != "running":
            return self.calm("run_ended")
        silent = {
            r: (now_ns - liveness.since(r.last_seen_ns)) / 1e9
            for r in liveness.living
            if now_ns - liveness.since(r.last_seen_ns) >= p.ticket_seconds * 1e9
        }
        if not silent:
            return self.calm("heard_again")
        stepped = [r.last_step_ns for r in liveness.ranks if r.last_step_ns is not None]
        moment = liveness.since(max(stepped, default=liveness.attempt_started_ns))
        pause = max(p.standing_page_seconds, p.standing_gaps * self._pace.longest_gap)
        stands = (now_ns - moment) / 1e9 >= pause
        longest = max(silent.values())
        urgent = longest >= p.page_seconds or (stands and longest >= p.standing_page_seconds)
        ranks = sorted(r.rank for r in silent)
        first = min(silent, key=lambda r: (-silent[r], r.rank))
        nodes = {self._places.node(r.rank) or r.host for r in silent} - {""}
        every = len(silent) == len(liveness.living)
        words = {
            "summary": f"{'every rank' if every else 'rank ' + some(ranks)} silent for "
            f"{duration(longest)}; the run {'stands' if stands else 'goes on'}",
            "rank": some(ranks),
            "node": some(sorted(nodes)) or "unknown",
            "phase": phases({r.rank: known_phase(r.phase) or "train" for r in silent}),
            "cause": "no heartbeat: the process was killed, its node is lost, or the way from it "
            "to gradwarden is cut",
            "first_action": "Look whether the process and its node live (kubectl get pod, squeue, "
            "dmesg for an out-of-memory kill) before the job is restarted.",
        }
        if first.last_step is not None:
            words["step"] = str(first.last_step)
        words |= self._stacks.words(ranks)
        return self.say("page" if urgent else "ticket", words)

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
