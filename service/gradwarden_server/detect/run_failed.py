"""19 RunFailed: an exception, out of memory, a kill, an aborted collective; and no new attempt.

A page in production, else a ticket. A preemption is a note; a cancelled run is nobody's alarm.
A silent death, of which no rank said goodbye, counts as a kill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Liveness
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.pace import duration
from gradwarden_server.detect.places import Places, some
from gradwarden_server.detect.saves import Saves, told
from gradwarden_server.detect.stacks import Stacks
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
    healthy_steps: int


@dataclass(frozen=True, slots=True)
class _End:
    """How one rank said it ended."""

    rank: int
    status: str
    step: int
    at_ns: int
    error: str
    memory_bytes: int
    gpu_bytes: int = 0
    causes: tuple[str, ...] = ()

    @property
    def chain(self) -> str:
        """What was raised, and what led to it."""
        return " because of ".join([self.error or "no error text", *self.causes])


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
        self._places = Places()
        self._stacks = Stacks()
        self._saves = Saves()
        self._onset: int | None = None
        self._clean = 0

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.attempt > self._attempt:
            self._attempt, self._ends = step.attempt, []
        if ctx.new_attempt:
            self._onset, self._clean = None, 0
        self._stacks.observe(step)
        if step.events:
            self._hear(step)
        if not step.eventful:
            self._look(step, ctx)
        return ()

    def _hear(self, step: Step) -> None:
        self._places.observe(step)
        for save in told(step):
            self._saves.add(save)
            if save.checked and save.sound is False:
                self._saves.drop(save.path)
        for rank, event in step.events:
            if event["kind"] == "finish":
                causes = event.get("causes")
                end = _End(
                    rank=rank,
                    status=str(event.get("status", "")),
                    step=step.step,
                    at_ns=step.first_received_ns,
                    error=str(event.get("error") or ""),
                    memory_bytes=_bytes(event.get("memory_bytes")),
                    gpu_bytes=_bytes(event.get("gpu_memory_peak_bytes")),
                    causes=tuple(map(str, causes)) if isinstance(causes, list) else (),
                )
                self._ends.append(end)

    def _look(self, step: Step, ctx: RunContext) -> None:
        """Since when weights may be poisoned: a checkpoint from then on is not good."""
        sick = not all(view.clean for view in ctx.groups.values())
        poisoned = sick and step.stepped is not False
        if poisoned or (ctx.loss is not None and not math.isfinite(ctx.loss)):
            self._onset = step.step if self._onset is None else self._onset
            self._clean = 0
        elif self._onset is not None:
            self._clean += 1
            if self._clean >= self.params.healthy_steps:
                self._onset = None

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
            failed_ns, words = min(e.at_ns for e in failures), self._failed(failures, liveness)
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
        before = None if self._onset is None else self._onset - self.params.healthy_steps
        return words | self._saves.words(before)

    def _failed(self, failures: Sequence[_End], liveness: Liveness) -> dict[str, str]:
        first = failures[0]
        kind = _kind(first)
        dead = self._dead(failures, liveness) if kind == "collective" else []
        action = {
            "memory": "Resume with a smaller micro-batch or activation checkpointing; the weights "
            "are unharmed.",
            "collective": "Look for a rank or node that died first (RankSilent, dmesg); then "
            "resume from the last good checkpoint.",
            "exception": "Read the error; if it is not in your code or data, resume from the last "
            "good checkpoint.",
        }[kind]
        chain = "; ".join(f"rank {e.rank}: {e.chain}" for e in failures[:5])
        name = {"memory": "out of memory", "collective": "a collective was aborted"}.get(
            kind, "an exception"
        )
        what = f"{name} on rank {first.rank}"
        if dead:
            chain = f"rank {some(dead)} ended without a word, killed or lost; {chain}"
            what = f"rank {some(dead)} died, and {what}"
        words = self._words(f"run failed at step {first.step}: {what}", chain, action)
        named = dead or [first.rank]
        words |= {"step": str(first.step), **self._places.words(named)}
        host = next((r.host for r in liveness.ranks if r.rank in named and r.host), "")
        if host:
            words.setdefault("node", host)
        memory = [("of its process", first.memory_bytes), ("on its GPU", first.gpu_bytes)]
        peaks = [f"{count / 2**30:.1f} GiB {where}" for where, count in memory if count]
        if peaks:
            words["memory"] = "at its peak " + ", ".join(peaks)
        return words

    def _dead(self, failures: Sequence[_End], liveness: Liveness) -> list[int]:
        """The ranks that were last heard before anybody failed: the others only noticed."""
        heard = {r.rank: r.last_seen_ns for r in liveness.ranks}
        failed_ns = min(heard.get(e.rank, e.at_ns) for e in failures)
        said = {e.rank for e in self._ends}
        silent = (r for r in liveness.living if r.rank not in said and r.last_seen_ns < failed_ns)
        return sorted(r.rank for r in silent)

    def _silent(self, liveness: Liveness) -> dict[str, str]:
        steps = [r.last_step for r in liveness.living if r.last_step is not None]
        words = self._words(
            "run died without a word",
            "no rank said goodbye: killed (out of memory, SIGKILL) or its nodes are lost",
            "Look at the scheduler and at dmesg for a kill; then resume from the last good "
            "checkpoint.",
        )
        words["rank"] = some(sorted(r.rank for r in liveness.living))
        nodes = {self._places.node(r.rank) or r.host for r in liveness.living} - {""}
        if nodes:
            words["node"] = some(sorted(nodes))
        if steps:
            words["step"] = str(max(steps))
        return words | self._stacks.words()

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
        return words | {"step": str(end.step), **self._places.words([end.rank])}

    def coverage(self, ctx: RunContext) -> Coverage:
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "attempt": self._attempt,
            "ends": [asdict(end) for end in self._ends],
            "places": self._places.state(),
            "stacks": self._stacks.state(),
            "saves": self._saves.state(),
            "onset": [self._onset, self._clean],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._attempt = state["attempt"]
        self._ends = [_End(**{**row, "causes": tuple(row["causes"])}) for row in state["ends"]]
        self._places.restore(state["places"])
        self._stacks.restore(state["stacks"])
        self._saves.restore(state["saves"])
        self._onset, self._clean = state["onset"]


def _bytes(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _kind(end: _End) -> str:
    text = end.error.lower()
    if any(sign in text for sign in _MEMORY):
        return "memory"
    return "collective" if any(sign in text for sign in _COLLECTIVE) else "exception"
