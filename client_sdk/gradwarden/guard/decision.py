"""What one rank says of a step, how the ranks' words join, and what follows: all pure.

A word is one int32. Words of a step join by their maximum: the graver action wins, and among
equals the lowest rank that said so is named. No clock, no torch, no communication here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gradwarden.guard.options import Guard


class Act(IntEnum):
    """What a word asks for, the graver the larger."""

    NONE = 0
    SKIPPED = 1  # held its gradients back; asks for nothing
    ROLLBACK = 2
    OFF = 3  # cannot go on guarding: nothing that needs all ranks may start
    HALT = 4


class Cause(IntEnum):
    """Why, as far as one word can tell."""

    NONE = 0
    NONFINITE = 1
    FAULT = 2
    DISAGREED = 3
    REQUESTED = 4
    LEFT = 5


_TEXT = {
    Cause.NONE: "no reason given",
    Cause.NONFINITE: "a gradient was NaN or Inf",
    Cause.FAULT: "the guard itself failed",
    Cause.DISAGREED: (
        "ranks disagreed on what was NaN or Inf, so their weights differ now: "
        "ranks that do not share all gradients need Guard(sync=True)"
    ),
    Cause.REQUESTED: "a halt was requested",
    Cause.LEFT: "a rank ended its watch or lost the others",
}
_RANKS = 1 << 20


@dataclass(frozen=True, slots=True)
class Word:
    """One rank's word on one step, or the joint one."""

    act: Act = Act.NONE
    cause: Cause = Cause.NONE
    rank: int = 0

    def encode(self) -> int:
        """An int32 whose maximum over ranks is the joint word; 0 for nothing to say."""
        if self.act is Act.NONE:
            return 0
        return self.act << 24 | self.cause << 20 | (_RANKS - 1 - min(self.rank, _RANKS - 1))

    @staticmethod
    def decode(number: int) -> Word:
        if number <= 0:
            return QUIET
        return Word(
            Act(number >> 24), Cause(number >> 20 & 15), _RANKS - 1 - (number & (_RANKS - 1))
        )

    def reason(self, step: int, world: int) -> str:
        where = f" (rank {self.rank} said so)" if world > 1 else ""
        return f"{_TEXT[self.cause]} at step {step}{where}"


QUIET = Word()


@dataclass(slots=True)
class Decider:
    """Turns joint words into actions. Fed the same words, all ranks decide the same."""

    guard: Guard
    rank: int = 0
    row: int = 0
    """Skipped steps in a row."""
    rollbacks: int = 0
    """Rollbacks since the last cool-down."""
    clean: int = 0
    """Steps without a finding in a row."""

    def finding(self) -> Word:
        """This rank's word on a step with a non-finite gradient."""
        policy = self.guard.on_nonfinite
        if policy is None:
            return QUIET
        act = {"skip_step": Act.SKIPPED, "halt": Act.HALT, "rollback": Act.ROLLBACK}[policy]
        return Word(act, Cause.NONFINITE, self.rank)

    def joined(self, own: Word, joint: Word) -> tuple[Act, str]:
        """What all ranks do about a step, and the rest of the reason."""
        if joint.act is Act.NONE:
            self.row, self.clean = 0, self.clean + 1
            if self.clean >= self.guard.cooldown_steps:
                self.rollbacks = 0
            return Act.NONE, ""
        self.clean = 0
        if joint.act is Act.SKIPPED:
            self.row += 1
            if self.row > self.guard.most:
                return Act.HALT, f"; {self.row} steps in a row were skipped"
            return Act.SKIPPED, ""
        if joint.act is Act.ROLLBACK:
            if self.rollbacks >= self.guard.most:
                return Act.HALT, f"; {self.rollbacks} rollbacks did not cure it"
            self.rollbacks += 1
        return joint.act, ""
