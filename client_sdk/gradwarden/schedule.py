"""Which steps are captured and what is taken of them: presets, every n, early, on demand."""

from __future__ import annotations

from dataclasses import dataclass

from gradwarden import wire


@dataclass(frozen=True, slots=True)
class Preset:
    """How much is taken of a captured step; the statistics of a row are always."""

    histogram_every: int
    """Captured steps from one histogram to the next; 0 means none."""
    weights_every: int
    """Captured steps from one look at the weights, a sixteenth of the rows, to the next; 0
    means none."""


PRESETS = {
    "light": Preset(histogram_every=0, weights_every=0),
    "standard": Preset(histogram_every=10, weights_every=4),
    "full": Preset(histogram_every=1, weights_every=1),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to take of one step."""

    look: bool = True
    """Whether a step that is not captured is looked at for NaN and Inf."""
    capture: bool = False
    """Whether the matrix is taken at all; a non-finite value is noticed either way."""
    histogram: bool = False
    checksums: bool = False
    """Whether every checksum travels, not only the roots."""
    weighs: bool = False
    """Whether weights are of interest at all."""
    compares: int | None = None
    """The slice (rows whose index modulo 16 it is) whose weights are compared with replicas'."""
    moves: int | None = None
    """The slice whose weight norms and update ratios are taken."""


class Schedule:
    """Decides by the step's number alone, so that ranks agree without talking.

    ``exponent`` is the throttle's: captured are steps divisible by ``every * 2^exponent``, so
    that what a slower rank captures the others have captured too.
    """

    def __init__(
        self, preset: str = "standard", every: int = 1, early: int = 0, first_step: int = 0
    ) -> None:
        self.preset, self.every, self.exponent = preset, every, 0
        self._dense_until = first_step + early
        self.paused = False
        """Whether nothing is to be taken; steps are counted all the same."""
        self.replicas = False
        """Whether other ranks hold the same weights, so that these are read at every capture."""
        self._asked: tuple[int, bool] | None = None
        self._until = self._checksums_until = 0

    def change(
        self, preset: str | None = None, every: int | None = None, early: int | None = None
    ) -> None:
        """Take what the service asked for; what is not given or unusable stays."""
        if preset in PRESETS:
            self.preset = str(preset)
        if isinstance(every, int) and every >= 1:
            self.every = every
        if isinstance(early, int) and early >= 0:
            self._dense_until = early

    def demand(self, steps: int, checksums: bool = False) -> None:
        """Capture the next steps whatever the schedule says, from the next one planned on."""
        self._asked = (steps, checksums)

    def stride(self, step: int) -> int:
        """Steps from one regular capture to the next, around ``step``."""
        dense = step < self._dense_until
        return (1 if dense else self.every) << self.exponent

    def plan(self, step: int) -> Plan:
        """What to take of ``step``."""
        if self.paused:
            return Plan(look=False)
        asked, self._asked = self._asked, None
        if asked is not None:
            self._until = max(self._until, step + asked[0])
            self._checksums_until = step + asked[0] if asked[1] else self._checksums_until
        stride, preset = self.stride(step), PRESETS[self.preset]
        regular = step % stride == 0
        if not regular and step >= self._until:
            return Plan()
        turn, weights = step // stride, preset.weights_every
        slow = regular and weights and turn % weights == 0
        return Plan(
            capture=True,
            histogram=regular and _every(preset.histogram_every, turn),
            checksums=step < self._checksums_until,
            weighs=weights > 0,
            compares=turn % wire.SLICES if self.replicas else None,
            moves=turn // weights % wire.SLICES if slow else None,
        )


def _every(interval: int, turn: int) -> bool:
    return interval > 0 and turn % interval == 0
