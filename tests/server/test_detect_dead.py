"""Layers and experts whose gradient is exactly zero, and those that only look like it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from gradwarden import wire
from gradwarden_server.detect.steps import Step
from tests.server.detection import LAYOUT, LAYOUTS, ROWS, engine, held, spoken, step

DEAD, STARVED = ["DeadLayer"], ["ExpertStarved"]
FC3 = (6, 7)
"""The rows of blocks.3.fc: weight and bias."""
BEHIND = tuple(range(8))
"""blocks.3.fc and all that lies behind it, seen from the loss."""
FED = 8
"""The weight of blocks.4.fc: what dead units feed has a bias with a gradient, and no more."""


def zeroed(base: Step, shares: Mapping[int, float], layout: wire.Layout = LAYOUT) -> Step:
    """The step with this share of exact zeros in some rows; 1.0 is all of them."""
    group = base.groups[0]
    values = group.values.copy()
    column = group.quantities.index("zero")
    for row, share in shares.items():
        values[row, column] = share * np.prod(layout.parameters[row].shape)
        if share == 1.0:
            values[row, :2] = 0.0
    return replace(base, groups={0: replace(group, values=values, layout=layout.hash)})


def died(at: int, count: int, rows: Iterable[int], share: float = 1.0, **more: float) -> list[Step]:
    dead = dict.fromkeys(rows, share)
    return [zeroed(step(n, **more), dead if n >= at else {}) for n in range(count)]  # type: ignore[arg-type]


def test_a_layer_that_lived_is_dead_after_fifty_steps_of_zeros() -> None:
    verdicts = engine(DEAD).advance(died(100, 170, (*BEHIND, FED)))
    assert spoken(verdicts) == {("DeadLayer", "ticket"): 149}
    (ticket,) = held(verdicts).values()
    assert ticket.annotations["layer"] == "blocks.3.fc"
    assert ticket.annotations["layers"].startswith("blocks.3.fc, blocks.2.fc")
    assert ticket.annotations["ratio"] == "1"
    assert "lived before" in ticket.annotations["summary"]


def test_a_layer_that_is_born_dead_is_told_by_its_siblings() -> None:
    verdicts = engine(DEAD).advance(died(0, 60, (*BEHIND, FED)))
    assert spoken(verdicts) == {("DeadLayer", "ticket"): 49}
    assert "from the first step on" in next(iter(held(verdicts).values())).annotations["summary"]


@pytest.mark.parametrize(("share", "first"), [(0.991, 149), (0.989, None)])
def test_ninety_nine_hundredths_is_the_limit(share: float, first: int | None) -> None:
    steps = died(100, 170, FC3, share)
    steps = [zeroed(s, {7: 1.0}) if s.step >= 100 else s for s in steps]
    assert spoken(engine(DEAD).advance(steps)).get(("DeadLayer", "ticket")) == first


def test_forty_nine_steps_are_none_and_one_alive_begins_anew() -> None:
    dead = dict.fromkeys(FC3, 1.0)
    steps = [zeroed(step(n), dead if n % 50 else {}) for n in range(400)]
    assert spoken(engine(DEAD).advance(steps)) == {}


def test_it_heals_after_twenty_steps_alive() -> None:
    dead = dict.fromkeys(FC3, 1.0)
    steps = [zeroed(step(n), dead if 100 <= n < 160 else {}) for n in range(200)]
    verdicts = engine(DEAD).advance(steps)
    active = [(v.step, c.active) for v in verdicts for c in v.conditions]
    assert active == [(0, False), (149, True), (179, False)]


def test_a_dense_bias_acquits_a_first_layer_over_sparse_inputs() -> None:
    assert spoken(engine(DEAD).advance(died(0, 200, (0,), 0.999))) == {}


def test_lone_matrices_that_are_sparse_by_nature_are_exempt_below_all_zeros() -> None:
    assert spoken(engine(DEAD).advance(died(0, 200, (ROWS - 1,), 0.995))) == {}
    assert spoken(engine(DEAD).advance(died(100, 200, (ROWS - 1,), 0.995)))


def test_a_head_that_was_used_now_and_then_may_rest_for_longer() -> None:
    used = [n % 50 < 10 for n in range(400)] + [False] * 100
    steps = [zeroed(step(n), {} if on else {ROWS - 1: 1.0}) for n, on in enumerate(used)]
    assert spoken(engine(DEAD).advance(steps)) == {}
    always = [zeroed(s, {} if s.step < 400 else {ROWS - 1: 1.0}) for s in steps]
    always = [step(n) for n in range(400)] + always[400:]
    assert spoken(engine(DEAD).advance(always)) == {("DeadLayer", "ticket"): 449}


def test_a_loss_of_exactly_zero_wants_nothing() -> None:
    everything = range(ROWS)
    assert spoken(engine(DEAD).advance(died(100, 200, everything, loss=0.0))) == {}
    verdicts = engine(DEAD).advance(died(100, 200, everything, loss=2.3))
    assert spoken(verdicts) == {("DeadLayer", "ticket"): 149}
    assert "all layers" in next(iter(held(verdicts).values())).annotations["summary"]


def test_a_closed_gate_is_not_judged_before_the_learning_rate_is_above_zero() -> None:
    steps = [zeroed(step(n, lr=0.0), dict.fromkeys(FC3, 1.0)) for n in range(200)]
    steps += [step(n) for n in range(200, 300)]
    assert spoken(engine(DEAD).advance(steps)) == {}


def rows_of(*named: tuple[str, tuple[int, ...], str]) -> wire.Layout:
    parameters = tuple(wire.Parameter(n, s, "float32", "b", k) for n, s, k in named)
    made = wire.Layout(parameters, tuple(reversed(range(len(parameters)))))
    LAYOUTS[made.hash] = made
    return made


def sized(number: int, layout: wire.Layout, shares: Mapping[int, float]) -> Step:
    """A step of another layout: rows of a share above one have no gradient at all."""
    base = step(number)
    group = base.groups[0]
    values = np.resize(group.values, (len(layout.parameters), group.values.shape[1])).copy()
    values[[row for row, share in shares.items() if share > 1]] = np.nan
    small = replace(base, groups={0: replace(group, values=values, layout=layout.hash)})
    return zeroed(small, {r: s for r, s in shares.items() if s <= 1}, layout)


WORDS = rows_of(
    ("tokens.weight", (50_000, 8), "embedding"),
    ("speakers.weight", (10, 8), "embedding"),
    ("up.lora_A.weight", (4, 8), "adapter"),
    ("up.lora_B.weight", (8, 4), "adapter"),
    ("fc.weight", (8, 8), "matrix"),
    ("fc.bias", (8,), "bias"),
)


def test_large_and_unused_embeddings_and_adapters_at_rest_are_none() -> None:
    """A batch touches few of 50,000 words; A of a LoRA has no gradient while B is zero."""
    steps = [sized(n, WORDS, {0: 0.9999, 1: 1.0, 2: 1.0}) for n in range(300)]
    assert spoken(engine().advance(steps)) == {}


def test_an_embedding_that_lived_and_is_all_zero_is_one() -> None:
    steps = [sized(n, WORDS, {0: 0.9999 if n < 100 else 1.0}) for n in range(160)]
    assert spoken(engine(DEAD).advance(steps)) == {("DeadLayer", "ticket"): 149}


EXPERTS = rows_of(
    *(
        (f"layers.{layer}.moe.experts.{expert}.{name}.weight", (8, 8), "expert")
        for layer in range(2)
        for expert in range(4)
        for name in ("up", "down")
    ),
    ("head.weight", (8, 8), "head"),
)


def routed(count: int, starved: Iterable[int], absent: bool = False) -> list[Step]:
    """Top-1 routing: each step feeds two experts of each mixture, never the starved ones."""
    rng = np.random.default_rng(1)
    never = set(starved)
    steps = []
    for n in range(count):
        fed = set()
        for mixture in (range(4), range(4, 8)):
            fed |= set(rng.permutation([e for e in mixture if e not in never])[:2].tolist())
        idle = [row for e in range(8) if e not in fed for row in (2 * e, 2 * e + 1)]
        steps.append(sized(n, EXPERTS, dict.fromkeys(idle, 2.0 if absent else 1.0)))
    return steps


@pytest.mark.parametrize("absent", [False, True])
def test_an_expert_without_a_token_in_five_hundred_steps_is_named(absent: bool) -> None:
    verdicts = engine().advance(routed(510, [6], absent))
    assert spoken(verdicts) == {("ExpertStarved", "ticket"): 499}
    (ticket,) = held(verdicts).values()
    assert ticket.annotations["layer"] == "layers.1.moe.experts.2"
    assert ticket.annotations["ratio"] == "0.25"


def test_experts_that_are_idle_by_turns_are_healthy() -> None:
    assert spoken(engine().advance(routed(1200, []))) == {}


def test_a_mixture_in_which_nobody_works_starves_nobody() -> None:
    asleep = dict.fromkeys(range(16), 1.0)
    steps = [sized(n, EXPERTS, asleep) for n in range(600)]
    assert spoken(engine(STARVED).advance(steps)) == {}


def test_coverage_says_where_there_is_nothing_to_starve() -> None:
    detectors = engine(STARVED)
    detectors.advance([step(0)])
    assert detectors.coverage()[0].state == "blind"
    detectors = engine([*STARVED, *DEAD])
    detectors.advance(routed(30, []))
    told = {c.alert: (c.state, c.detail) for c in detectors.coverage()}
    assert told == {
        "ExpertStarved": ("waiting", "30 of 500 steps"),
        "DeadLayer": ("waiting", "30 of 50 steps"),
    }


@pytest.mark.parametrize("at", [40, 99, 120, 149, 155])
def test_put_aside_and_restored_it_says_the_same(at: int) -> None:
    steps = [zeroed(step(n), dict.fromkeys(FC3, 1.0) if 100 <= n < 160 else {}) for n in range(200)]
    whole, before, after = engine(DEAD), engine(DEAD), engine(DEAD)
    said = [(v.step, v.conditions) for s in steps for v in whole.advance([s])]
    before.advance(steps[:at])
    after.restore(before.state())
    assert [(v.step, v.conditions) for s in steps[at:] for v in after.advance([s])] == said[at:]


def test_a_starving_expert_is_remembered() -> None:
    steps = routed(510, [6])
    before, after = engine(STARVED), engine(STARVED)
    before.advance(steps[:300])
    after.restore(before.state())
    assert spoken(after.advance(steps[300:])) == {("ExpertStarved", "ticket"): 499}
