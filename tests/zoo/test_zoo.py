"""Every inhabitant is told as what it is, and no healthy one wakes anybody.

Here one seed of those that train fastest; ``-m full`` has all of them, in all their ways of
stepping, with as many seeds as ``make zoo``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.__main__ import examine
from tests.zoo.cases import Case, Variant
from tests.zoo.registry import CASES, plays, title

SEEDS = 10
QUICK = [case for case in CASES.values() if case.quick]


@pytest.mark.parametrize("case", QUICK, ids=[case.name for case in QUICK])
def test_it_is_told_as_what_it_is(case: Case, tmp_path: Path) -> None:
    assert examine(case, "plain", 0, tmp_path / "run").short == []


@pytest.mark.full
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(
    ("case", "variant"), plays(), ids=[title(case, variant) for case, variant in plays()]
)
def test_all_of_them_are(case: Case, variant: Variant, seed: int, tmp_path: Path) -> None:
    assert examine(case, variant, seed, tmp_path / "run").short == []
