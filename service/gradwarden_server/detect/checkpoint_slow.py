"""20 CheckpointSlow: a save stops the training for much longer than this run's saves do, or
saves take too much of the run's time.

A save is timed by ``monitor.checkpoint``, else by what ``torch.save`` took of a step. Saves of
known size are compared with those of their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect import saves, timing
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.pace import duration
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_MOST = 512
"""Saves that are remembered."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/checkpoint.yaml."""

    ratio: float
    least_seconds: float
    after_saves: int
    size_ratio: float
    share: float
    share_seconds: float


@dataclass(frozen=True, slots=True)
class _Save:
    """One save: when, for how long it blocked, and how large it is (0 where unknown)."""

    attempt: int
    step: int
    at_ns: int
    seconds: float
    bytes: int = 0

    @property
    def same(self) -> tuple[int, int]:
        """What ranks that save side by side have in common."""
        return self.attempt, self.step


class CheckpointSlow(Detector):
    """See the module."""

    name: ClassVar[str] = "checkpoint_slow"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._saves = saves.Saves()
        self._places = Places()
        self._calm = self.calm()
        self._told: list[_Save] = []
        self._timed: list[_Save] = []
        self._words: dict[str, str] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        news = False
        if step.events:
            self._places.observe(step)
            for told in saves.told(step):
                self._saves.add(told)
                if told.seconds is not None and not told.checked:
                    news = self._hear(step, told) or news
        times = None if self._told or step.eventful else timing.of(step)
        if times is not None and times.checkpoint > 0:
            news = True
            save = _Save(step.attempt, step.step, step.time_ns, times.checkpoint)
            self._judge(step, self._timed, save, times.checkpoint_rank, "")
            self._timed = [*self._timed, save][-_MOST:]
        if not (news or self._words):
            return ()
        return self.say("ticket", self._words) if self._words else self._calm

    def _hear(self, step: Step, told: saves.Told) -> bool:
        """Ranks that save a shard each do it at once: the longest of them counts."""
        assert told.seconds is not None
        self._timed = []
        save = _Save(step.attempt, told.step, told.at_ns, told.seconds, told.bytes)
        beside = next((s for s in self._told if s.same == save.same), None)
        if beside is not None and beside.seconds >= save.seconds:
            return False
        before = [s for s in self._told if s.same != save.same]
        self._judge(step, before, save, told.rank, told.path)
        self._told = [*before, save][-_MOST:]
        return True

    def _judge(
        self, step: Step, before: Sequence[_Save], save: _Save, rank: int, path: str
    ) -> None:
        p = self.params
        alike = [s.seconds for s in before if self._alike(s, save)]
        usual = median(alike) if len(alike) >= p.after_saves else None
        since = save.at_ns - p.share_seconds * 1e9
        recent = [s for s in (*before, save) if s.at_ns > since]
        spent = sum(s.seconds for s in recent)
        if usual is not None and save.seconds > max(p.ratio * usual, p.least_seconds):
            summary = (
                f"saving a checkpoint stopped the training for {duration(save.seconds)}, "
                f"{save.seconds / usual:.1f} times the usual {duration(usual)}"
            )
        elif len(recent) > 1 and spent > p.share * p.share_seconds:
            summary = (
                f"saving checkpoints took {duration(spent)} of the last {duration(p.share_seconds)}"
            )
        else:
            self._words = {}
            return
        if self._words:
            return
        self._words = {
            "summary": summary,
            "step": str(step.step),
            "attempt": str(step.attempt),
            "seconds": f"{save.seconds:.1f}",
            "cause": "storage is slower than before, or shared with others; or checkpoints are "
            "saved too often for their size",
            "first_action": "Compare the write speed of that volume with others; save to a local "
            "disk and copy from there, or save asynchronously.",
            **self._places.words([rank]),
            **self._saves.words(),
        }
        if path:
            self._words["path"] = path
        if save.bytes:
            self._words["bytes"] = str(save.bytes)

    def _alike(self, one: _Save, other: _Save) -> bool:
        """Whether their sizes are of one kind; unknown ones are alike to all."""
        least, most = sorted((one.bytes, other.bytes))
        return not least or most <= self.params.size_ratio * least

    def coverage(self, ctx: RunContext) -> Coverage:
        known, wanted = max(len(self._told), len(self._timed)), self.params.after_saves
        if known >= wanted:
            return Coverage(self.alert, "armed")
        if known:
            return Coverage(self.alert, "waiting", f"{known} of {wanted} checkpoints")
        return Coverage(self.alert, "waiting", _LINE)

    def state(self) -> dict[str, Any]:
        return {
            "saves": self._saves.state(),
            "places": self._places.state(),
            "told": [list(astuple(save)) for save in self._told],
            "timed": [list(astuple(save)) for save in self._timed],
            "words": self._words,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._saves.restore(state["saves"])
        self._places.restore(state["places"])
        self._told = [_Save(*row) for row in state["told"]]
        self._timed = [_Save(*row) for row in state["timed"]]
        self._words = dict(state["words"])


_LINE = "the first checkpoint: with monitor.checkpoint(path, step) as tmp: torch.save(state, tmp)"
