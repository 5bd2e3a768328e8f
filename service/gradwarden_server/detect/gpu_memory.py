"""23 GpuMemoryPressure: a GPU is about to run out of memory, or slowly fills up.

Allocation retries (the allocator had to give back its cache) that rise window after window, a
peak near the device's end, or allocated memory that grows although the model does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_ALLOCATED, _PEAK = "gpu_memory_allocated_bytes", "gpu_memory_peak_bytes"
_TOTAL = "gpu_memory_total_bytes"
_RETRIES, _OOMS = "gpu_memory_retries", "gpu_memory_ooms"


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/gpu_memory.yaml."""

    retry_steps: int
    retry_windows: int
    peak_share: float
    leak_steps: int
    leak_windows: int
    leak_growth: float
    clean_steps: int


@dataclass(slots=True)
class _Rank:
    """What is known of one rank's GPU; windows are counted in steps."""

    allocated: float = 0.0
    peak: float = 0.0
    total: float = 0.0
    retries: float | None = None
    retries_at: int = 0
    rising: int = 0
    least: float = 0.0
    least_at: int = 0
    floors: tuple[float, ...] = ()
    bad_at: int | None = None


class GpuMemoryPressure(Detector):
    """See the module."""

    name: ClassVar[str] = "gpu_memory"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._places = Places()
        self._calm = self.calm()
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._ranks: dict[int, _Rank] = {}
        self._words: dict[str, str] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.events:
            self._places.observe(step)
        if ctx.new_attempt:
            self._begin()
        if ctx.restarted:
            for held in self._ranks.values():  # other parameters train, or other data
                held.floors, held.least, held.least_at = (), 0.0, self._steps
        if step.eventful:
            return ()
        self._steps += 1
        for rank, said in step.ranks.items():
            if _ALLOCATED in said.scalars:
                self._look(step, rank, said.scalars)
        if not self._ranks:
            return ()
        if self._words and not self._recent():
            self._words = {}
        return self.say("ticket", self._words) if self._words else self._calm

    def _recent(self) -> bool:
        most = self.params.clean_steps
        marks = (held.bad_at for held in self._ranks.values())
        return any(at is not None and self._steps - at < most for at in marks)

    def _look(self, step: Step, rank: int, told: Mapping[str, float]) -> None:
        held = self._ranks.get(rank)
        if held is None:
            held = self._ranks[rank] = _Rank(retries_at=self._steps, least_at=self._steps)
        held.allocated = told[_ALLOCATED]
        held.total = told.get(_TOTAL, held.total)
        sign = self._retries(held, told) or self._peak(held, told) or self._leak(held)
        if not sign:
            return
        held.bad_at = self._steps
        if not self._words:
            summary, cause, action = sign
            self._words = {
                "summary": f"rank {rank}: {summary}",
                "step": str(step.step),
                "attempt": str(step.attempt),
                "bytes": f"{held.allocated:.0f}",
                "cause": cause,
                "first_action": action,
                **self._places.words([rank]),
            }

    def _retries(self, held: _Rank, told: Mapping[str, float]) -> tuple[str, str, str] | None:
        p = self.params
        count = told.get(_RETRIES, 0.0) + told.get(_OOMS, 0.0)
        if held.retries is None:
            held.retries, held.retries_at = count, self._steps
        if self._steps - held.retries_at < p.retry_steps:
            return None
        more = count - held.retries
        held.retries, held.retries_at = count, self._steps
        held.rising = held.rising + 1 if more > 0 else 0
        if held.rising < p.retry_windows:
            return None
        return (
            f"{more:.0f} allocation retries in the last {p.retry_steps} steps, rising in "
            f"{held.rising} such windows in a row, with {_gib(held.allocated)} allocated",
            "memory is full or in pieces: each retry waits for the device and empties the cache",
            "Lower the micro-batch, or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True if "
            "much is reserved and little allocated.",
        )

    def _peak(self, held: _Rank, told: Mapping[str, float]) -> tuple[str, str, str] | None:
        peak, before = told.get(_PEAK, 0.0), held.peak
        held.peak = max(before, peak)
        if held.total <= 0 or peak <= self.params.peak_share * held.total or peak <= before:
            return None
        return (
            f"{_gib(peak)} were allocated at the peak, {peak / held.total:.0%} of "
            f"{_gib(held.total)}",
            "the next longer batch, or another process on this GPU, ends the run",
            "Lower the micro-batch or turn on activation checkpointing at the next restart.",
        )

    def _leak(self, held: _Rank) -> tuple[str, str, str] | None:
        p = self.params
        held.least = min(held.least or held.allocated, held.allocated)
        if self._steps - held.least_at < p.leak_steps:
            return None
        floors = (*held.floors, held.least)[-(p.leak_windows + 1) :]
        held.floors, held.least, held.least_at = floors, 0.0, self._steps
        limit = 1 + p.leak_growth
        if len(floors) <= p.leak_windows:
            return None
        if not all(b > limit * a for a, b in pairwise(floors)):
            return None
        each = (floors[-1] - floors[0]) / p.leak_windows
        return (
            f"allocated memory never falls below {_gib(floors[-1])} now, {_gib(floors[0])} were "
            f"enough before: {_gib(each)} more every {p.leak_steps} steps",
            "a tensor is kept at every step: a loss that is summed with its graph, a growing list "
            "of outputs, hooks that are added again and again",
            "Keep numbers instead of tensors (loss.item() or loss.detach()); save a checkpoint "
            "before memory ends.",
        )

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._ranks:
            known = any(held.total for held in self._ranks.values())
            return Coverage(self.alert, "armed", "" if known else "the device's size is unknown")
        if ctx.steps < self.params.retry_steps:
            wanted = self.params.retry_steps
            return Coverage(self.alert, "waiting", f"{ctx.steps} of {wanted} steps")
        return Coverage(self.alert, "armed", "no GPU: nothing to fill")

    def state(self) -> dict[str, Any]:
        return {
            "places": self._places.state(),
            "steps": self._steps,
            "ranks": [[rank, asdict(held)] for rank, held in self._ranks.items()],
            "words": self._words,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._places.restore(state["places"])
        self._steps, self._words = state["steps"], dict(state["words"])
        self._ranks = {
            rank: _Rank(**{**held, "floors": tuple(held["floors"])})
            for rank, held in state["ranks"]
        }


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
