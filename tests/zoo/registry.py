"""All inhabitants by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.zoo import (
    births,
    distributed,
    healthy_habits,
    healthy_loops,
    healthy_models,
    healthy_ranks,
    healthy_times,
    losses,
    numbers,
    rollback,
    structure,
    systems,
)
from tests.zoo.cases import Case, Variant

_FAMILIES = (
    births.CASES,
    numbers.CASES,
    losses.CASES,
    structure.CASES,
    distributed.CASES,
    systems.CASES,
    rollback.CASES,
    healthy_models.CASES,
    healthy_loops.CASES,
    healthy_habits.CASES,
    healthy_times.CASES,
    healthy_ranks.CASES,
)
CASES: Mapping[str, Case] = {case.name: case for family in _FAMILIES for case in family}


def plays() -> list[tuple[Case, Variant]]:
    """Each case in each of its ways of stepping."""
    return [(case, variant) for case in CASES.values() for variant in case.variants]


def title(case: Case, variant: Variant) -> str:
    """What the table calls it."""
    return case.name if variant == "plain" else f"{case.name}+{variant}"
