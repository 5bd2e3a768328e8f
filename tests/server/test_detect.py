"""Tables of steps, and what the shipped rules say of them; each named by a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from gradwarden_server.detect.steps import Step
from tests.server.detection import (
    BLOCKS,
    LAYOUTS,
    ROWS,
    carrier,
    engine,
    held,
    layout,
    noise,
    spoken,
    step,
    urgent,
)

MIDDLE = 2 * 3  # the row of blocks.3.fc.weight


@dataclass(frozen=True)
class Case:
    """One table: its steps, when what is first said, and words that the worst must hold."""

    sentence: str
    steps: Callable[[], list[Step]]
    first: dict[tuple[str, str], int] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    world_size: int = 1


def behind(row: int) -> list[int]:
    """Rows that a fault at ``row`` reaches: itself and all nearer to the input."""
    return list(range(row + 2))


NONFINITE = [
    Case(
        "a NaN in a middle layer that the optimizer applied pages at its step and is bracketed",
        lambda: [
            *[step(n) for n in range(7)],
            step(7, nan=behind(MIDDLE)),
            *[step(n, nan=range(ROWS), loss=np.nan) for n in range(8, 12)],
        ],
        {
            ("NonFiniteGradient", "page"): 7,
            ("NonFiniteLoss", "page"): 8,
        },
        {
            "step": "7",
            "layer": "blocks.3.fc",
            "parameter": "blocks.3.fc.bias",
            "bracket": "between blocks.4.fc (clean) and blocks.3.fc (bad)",
            "rank": "0",
            "cause": "fault inside blocks.3.fc",
            "values_before": "6: 0.125",
            "first_action": "Stop the run",
        },
    ),
    Case(
        "the same fault in a loop that skips the bad step is a note that names the same layer",
        lambda: [
            *[step(n) for n in range(7)],
            step(7, nan=behind(MIDDLE), stepped=False),
            *[step(n) for n in range(8, 12)],
        ],
        {("NonFiniteGradient", "note"): 7},
        {"layer": "blocks.3.fc", "step": "7", "first_action": "Nothing now"},
    ),
    Case(
        "a bad gradient of which nobody says whether it was applied pages",
        lambda: [step(0), step(1, nan=[3], stepped=None)],
        {("NonFiniteGradient", "page"): 1},
    ),
    Case(
        "four skipped steps among a hundred without a loss scale are a ticket",
        lambda: [step(n, nan=[3] if n % 20 == 5 else [], stepped=n % 20 != 5) for n in range(99)],
        {("NonFiniteGradient", "note"): 5, ("NonFiniteGradient", "ticket"): 65},
    ),
    Case(
        "ten skipped steps in a row page",
        lambda: [
            *[step(n) for n in range(5)],
            *[step(n, nan=range(ROWS), stepped=False) for n in range(5, 20)],
        ],
        {
            ("NonFiniteGradient", "note"): 5,
            ("NonFiniteGradient", "ticket"): 8,
            ("NonFiniteGradient", "page"): 14,
        },
        {"summary": "10 steps in a row skipped"},
    ),
    Case(
        "where a loss scale governs a skipped step is not this alert's, and an applied one is",
        lambda: [
            *[step(n, inf=range(ROWS), stepped=False, loss_scale=65536.0) for n in range(12)],
            *[step(n, loss_scale=16.0) for n in range(12, 30)],
            step(30, inf=range(ROWS), loss_scale=16.0),
        ],
        {("NonFiniteGradient", "page"): 30},
    ),
    Case(
        "all layers bad with a bad loss is the loss or the input",
        lambda: [step(0), step(1, nan=range(ROWS), loss=np.nan)],
        {("NonFiniteGradient", "page"): 1, ("NonFiniteLoss", "page"): 1},
        {"bracket": "the loss or the input", "cause": "the loss itself is non-finite"},
    ),
    Case(
        "a bad loss with a finite bias beside it is the loss or the input all the same",
        lambda: [
            step(0),
            step(1, [*[1.0] * (ROWS - 1), np.nan], inf=range(ROWS - 2), loss=np.inf),
        ],
        {("NonFiniteGradient", "page"): 1, ("NonFiniteLoss", "page"): 1},
        {"bracket": "the loss or the input", "cause": "a bad batch or input"},
    ),
    Case(
        "a bad loss with clean layers next to it is told of the layer that overflowed",
        lambda: [step(0), step(1, nan=behind(MIDDLE), loss=np.inf)],
        {("NonFiniteGradient", "page"): 1, ("NonFiniteLoss", "page"): 1},
        {"layer": "blocks.3.fc", "cause": "the loss is non-finite as well"},
    ),
    Case(
        "all layers bad with a finite loss is the derivative of the loss",
        lambda: [step(0), step(1, nan=range(ROWS))],
        {("NonFiniteGradient", "page"): 1},
        {"cause": "though the loss is finite"},
    ),
    Case(
        "a gradient that grew to the top of its dtype before it became Inf overflowed",
        lambda: [*[step(n, 10.0 ** (8 * n)) for n in range(5)], step(5, 3e38), step(6, inf=[8])],
        {("ExplodingGradient", "ticket"): 5, ("NonFiniteGradient", "page"): 6},
        {"cause": "overflow"},
    ),
    Case(
        "clipping spread the NaN before it was seen: the page goes, no layer is named",
        lambda: [step(0), step(1, nan=range(ROWS), capture="post_clip")],
        {("NonFiniteGradient", "page"): 1},
        {"layer": "post_clip: layer unknown"},
    ),
    Case(
        "the one rank whose own loss is bad is named",
        lambda: [
            step(0, loss={0: 1.0, 1: 1.0, 2: 1.0}),
            step(1, nan=range(ROWS), loss={0: 1.0, 1: 1.0, 2: np.nan}),
        ],
        {("NonFiniteGradient", "page"): 1, ("NonFiniteLoss", "page"): 1},
        {"rank": "2"},
        world_size=3,
    ),
    Case(
        "without local evidence the rank is unknown and the alert says so",
        lambda: [step(n, nan=[0] if n else [], loss={0: 1.0, 1: 1.0}) for n in range(2)],
        {("NonFiniteGradient", "page"): 1},
        {"rank": "rank unknown: local attribution off"},
        world_size=2,
    ),
    Case(
        "a skipped step with a bad loss is a note",
        lambda: [step(0), step(1, nan=range(ROWS), loss=np.nan, stepped=False), step(2)],
        {("NonFiniteGradient", "note"): 1, ("NonFiniteLoss", "note"): 1},
    ),
    Case(
        "a bad loss of which it is unknown whether it was applied pages when it comes again",
        lambda: [step(0), *[step(n, loss=np.inf, stepped=None) for n in (1, 2)]],
        {("NonFiniteLoss", "note"): 1, ("NonFiniteLoss", "page"): 2},
        {"step": "1", "summary": "loss is Inf at step 1"},
    ),
]


@pytest.mark.parametrize("case", NONFINITE, ids=lambda case: case.sentence)
def test_nonfinite(case: Case) -> None:
    verdicts = engine(world_size=case.world_size).advance(case.steps())
    assert spoken(verdicts) == case.first
    worst = min(held(verdicts).values(), key=lambda c: ("page", "ticket", "note").index(c.severity))
    for name, text in case.words.items():
        assert text in worst.annotations[name], name


@pytest.mark.parametrize("stepped", [True, False])
def test_a_step_that_was_not_captured_may_only_tell_of_its_nan(stepped: bool) -> None:
    told = ({"kind": "nonfinite", "step": 5},)
    steps = [step(i, stepped=stepped, events=told if i == 5 else ()) for i in range(9)]
    steps = [s if s.step % 4 == 0 else replace(s, groups={}) for s in steps]
    verdicts = engine(["NonFiniteGradient"]).advance(steps)
    (said,) = [c for v in verdicts if v.step == 5 for c in v.conditions if c.active]
    assert said.severity == ("page" if stepped else "note")
    assert said.annotations["layer"] == "unknown: this step was not captured"
    assert said.annotations["step"] == "5"


def test_a_page_on_bad_gradients_clears_after_twenty_clean_steps() -> None:
    steps = [step(0, nan=[1]), *[step(n) for n in range(1, 30)]]
    verdicts = engine(["NonFiniteGradient"]).advance(steps)
    said = [(v.step, c.active) for v in verdicts for c in v.conditions if c.severity == "page"]
    assert said == [(0, True), (20, False)]


def test_an_early_look_pages_before_the_join_and_older_steps_do_not_take_it_back() -> None:
    detectors = engine(["NonFiniteGradient"], world_size=2)
    detectors.advance([step(n, loss={0: 1.0, 1: 1.0}) for n in range(3)])
    bad = step(4, nan=[2, 3], loss={0: 1.0})
    early = detectors.peek([Step(**{**_fields(bad), "partial": True})])
    (page,) = [c for c in early[0].conditions if c.active]
    assert (page.severity, page.annotations["layer"]) == ("page", "blocks.1.fc")
    assert "rank" not in page.annotations
    (third,) = detectors.advance([step(3, loss={0: 1.0, 1: 1.0})])
    assert third.conditions == ()
    (fourth,) = detectors.advance([step(4, nan=[2, 3], loss={0: 1.0, 1: np.nan})])
    (page,) = [c for c in fourth.conditions if c.active]
    assert page.annotations["rank"] == "1"


def test_an_open_step_that_turns_out_skipped_was_never_a_page() -> None:
    detectors = engine(["NonFiniteGradient"], world_size=2)
    assert detectors.peek([step(0, nan=[2], stepped=False)]) == []


def _fields(held: Step) -> dict[str, object]:
    return {name: getattr(held, name) for name in Step.__dataclass_fields__}


def healthy(count: int, **changed: float) -> list[Step]:
    return [step(n, row, **changed) for n, row in enumerate(noise(count))]  # type: ignore[arg-type]


def test_heavy_tails_raise_nothing() -> None:
    for sigma in (0.1, 0.5, 1.0):
        rows = noise(1500, seed=3, sigma=sigma)
        verdicts = engine().advance(step(n, row) for n, row in enumerate(rows))
        assert urgent(spoken(verdicts)) == set(), sigma


def test_a_warm_up_and_a_falling_norm_raise_nothing() -> None:
    rows = noise(1200)
    steps = [
        step(n, row * (20 * np.exp(-n / 80) + 1), lr=min(1.0, (n + 1) / 300) * 1e-3)
        for n, row in enumerate(rows)
    ]
    assert spoken(engine().advance(steps)) == {}


@pytest.mark.parametrize("factor", [10.0, 100.0])
def test_spikes_that_heal_are_no_more_than_notes(factor: float) -> None:
    rows = noise(900)
    rows[[300, 450, 451, 700]] *= factor
    assert urgent(spoken(engine().advance(step(n, r) for n, r in enumerate(rows)))) == set()


def test_an_explosion_that_lifts_the_loss_is_a_ticket_then_a_page() -> None:
    rows = noise(400)
    rows[300:] *= 60
    steps = [step(n, r, loss=1.0 if n < 300 else 1.0 + (n - 300)) for n, r in enumerate(rows)]
    first = spoken(engine(["ExplodingGradient"]).advance(steps))
    assert first["ExplodingGradient", "note"] == 300
    assert first["ExplodingGradient", "ticket"] == 302
    assert 319 <= first["ExplodingGradient", "page"] <= 330


def test_an_explosion_that_leaves_the_loss_alone_is_no_page_and_becomes_the_new_level() -> None:
    rows = noise(700)
    rows[300:] *= 60
    verdicts = engine(["ExplodingGradient"]).advance(step(n, r) for n, r in enumerate(rows))
    assert ("ExplodingGradient", "page") not in spoken(verdicts)
    assert held(verdicts[:399])
    assert held(verdicts) == {}


def test_a_thousandfold_norm_applied_unclipped_pages_at_the_third_step() -> None:
    rows = noise(310)
    rows[300:] *= 1e5
    steps = [step(n, r, capture="unclipped") for n, r in enumerate(rows)]
    assert spoken(engine(["ExplodingGradient"]).advance(steps))["ExplodingGradient", "page"] == 302


def test_growth_is_named_where_it_starts() -> None:
    rows = noise(310, sigma=0.1)
    rows[300:, : MIDDLE + 2] *= 200
    verdicts = engine(["ExplodingGradient"]).advance(step(n, r) for n, r in enumerate(rows))
    (ticket,) = held(verdicts).values()
    assert (ticket.severity, ticket.annotations["layer"]) == ("ticket", "blocks.3.fc")


def test_one_layer_alone_is_a_ticket() -> None:
    rows = noise(310, sigma=0.1)
    rows[300:, 4] *= 15
    verdicts = engine(["ExplodingGradient"]).advance(step(n, r) for n, r in enumerate(rows))
    (ticket,) = held(verdicts).values()
    assert (ticket.severity, ticket.annotations["layer"]) == ("ticket", "blocks.2.fc")


def test_an_explosion_from_birth_is_a_ticket_at_the_fifth_step() -> None:
    norms = np.geomspace(1e7, 1e2, ROWS)
    steps = [step(n, norms) for n in range(10)]
    first = spoken(engine(["ExplodingGradient"]).advance(steps))
    assert first == {("ExplodingGradient", "ticket"): 4}


def test_clipped_data_is_refused_and_the_coverage_says_why() -> None:
    detectors = engine(["ExplodingGradient"])
    rows = noise(310)
    rows[300:] *= 1e5
    steps = [step(n, r, capture="post_clip") for n, r in enumerate(rows)]
    assert spoken(detectors.advance(steps)) == {}
    (coverage,) = detectors.coverage()
    assert (coverage.state, "before clipping" in coverage.detail) == ("blind", True)


def test_a_mark_begins_a_new_baseline() -> None:
    rows = noise(700)
    rows[300:] *= 60
    steps = [step(n, r) for n, r in enumerate(rows)]
    steps.insert(300, carrier(299, {"kind": "mark", "name": "data", "value": "v2"}, 299.5))
    assert spoken(engine().advance(steps)) == {}


@pytest.mark.parametrize(
    ("what", "scalars"),
    [("learning rate", {"lr": 1e-2}), ("tokens per step", {"tokens": 4096.0})],
)
def test_a_declared_change_begins_a_new_baseline(what: str, scalars: dict[str, float]) -> None:
    rows = noise(500)
    rows[304:] *= 60
    steps = [
        step(n, r, **({"tokens": 1024.0} | (scalars if n >= 298 else {})))  # type: ignore[arg-type]
        for n, r in enumerate(rows)
    ]
    assert spoken(engine().advance(steps)) == {}, what


def test_warm_restarts_of_the_learning_rate_raise_nothing() -> None:
    rows = noise(900)
    steps = []
    for n, row in enumerate(rows):
        lr = 1e-3 * (0.5 + 0.5 * np.cos(np.pi * (n % 300) / 300)) + 1e-5
        steps.append(step(n, row * (1 + 3 * lr / 1e-3), lr=lr))
    assert urgent(spoken(engine().advance(steps))) == set()


def test_a_new_attempt_begins_anew() -> None:
    rows = noise(300)
    steps = [step(n, r) for n, r in enumerate(rows)]
    steps += [step(n, r * 60, attempt=2) for n, r in enumerate(rows)]
    assert spoken(engine().advance(steps)) == {}


def fading(per_block: float, top: float = 1e-2) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """L2 norms by row, of which each block towards the input has ``per_block`` of the next."""
    rms = [top * per_block ** (BLOCKS - 1 - i) for i in range(BLOCKS)]
    rows = [value for r in rms for value in (r * 64, r * 8)]
    return np.array([*rows, top * np.sqrt(640)])


def test_a_deep_sigmoid_net_fades_from_birth() -> None:
    rows = noise(150, sigma=0.2) * fading(0.1)
    verdicts = engine().advance(step(n, r) for n, r in enumerate(rows))
    assert spoken(verdicts) == {("VanishingGradient", "ticket"): 99}
    (ticket,) = held(verdicts).values()
    assert ticket.annotations["layer"] == "blocks.5"


def test_a_gradient_that_begins_to_fade_is_a_ticket_two_hundred_steps_later() -> None:
    rows = noise(700, sigma=0.2) * fading(0.9)
    rows[300:] *= fading(0.2) / fading(0.9)
    first = spoken(engine(["VanishingGradient"]).advance(step(n, r) for n, r in enumerate(rows)))
    assert list(first) == [("VanishingGradient", "ticket")]
    assert 499 <= first["VanishingGradient", "ticket"] <= 530


@pytest.mark.parametrize("per_block", [1.0, 0.7, 0.5])
def test_a_gentle_slope_is_no_vanishing(per_block: float) -> None:
    rows = noise(400) * fading(per_block)
    assert spoken(engine().advance(step(n, r) for n, r in enumerate(rows))) == {}


def test_one_quiet_block_is_no_vanishing() -> None:
    norms = fading(1.0)
    norms[:2] *= 1e-6
    rows = noise(400, sigma=0.2) * norms
    assert spoken(engine().advance(step(n, r) for n, r in enumerate(rows))) == {}


def test_adapters_and_embeddings_are_not_asked_to_move() -> None:
    lora = layout(kind="adapter")
    LAYOUTS[lora.hash] = lora
    detectors = engine()
    rows = noise(200, sigma=0.2) * fading(0.1)
    assert spoken(detectors.advance(step(n, r, layout=lora.hash) for n, r in enumerate(rows))) == {}
    assert {c.alert: c.state for c in detectors.coverage()}["VanishingGradient"] == "blind"


def test_coverage_tells_what_would_arm_a_detector() -> None:
    detectors = engine()
    detectors.advance(step(n, loss=None, lr=None) for n in range(20))
    told = {c.alert: c for c in detectors.coverage()}
    assert told["NonFiniteGradient"].state == "armed"
    assert told["NonFiniteLoss"].state == "blind"
    assert "monitor.log(loss=loss)" in told["NonFiniteLoss"].detail
    assert told["ExplodingGradient"].state == "waiting"
    assert told["ExplodingGradient"].detail.startswith("20 of 100 steps")
    assert told["VanishingGradient"].detail == "20 of 100 steps"


def test_derived_series_hold_norm_loss_and_bad_values() -> None:
    (verdict,) = engine().advance([step(3, 2.0, nan=[4], loss=0.5)])
    points = {p.name: p for p in verdict.points}
    assert points["gradwarden_loss"].value == 0.5
    assert points["gradwarden_nonfinite_gradients"].value == 5
    assert np.isnan(points["gradwarden_gradient_norm"].value)
    (verdict,) = engine().advance([step(3, 2.0)])
    assert verdict.points[0].value == pytest.approx(2 * np.sqrt(ROWS))
    assert verdict.points[0].labels == {"attempt": "1", "group": "0"}
