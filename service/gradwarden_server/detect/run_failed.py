"""19 RunFailed: an exception, out of memory, a kill, an aborted collective; and no new attempt.

A page in production, else a ticket. A preemption is a note; a cancelled run is nobody's alarm.
A silent death, of which no rank said goodbye, counts as a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Liveness
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.pace import duration
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, RunFacts, Severity

_MEMORY = ("outofmemory", "out of memory", "memoryerror", "cannot allocate memory")
_COLLECTIVE = (
    "nccl",
    "gloo",
    "distbackenderror",
    "connection closed by peer",
    "connection reset by peer",
)


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/failed_run.yaml."""

    grace_seconds: float
    silent_seconds: float
    settle_seconds: float
    page_environment: str


@dataclass(frozen=True, slots=True)
class _End:
    """How one rank said it ended."""

    rank: int
    status: str
    step: int
    at_ns: int
    error: str
    memory_bytes: int


class RunFailed(Detector):
    """See the module."""

    name: ClassVar[str] = "run_failed"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._attempt = 0
        self._ends: list[_End] = []
        self._checkpoint = ""

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.attempt > self._attempt:
            self._attempt, self._ends = step.attempt, []
        for rank, event in step.events:
            if event["kind"] == "checkpoint" and event.get("ok"):
                self._checkpoint = f"{event.get('path', '')} (step {step.step})"
            if event["kind"] == "finish":
                memory = event.get("memory_bytes")
                end = _End(
                    rank=rank,
                    status=str(event.get("status", "")),
                    step=step.step,
                    at_ns=step.first_received_ns,
                    error=str(event.get("error") or ""),
                    memory_bytes=memory if isinstance(memory, int) else 0,
                )
                self._ends.append(end)
        return ()

    def tick(self, now_ns: int, facts: RunFacts, liveness: Liveness) -> Sequence[Condition]:
        p = self.params
        if liveness.attempt > self._attempt:
            self._attempt, self._ends = liveness.attempt, []
        ends = {e.status for e in self._ends}
        if "cancelled" in ends or facts.status in ("finished", "cancelled"):
            return self.calm("run_ended")
        if "preempted" in ends:
            return self.say("note", self._preempted())
        failures = sorted(
            (e for e in self._ends if e.status == "failed"),
            key=lambda e: (_kind(e) == "collective", e.at_ns, e.rank),
        )
        if failures:
            failed_ns, words = min(e.at_ns for e in failures), self._failed(failures)
        elif facts.status == "failed":
            failed_ns, words = facts.ended_ns or facts.last_seen_ns, self._unknown(facts)
        else:
            living = liveness.living
            if not living:
                return self.calm("new_attempt")
            failed_ns, words = max(r.last_seen_ns for r in living), self._silent(liveness)
            if now_ns < liveness.since(failed_ns) + p.silent_seconds * 1e9:
                return self.calm("heard_again")
        settled = liveness.service_started_ns + p.settle_seconds * 1e9
        if now_ns < max(failed_ns + p.grace_seconds * 1e9, settled):
            return self.calm("waiting_for_new_attempt")
        words["summary"] += f"; no new attempt within {duration(p.grace_seconds)}"
        severity: Severity = "page" if facts.environment == p.page_environment else "ticket"
        return self.say(severity, words)

    def _words(self, summary: str, cause: str, action: str) -> dict[str, str]:
        words = {
            "summary": summary,
            "attempt": str(self._attempt),
            "cause": cause,
            "first_action": action,
        }
        if self._checkpoint:
            words["last_checkpoint"] = self._checkpoint
        return words

    def _failed(self, failures: Sequence[_End]) -> dict[str, str]:
        first = failures[0]
        kind = _kind(first)
        action = {
            "memory": "Resume with a smaller micro-batch or activation checkpointing; the weights "
            "are unharmed.",
            "collective": "Look for a rank or node that died first (RankSilent, dmesg); then "
            "resume from the last good checkpoint.",
            "exception": "Read the error; if it is not in your code or data, resume from the last "
            "good checkpoint.",
        }[kind]
        chain = "; ".join(f"rank {e.rank}: {e.error or 'no error text'}" for e in failures[:5])
        name = {"memory": "out of memory", "collective": "a collective was aborted"}.get(
            kind, "an exception"
        )
        words = self._words(
            f"run failed at step {first.step}: {name} on rank {first.rank}", chain, action
        )
        words |= {"step": str(first.step), "rank": str(first.rank)}
        if first.memory_bytes:
            words["memory"] = f"{first.memory_bytes / 2**30:.1f} GiB"
        return words

    def _silent(self, liveness: Liveness) -> dict[str, str]:
        steps = [r.last_step for r in liveness.living if r.last_step is not None]
        words = self._words(
            "run died without a word",
            "no rank said goodbye: killed (out of memory, SIGKILL) or its nodes are lost",
            "Look at the scheduler and at dmesg for a kill; then resume from the last good "
            "checkpoint.",
        )
        hosts = sorted({r.host for r in liveness.living if r.host})
        if hosts:
            words["node"] = ", ".join(hosts[:8])
        if steps:
            words["step"] = str(max(steps))
        return words

    def _unknown(self, facts: RunFacts) -> dict[str, str]:
        words = self._words(
            "run failed",
            "it was reported as failed without a word on why",
            "Look at the job's own log; then resume from the last good checkpoint.",
        )
        if facts.last_step is not None:
            words["step"] = str(facts.last_step)
        return words

    def _preempted(self) -> dict[str, str]:
        end = next(e for e in self._ends if e.status == "preempted")
        words = self._words(
            f"run was preempted at step {end.step}",
            "the scheduler took its place",
            "Nothing: the scheduler starts it again.",
        )
        return words | {"step": str(end.step), "rank": str(end.rank)}

    def coverage(self, ctx: RunContext) -> Coverage:
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        ends = [[e.rank, e.status, e.step, e.at_ns, e.error, e.memory_bytes] for e in self._ends]
        return {"attempt": self._attempt, "ends": ends, "checkpoint": self._checkpoint}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._attempt, self._checkpoint = state["attempt"], state["checkpoint"]
        self._ends = [_End(*row) for row in state["ends"]]


def _kind(end: _End) -> str:
    text = end.error.lower()
    if any(sign in text for sign in _MEMORY):
        return "memory"
    return "collective" if any(sign in text for sign in _COLLECTIVE) else "exception"
