"""What a case of the zoo is: a real training run, and what must and must not be said of it."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.zoo.clock import Clock
    from tests.zoo.ground import Ground

Words = Mapping[str, str]
Variant = Literal["plain", "clip", "skip"]
Named = Callable[[Words], bool]

PLAIN: tuple[Variant, ...] = ("plain",)
CLIPPED: tuple[Variant, ...] = ("plain", "clip")
SKIPPED: tuple[Variant, ...] = ("plain", "skip")
ALL: tuple[Variant, ...] = ("plain", "clip", "skip")


@dataclass(frozen=True, slots=True)
class Must:
    """An alert that has to be raised.

    ``severities`` are those that count as right; ``named`` judges the alert's annotations;
    ``alike`` are alerts that say as much where chance decides which sign comes first.
    """

    alert: str
    severities: tuple[str, ...] = ("page", "ticket")
    named: Named | None = None
    alike: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One inhabitant.

    Attributes:
        name: Of the table; ``NAME+clip`` and ``NAME+skip`` are its variants.
        make: Trains on the ground that it is given; one call for each rank and life.
        must: What has to be raised, all of it; empty for a healthy run.
        may: Alerts besides, which a person would not call false.
        variants: Which ways of stepping are run.
        ranks: Processes, over gloo where there is more than one.
        lives: How often the job is started under the same run id.
        dies: It ends badly on purpose: by an exception, killed, or not at all.
        stands: Ranks that stand still, alive, until the runner ends them.
        clock: What is done to the recorded times, see :mod:`tests.zoo.clock`.
        owner: Parameters by alert that a run's owner alone can know, where what ships is off.
        quick: Part of the core tests.
    """

    name: str
    make: Callable[[Ground], None]
    must: tuple[Must, ...] = ()
    may: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = PLAIN
    must_if: Mapping[Variant, tuple[Must, ...]] = field(default_factory=dict)
    ranks: int = 1
    lives: int = 1
    dies: bool = False
    stands: tuple[int, ...] = ()
    clock: Clock | None = None
    owner: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick: bool = False

    @property
    def sick(self) -> bool:
        return bool(self.must)

    def wanted(self, variant: Variant) -> tuple[Must, ...]:
        """What has to be raised when it is stepped in this way."""
        return self.must_if.get(variant, self.must)


def words(*keys: str, has: Sequence[str]) -> Named:
    """One of the annotations ``keys`` holds one of the patterns ``has`` as a word."""

    def judge(said: Words) -> bool:
        text = " ".join(said.get(key, "") for key in keys)
        parts = [part.strip(",;:()") for part in text.split()]
        return any(fnmatch.fnmatchcase(part, pattern) for pattern in has for part in parts)

    return judge


def layer(*patterns: str) -> Named:
    """It names one of these layers, or a parameter of one."""
    wanted = [p for pattern in patterns for p in (pattern, f"{pattern}.*")]
    return words("layer", "layers", "parameter", "parameters", "module", has=wanted)


def rank(number: int) -> Named:
    """It names this rank and no other."""

    def judge(said: Words) -> bool:
        told = said.get("rank", "").split(" (")[0].strip()
        return told in (str(number), f"rank {number}")

    return judge


def says(*patterns: str) -> Named:
    """Its words, taken together, hold one of these texts."""

    def judge(said: Words) -> bool:
        text = " ".join(said.values()).lower()
        return any(pattern.lower() in text for pattern in patterns)

    return judge
