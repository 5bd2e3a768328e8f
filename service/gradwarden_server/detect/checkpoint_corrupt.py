"""20 CheckpointCorrupt: a checkpoint is not what was saved.

``monitor.verify_checkpoint(path)`` and a guard that restores look at the file: whether it is
whole, and whether checksum and size are those of the save. Saves of earlier attempts are
remembered here, so that a process that starts anew may verify what its predecessor saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect import saves
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/checkpoint.yaml."""

    whole_share: float


class CheckpointCorrupt(Detector):
    """See the module."""

    name: ClassVar[str] = "checkpoint_corrupt"
    severities: ClassVar[tuple[Severity, ...]] = ("page",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._saves = saves.Saves()
        self._places = Places()
        self._calm = self.calm()
        self._looked = False
        self._words: dict[str, str] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if not step.events:
            return ()
        self._places.observe(step)
        heard = saves.told(step)
        for told in heard:
            self._hear(step, told)
        if not heard:
            return ()
        return self.say("page", self._words) if self._words else self._calm

    def _hear(self, step: Step, told: saves.Told) -> None:
        if not told.checked:
            self._saves.add(told)
            if told.ok and self._words and told.step > int(self._words["saved_step"]):
                self._words = {}  # a newer one is there to resume from
            return
        self._looked = True
        why = self._wrong(told)
        if not why:
            return
        known = self._saves.at(told.path)
        self._saves.drop(told.path)
        saved_step = told.step if known is None else known.step
        self._words = {
            "summary": f"checkpoint {told.path} is not what was saved: {why}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "saved_step": str(saved_step),
            "path": told.path,
            "bytes": str(told.bytes),
            "cause": f"{why}: the disk was full or failed, the process died while it wrote, or "
            "the file was changed since",
            "first_action": "Do not resume from it; resume from the last good checkpoint, and "
            "verify that one first.",
            **self._places.words([told.rank]),
            **self._saves.words(),
        }

    def _wrong(self, told: saves.Told) -> str:
        """What is wrong with a file that was looked at; nothing where all that is known fits.

        A file that was written again since it was recorded may rightly differ; only one that
        lost a part of its size is not whole.
        """
        if told.sound is False:
            return told.error or "it is not as it was saved"
        known = self._saves.at(told.path)
        if told.sound is True or known is None or not told.sha256:
            return ""
        if not told.whole and told.bytes < self.params.whole_share * known.bytes:
            return f"it has {told.bytes} of {known.bytes} bytes"
        again = not known.modified_ns or told.modified_ns != known.modified_ns
        if again or told.sha256 == known.sha256:
            return ""
        return "its checksum differs"

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._looked:
            return Coverage(self.alert, "armed")
        if self._saves.last is None:
            line = "with monitor.checkpoint(path, step) as tmp: torch.save(state, tmp)"
            return Coverage(self.alert, "waiting", f"the first checkpoint: {line}")
        line = "call monitor.verify_checkpoint(path) before torch.load(path)"
        return Coverage(self.alert, "armed", f"what is saved is recorded; {line}")

    def state(self) -> dict[str, Any]:
        return {
            "saves": self._saves.state(),
            "places": self._places.state(),
            "looked": self._looked,
            "words": self._words,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._saves.restore(state["saves"])
        self._places.restore(state["places"])
        self._looked, self._words = state["looked"], dict(state["words"])
