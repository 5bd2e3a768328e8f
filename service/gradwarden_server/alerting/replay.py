"""A run's history judged anew, by its recorded clock: the same assembler, detectors and lifecycle
as live.

What history does not keep is taken as told by what it does: a process counts as alive, with its
heartbeats, until the last that was heard of it, and a pause is in the phase in which the frame
behind it says that the time was spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradwarden import wire
from gradwarden_server.alerting.judging import Judging, Layouts, Outcome
from gradwarden_server.detect.assembler import WAIT_NS, Cell
from gradwarden_server.detect.base import Coverage, Liveness, RankLiveness
from gradwarden_server.detect.engine import Verdict
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Alert, Change, RunFacts
from gradwarden_server.rules.spec import RuleSet

TICK_NS = 10 * 1_000_000_000
"""How often what time alone tells is asked of history."""
AFTER_NS = 1800 * 1_000_000_000
"""How long the clock goes on behind a run that did not end well."""

_PHASES = {
    "evaluation_seconds": "evaluation",
    "checkpoint_seconds": "checkpoint",
    "compile_seconds": "compile",
}
_MOST_TICKS = 400  # of one silence: a run that slept for a month is asked more rarely


@dataclass(frozen=True, slots=True)
class Process:
    """One rank of one attempt as history knows it: from its start to the last word of it."""

    ordinal: int
    rank: int
    started_ns: int
    last_ns: int
    world_size: int = 1
    host: str = ""


class Replay:
    """One run, from its first batch to its end.

    Args:
        rules: What to judge by.
        facts: The run; its status is that of a run under way until :meth:`close`.
        layouts: Finds a layout by its hash.
        processes: Every process that took part.
        external_url: What links begin with.
    """

    def __init__(
        self,
        rules: RuleSet,
        facts: RunFacts,
        layouts: Layouts,
        processes: Iterable[Process],
        external_url: str = "",
    ) -> None:
        running = replace(facts, status="running", ended_ns=None)
        self._judging = Judging(rules, running, layouts, external_url)
        self._processes = sorted(processes, key=lambda p: p.started_ns)
        self._now_ns = min((p.started_ns for p in self._processes), default=facts.started_ns)
        self._ended: set[tuple[int, int]] = set()
        self._steps: dict[tuple[int, int], tuple[int, int]] = {}
        self.open: dict[str, Alert] = {}
        """The open alerts by fingerprint."""
        self.changes: list[Change] = []
        """Every transition so far, in order."""

    def hear(
        self,
        batch: wire.Batch,
        ordinal: int,
        received_ns: int,
        shift_ns: int = 0,
        cell: Cell = (0, 1),
    ) -> None:
        """Take the next batch, in the order in which they were received."""
        self._pass(received_ns, _phase(batch))
        self._judging.start(*self._newest(received_ns))
        self._judging.assembler.add(batch, ordinal, received_ns, shift_ns, cell)
        key = ordinal, batch.stream.rank
        for frame in batch.frames:
            self._ended |= {key for event in frame.events if event.get("kind") == "finish"}
        self._steps[key] = batch.frames[-1].step, batch.frames[-1].time_ns + shift_ns
        outcomes = self._advance(self._judging.assembler.release(received_ns), received_ns)
        for verdict in self._judging.detectors.peek(self._judging.assembler.urgent()):
            outcomes.append(self._judging.outcome(verdict, received_ns))
        self._settle(outcomes)

    def close(self, status: str, ended_ns: int) -> None:
        """Everything was heard.

        Args:
            status: How the run ended; ``running`` of one whose end nobody told: was it killed,
                then that is found out.
            ended_ns: When.
        """
        self._pass(max(ended_ns, self._now_ns) + WAIT_NS, None)
        if status != "running":
            facts = replace(self._judging.facts, status=status, ended_ns=ended_ns)
            self._judging.facts = facts
        if status in ("running", "failed"):
            self._pass(self._now_ns + AFTER_NS, None)
        self._settle([self._tick(None)], drained=True)

    def coverage(self) -> list[Coverage]:
        """Per alert, whether this run gives it what it needs."""
        return self._judging.detectors.coverage()

    def _pass(self, until_ns: int, phase: str | None) -> None:
        """Let the clock go on: waits end, and what time alone tells is asked."""
        between = max(TICK_NS, (until_ns - self._now_ns) // _MOST_TICKS)
        tick_ns = self._now_ns + between
        while True:
            deadline_ns = self._judging.assembler.deadline_ns
            next_ns = tick_ns if deadline_ns is None else min(tick_ns, deadline_ns)
            if next_ns > until_ns:
                break
            self._now_ns = max(self._now_ns, next_ns)
            outcomes = self._advance(self._judging.assembler.release(self._now_ns), self._now_ns)
            if next_ns == tick_ns:
                outcomes.append(self._tick(phase))
                tick_ns += between
            self._settle(outcomes)
        self._now_ns = max(self._now_ns, until_ns)

    def _advance(self, steps: Sequence[Step], now_ns: int) -> list[Outcome]:
        verdicts: list[Verdict] = self._judging.detectors.advance(steps)
        return [self._judging.outcome(verdict, now_ns) for verdict in verdicts]

    def _tick(self, phase: str | None) -> Outcome:
        ordinal, _ = self._newest(self._now_ns)
        taking_part = [
            p for p in self._processes if p.ordinal == ordinal and p.started_ns <= self._now_ns
        ]
        ranks: Mapping[int, Process] = {p.rank: p for p in taking_part}
        liveness = Liveness(
            attempt=ordinal,
            attempt_started_ns=min((p.started_ns for p in taking_part), default=self._now_ns),
            service_started_ns=0,
            ranks=tuple(self._alive(ranks[rank], phase) for rank in sorted(ranks)),
        )
        return self._judging.tick(self._now_ns, liveness)

    def _alive(self, process: Process, phase: str | None) -> RankLiveness:
        step, step_ns = self._steps.get((process.ordinal, process.rank), (None, None))
        return RankLiveness(
            rank=process.rank,
            last_seen_ns=min(self._now_ns, process.last_ns),
            last_step=step,
            last_step_ns=step_ns,
            phase=phase,
            ended=(process.ordinal, process.rank) in self._ended,
            host=process.host,
        )

    def _newest(self, now_ns: int) -> tuple[int, int]:
        """Ordinal and world size of the newest attempt that had begun."""
        begun = [p for p in self._processes if p.started_ns <= now_ns]
        newest = max((p.ordinal for p in begun), default=0)
        return newest, max((p.world_size for p in begun if p.ordinal == newest), default=1)

    def _settle(self, outcomes: Sequence[Outcome], drained: bool = False) -> None:
        new, self.open = self._judging.changes(self.open, outcomes, self._now_ns, drained)
        self.changes += new


def _phase(batch: wire.Batch) -> str | None:
    """In which phase the time before the batch was mostly spent, if in one without steps."""
    for frame in batch.frames:
        spent = {phase: frame.scalars.get(name, 0.0) for name, phase in _PHASES.items()}
        phase = max(spent, key=lambda name: spent[name])
        if spent[phase] > frame.scalars.get("step_seconds", 0.0) / 2:
            return phase
        named = [e for e in frame.events if e.get("kind") == "phase"]
        if named:
            return str(named[-1].get("name"))
        if frame.scalars:
            return None
    return None
