"""Replicas that differ: what is raised, whom it names, and what never raises anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden import wire
from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.replicas import Words, compare, gradient_words, weight_words
from gradwarden_server.detect.steps import GroupStep, RankStep, Step
from tests.server.detection import LAYOUT, LAYOUTS, carrier, engine, held, spoken
from tests.server.fleet import Fleet, at, brute_odd, since, table_of

MISMATCH, NEVER = "ReplicaMismatch", "NeverSynchronized"
WATCHED = (MISMATCH, NEVER)
LONG = range(400)
ROW = 5  # blocks.2.fc.bias, read with slice 5


def judge(fleet: Fleet, steps: Iterable[int] = LONG) -> list[Verdict]:
    return engine(WATCHED, world_size=fleet.ranks).advance(fleet.steps(steps))


def asked(verdicts: Iterable[Verdict]) -> list[tuple[int, str, list[int]]]:
    """Step, kind and ranks of what is asked."""
    return [
        (v.step, v.requests[0].kind, [r.rank for r in v.requests]) for v in verdicts if v.requests
    ]


def differ_by_design(ranks: int, rows: Iterable[int]) -> dict[tuple[int, int], Callable[..., bool]]:
    return {(rank, row): since(0) for rank in range(1, ranks) for row in rows}


@dataclass(frozen=True)
class Case:
    """One fleet: when what is first said, and words that the worst must hold."""

    sentence: str
    fleet: Fleet
    first: dict[tuple[str, str], int] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


CASES = [
    Case("four healthy replicas raise nothing", Fleet()),
    Case(
        "a flipped weight is a ticket when its slice comes round and a page one round later",
        Fleet(weights={(2, ROW): since(200)}),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229},
        {
            "rank": "2",
            "layer": "blocks.2.fc",
            "parameter": "blocks.2.fc.bias",
            "last_equal_step": "197",
            "step": "213",
            "summary": "weights of rank 2 differ from those of 3 replicas; it began between",
            "first_action": "Cordon the node of rank 2",
        },
    ),
    Case(
        "full checksums confirm it at once",
        Fleet(weights={(2, ROW): since(200)}, full=lambda rank, step: step in range(215, 219)),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 215},
        {"rank": "2", "parameter": "blocks.2.fc.bias", "last_equal_step": "197", "step": "213"},
    ),
    Case(
        "with two replicas nobody is named, both are",
        Fleet(ranks=2, weights={(1, ROW): since(200)}),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229},
        {"rank": "0, 1: 2 replicas have no majority", "summary": "no majority tells"},
    ),
    Case(
        "full checksums of two ranks alone do not unname the one that the others contradict",
        Fleet(
            weights={(2, ROW): since(200)},
            full=lambda rank, step: rank in (1, 2) and step in range(215, 219),
        ),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 215},
        {"rank": "2", "parameter": "blocks.2.fc.bias", "summary": "weights of rank 2 differ"},
    ),
    Case(
        "two damaged ranks are both named where the majority is against each",
        Fleet(ranks=5, weights={(1, ROW): since(200), (4, ROW): since(200)}),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229},
        {"rank": "1, 4"},
    ),
    Case(
        "a gradient that differs once is a ticket",
        Fleet(gradients={(3, 7): at(100)}),
        {(MISMATCH, "ticket"): 100},
        {"rank": "3", "layer": "blocks.3.fc", "summary": "gradients of rank 3"},
    ),
    Case(
        "a gradient that differs twice in ten steps is a page",
        Fleet(gradients={(3, 7): at(100, 109)}),
        {(MISMATCH, "ticket"): 100, (MISMATCH, "page"): 109},
        {"rank": "3", "step": "100", "last_equal_step": "99"},
    ),
    Case(
        "a gradient that differs twice, ten steps apart, is none",
        Fleet(gradients={(3, 7): at(100, 110)}),
        {(MISMATCH, "ticket"): 100},
    ),
    Case(
        "rows that share a word are under suspicion together until full checksums name one",
        Fleet(gradients={(3, 16): at(100)}),
        {(MISMATCH, "ticket"): 100},
        {"suspects": "one of blocks.0.fc.weight, head.weight"},
    ),
    Case(
        "full gradient checksums name the one among them",
        Fleet(gradients={(3, 16): at(100)}, full=lambda rank, step: step == 100),
        {(MISMATCH, "ticket"): 100},
        {"parameter": "head.weight"},
    ),
    Case(
        "what differs before it was ever equal for long is not known to be wrong",
        Fleet(weights={(2, ROW): since(30)}, gradients={(2, 7): since(49)}),
    ),
    Case(
        "parameters outside the wrapper differ always and raise nothing",
        Fleet(weights=differ_by_design(4, [0, 3]), gradients=differ_by_design(4, [0, 3])),
    ),
    Case(
        "and blind no more than the words they share",
        Fleet(
            weights={**differ_by_design(4, [0, 3]), (2, ROW): since(200)},
            gradients=differ_by_design(4, [0, 3]),
            full=lambda rank, step: step in (215, 216),
        ),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 215},
        {"parameter": "blocks.2.fc.bias", "rank": "2"},
    ),
    Case(
        "a step that one rank did not capture is compared by nobody",
        Fleet(
            gradients={(3, 7): at(100, 101)},
            captured=lambda rank, step: rank != 1 or step not in (100, 101),
        ),
    ),
    Case(
        "a rank that fell silent does not blind the others",
        Fleet(weights={(2, ROW): since(200)}, reported=lambda rank, step: rank != 1 or step < 150),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229},
        {"rank": "2", "summary": "from those of 2 replicas"},
    ),
    Case(
        "a rank whose capture fails for good blinds the others for fifty steps, no more",
        Fleet(weights={(2, ROW): since(200)}, captured=lambda rank, step: rank != 1 or step < 130),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229},
        {"rank": "2", "summary": "from those of 2 replicas"},
    ),
    Case(
        "weights of different slices are not compared",
        Fleet(slices=lambda rank, step: (step + (rank if step > 200 else 0)) % 16),
    ),
    Case(
        "ranks of different shards hold different values, as they must",
        Fleet(ranks=6, shards=2),
    ),
    Case(
        "within one shard a difference is found and the shard is named",
        Fleet(ranks=6, shards=2, weights={(3, ROW): since(200)}),
        {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229},
        {"rank": "3", "shard": "1", "summary": "from those of 2 replicas"},
    ),
    Case(
        "a forgotten wrapper is a ticket of its own and no mismatch",
        Fleet(
            weights=differ_by_design(4, range(1, 17)), gradients=differ_by_design(4, range(1, 17))
        ),
        {(NEVER, "ticket"): 49},
        {"cause": "not wrapped", "summary": "the 4 ranks train 4 models"},
    ),
    Case(
        "weights that were never broadcast are told from it by their equal gradients",
        Fleet(weights=differ_by_design(4, range(17))),
        {(NEVER, "ticket"): 49},
        {"cause": "not broadcast"},
    ),
    Case(
        "gradients that are reduced after capture are no sickness",
        Fleet(gradients=differ_by_design(4, range(17))),
    ),
    Case(
        "nor is half a model that is meant to differ",
        Fleet(
            weights=differ_by_design(4, range(0, 17, 2)),
            gradients=differ_by_design(4, range(0, 17, 2)),
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_cases(case: Case) -> None:
    verdicts = judge(case.fleet)
    assert spoken(verdicts) == case.first
    worst = [c for v in verdicts for c in v.conditions if c.active]
    worst.sort(key=lambda c: c.severity != "page")
    for name, text in case.words.items():
        assert text in worst[0].annotations[name], name


def test_the_first_sign_asks_every_replica_for_full_checksums_and_again_until_it_is_a_page() -> (
    None
):
    verdicts = judge(Fleet(weights={(2, ROW): since(200)}))
    assert asked(verdicts) == [(213, "checksums", [0, 1, 2, 3])]
    # Steps of a second each: two more for the two seconds between one rank's order and another's.
    assert verdicts[213].requests[0].args == {"steps": 6}


def test_quick_steps_are_asked_for_longer() -> None:
    steps = [
        replace(made, time_ns=made.time_ns // 100)
        for made in Fleet(weights={(2, ROW): since(200)}).steps(LONG)
    ]
    verdicts = engine(WATCHED, world_size=4).advance(steps)
    assert verdicts[213].requests[0].args == {"steps": 204}


def test_of_many_replicas_the_odd_ones_and_some_others_are_asked() -> None:
    (found,) = asked(judge(Fleet(ranks=40, weights={(33, ROW): since(100)}), range(140)))
    assert (found[0], len(found[2]), 33 in found[2], 0 in found[2]) == (101, 16, True, True)


def test_a_healed_difference_closes_after_three_rounds() -> None:
    verdicts = judge(Fleet(gradients={(3, 7): at(100)}))
    assert held(verdicts[:148])
    assert held(verdicts[:149]) == {}


def test_full_checksums_name_what_the_page_could_not() -> None:
    """300 rows: two share each weight word; the answer comes after the page."""
    parameters = tuple(
        wire.Parameter(f"layers.{i}.weight", (4,), "float32", f"layers.{i}", "matrix")
        for i in range(300)
    )
    big = wire.Layout(parameters)
    LAYOUTS[big.hash] = big
    fleet = Fleet(ranks=3, rows=300, weights={(1, 261): since(200)})
    later = replace(fleet, full=lambda rank, step: step == 230)

    def sized(made: Step) -> Step:
        values = np.ones((300, len(wire.QUANTITIES)), np.float32)
        return replace(made, groups={0: GroupStep(values, wire.QUANTITIES, big.hash, 0)})

    verdicts = engine([MISMATCH], world_size=3).advance(sized(later.step(n)) for n in range(240))
    words = {v.step: c.annotations for v in verdicts for c in v.conditions if c.active}
    assert words[213]["suspects"] == "one of layers.5.weight, layers.261.weight"
    assert "parameter" not in words[229]
    assert words[230]["parameter"] == "layers.261.weight"
    assert words[230]["layer"] == "layers.261"


def test_a_step_with_a_nan_is_not_compared() -> None:
    """Which bits a NaN has after an all-reduce may depend on the order of its operands."""
    fleet = Fleet(gradients={(3, 7): at(100, 101)})
    steps = [
        replace(s, ranks={r: replace(said, bad_gradient=s.step in (100, 101) and r == 0)
                          for r, said in s.ranks.items()})
        for s in fleet.steps(range(200))
    ]  # fmt: skip
    assert spoken(engine(WATCHED, world_size=4).advance(steps)) == {}


def test_a_new_attempt_is_armed_anew() -> None:
    steps = Fleet().steps(range(120))
    corrupt = Fleet(weights={(2, ROW): since(0)}, gradients={(2, 7): since(0)})
    steps += corrupt.steps(range(100, 250), attempt=2)
    assert spoken(engine(WATCHED, world_size=4).advance(steps)) == {}


def test_another_layout_is_armed_anew() -> None:
    other = wire.Layout(tuple(reversed(LAYOUT.parameters)))
    LAYOUTS[other.hash] = other
    steps = Fleet().steps(range(120))
    steps += Fleet(gradients={(2, 7): since(0)}).steps(range(120, 250), layout=other.hash)
    assert spoken(engine(WATCHED, world_size=4).advance(steps)) == {}


def test_several_optimizers_bring_several_roots_a_step() -> None:
    def doubled(made: Step) -> Step:
        ranks = {r: replace(said, roots=2 * said.roots) for r, said in made.ranks.items()}
        return replace(made, ranks=ranks)

    fleet = Fleet(weights={(2, ROW): since(200)})
    verdicts = engine(WATCHED, world_size=4).advance(map(doubled, fleet.steps(LONG)))
    assert spoken(verdicts) == {(MISMATCH, "ticket"): 213, (MISMATCH, "page"): 229}


@pytest.mark.parametrize(
    ("fleet", "steps", "state", "detail"),
    [
        (Fleet(ranks=1), 200, "blind", "no replica"),
        (Fleet(ranks=4, shards=4), 200, "blind", "each rank holds another part"),
        (Fleet(captured=lambda rank, step: False), 200, "blind", "send no checksums"),
        (Fleet(), 20, "waiting", "20 of 100 compared steps"),
        (Fleet(), 200, "armed", ""),
        (Fleet(gradients=differ_by_design(4, range(17))), 200, "armed", "weights alone"),
        (Fleet(weights=differ_by_design(4, [3])), 200, "armed", "1 of 17 groups of weights"),
        (Fleet(weights=differ_by_design(4, range(17))), 200, "blind", "never equal"),
        (Fleet(light=True), 200, "armed", "no weights are read"),
    ],
)
def test_coverage_says_what_is_watched(fleet: Fleet, steps: int, state: str, detail: str) -> None:
    detectors = engine([MISMATCH], world_size=fleet.ranks)
    detectors.advance(fleet.steps(range(steps)))
    (told,) = detectors.coverage()
    assert (told.state, detail in told.detail) == (state, True), told


def test_pure_sharding_is_no_forgotten_wrapper() -> None:
    detectors = engine([NEVER], world_size=4)
    detectors.advance(Fleet(ranks=4, shards=4).steps(range(100)))
    (told,) = detectors.coverage()
    assert (told.state, told.detail) == ("blind", "no two ranks hold the same parameters")


STORY = [
    *Fleet(
        weights={(2, ROW): lambda n: 150 <= n < 230, (1, 3): since(0)},
        gradients={(3, 7): at(100, 105)},
        full=lambda rank, step: step in range(170, 174),
    ).steps(range(260)),
    *Fleet(weights=differ_by_design(4, range(17))).steps(range(230, 330), attempt=2),
]


def told(detectors: RunDetectors, steps: list[Step]) -> list[object]:
    return [(v.step, v.conditions, v.requests) for s in steps for v in detectors.advance([s])]


ALL = told(engine(WATCHED, world_size=4), STORY)


@given(st.integers(0, len(STORY) - 1))
@settings(max_examples=15, deadline=None)
def test_restored_at_any_step_it_says_the_same(number: int) -> None:
    before = engine(WATCHED, world_size=4)
    before.advance(STORY[:number])
    after = engine(WATCHED, world_size=4)
    after.restore(before.state())
    assert told(after, STORY[number : number + 90]) == ALL[number : number + 90]


@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]), min_size=3, max_size=3),
        min_size=1,
        max_size=7,
    )
)
@settings(max_examples=300, deadline=None)
def test_words_against_counting(rows: list[list[int]]) -> None:
    words = Words(tuple(range(10, 10 + len(rows))), table_of(rows))
    columns = list(zip(*rows, strict=True))
    assert words.present.tolist() == [any(c) for c in columns]
    assert words.unequal.tolist() == [len(set(c)) > 1 for c in columns]
    found = [brute_odd(c) for c in columns if len(set(c)) > 1]
    expected = None
    if found and None not in found:
        expected = tuple(sorted(10 + i for odd in found for i in odd or ()))
        expected = tuple(dict.fromkeys(expected))
    assert words.odd(np.ones(3, np.bool_)) == expected


@given(st.integers(1, 600), st.integers(0, 599), st.integers(0, 63), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_any_single_flip_shows_in_exactly_its_words(
    rows: int, row: int, number: int, rank: int
) -> None:
    row %= rows
    fleet = Fleet(rows=rows, weights={(rank, row): since(0)}, gradients={(rank, row): since(0)})
    (one,) = compare(fleet.step(number))
    hit = [int(i) for i in np.flatnonzero(one.gradients.unequal)]
    assert hit == [gradient_words(rows)[row]]
    assert one.gradients.odd(one.gradients.unequal) == (rank,)
    slot = int(weight_words(rows)[row])
    assert one.slice == number % 16
    expected = [slot % 16] if slot // 16 == number % 16 else []
    assert [int(i) for i in np.flatnonzero(one.weights.unequal)] == expected


def test_damaged_roots_are_left_alone() -> None:
    fleet = Fleet()
    made = fleet.step(3)
    short = {r: replace(said, roots=said.roots[:-8]) for r, said in made.ranks.items()}
    assert compare(replace(made, ranks=short)) == []
    mixed = dict(made.ranks) | {2: replace(made.ranks[2], roots=2 * made.ranks[2].roots)}
    assert compare(replace(made, ranks=mixed)) == []
    event = carrier(3, {"kind": "mark", "name": "data", "value": 1}, 3.5)
    assert compare(event) == []


def test_a_thousand_ranks_are_compared() -> None:
    fleet = Fleet(ranks=2)
    made = fleet.step(5)
    said: RankStep = made.ranks[0]
    ranks = dict.fromkeys(range(1000), said) | {
        777: replace(said, roots=Fleet(weights={(0, ROW): since(0)}).roots(0, 5))
    }
    (one,) = compare(replace(made, ranks=ranks, groups={0: made.groups[0]}))
    assert one.weights.odd(one.weights.unequal) == (777,)
