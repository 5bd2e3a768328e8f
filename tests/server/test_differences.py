"""What differs in some steps: the layer that moved is named, and what stood still is not."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from gradwarden_server.api.contrast import around, contrast, ranked
from tests.server.traffic import LAYOUT, batch, begin, frame, matrix, problem, send
from tests.service import Service

MOVED = 3
FIRST, LAST = 120, 139


def noisy(level: float, steps: int, seed: int = 0) -> np.ndarray:
    chance = random.Random(seed)
    return np.array([level * 10 ** chance.gauss(0, 0.05) for _ in range(steps)])


def test_a_series_that_moved_is_far_and_one_that_did_not_is_near() -> None:
    moved = contrast(noisy(10, 20, 1), noisy(1, 100))
    still = contrast(noisy(1, 20, 2), noisy(1, 100))
    assert moved is not None
    assert still is not None
    assert moved.told
    assert moved.spreads == pytest.approx(20, rel=0.4), "a decade, of spreads of 0.05"
    assert not still.told


def test_wild_steps_outside_do_not_hide_what_is_inside() -> None:
    wild = noisy(1, 100)
    wild[::10] = 1e6
    found = contrast(noisy(10, 20, 1), wild)
    assert found is not None
    assert found.told


def test_values_that_are_not_finite_come_before_everything_that_is() -> None:
    bad = contrast(np.array([1.0, math.nan, 1.0]), noisy(1, 50))
    far = contrast(noisy(1e6, 10), noisy(1, 50))
    assert bad is not None
    assert (bad.nonfinite, bad.spreads) == (1, math.inf)
    assert [name for name, _ in ranked([("far", far), ("bad", bad), ("none", None)], 9)] == [
        "bad",
        "far",
    ]


def test_numbers_of_any_sign_and_numbers_that_stand_still_are_compared() -> None:
    negative = contrast(np.full(5, -4.0), np.full(9, -1.0))
    assert negative is not None
    assert negative.told
    same = contrast(np.zeros(5), np.zeros(9))
    assert same is not None
    assert same.spreads == 0
    assert contrast(np.ones(5), np.ones(2)) is None, "two steps say nothing of what is usual"


def test_the_steps_around_stay_within_the_run() -> None:
    assert around(100, 109, (0, 1000)) == (36, 173)
    assert around(100, 199, (50, 300)) == (50, 300)


@pytest.fixture(scope="module")
def moved(service: Service) -> Service:
    """A run of 260 steps of which one layer and the learning rate moved in twenty."""
    begin(service, "moved")
    cell = len(matrix()) // len(LAYOUT.parameters)
    frames = []
    for seq in range(1, 261):
        step = seq - 1
        inside = FIRST <= step <= LAST
        values = bytearray(matrix(1 + 0.02 * math.sin(step)))
        if inside:
            values[MOVED * cell : (MOVED + 1) * cell] = matrix(40.0)[:cell]
        scalars = {"loss": 2.0 + 0.01 * math.cos(step), "lr": 0.1 if inside else 0.01}
        frames.append(frame(seq, values=bytes(values), scalars=scalars))
    assert send(service, batch("moved", frames)).status_code == 200
    return service


def test_the_layer_and_the_number_that_moved_are_named_first(moved: Service) -> None:
    told = moved.get(f"/v1/runs/moved/differences?from={FIRST}&to={LAST}")
    assert (told["first"], told["last"]) == (FIRST, LAST)
    assert told["outside"] == [40, 219]
    names = {(item["kind"], item["name"], item["quantity"]) for item in told["items"]}
    assert ("layer", LAYOUT.parameters[MOVED].name, "l2") in names
    assert ("number", "lr", "lr") in names
    assert ("number", "loss", "loss") not in names
    layers = [
        item for item in told["items"] if item["kind"] == "layer" and item["quantity"] == "l2"
    ]
    assert [item["row"] for item in layers] == [MOVED]
    assert layers[0]["inside"] == pytest.approx(40, rel=0.05)
    assert layers[0]["outside"] == pytest.approx(1, rel=0.05)
    few = moved.get(f"/v1/runs/moved/differences?from={FIRST}&to={LAST}&layers=blocks.0")
    assert {item["kind"] for item in few["items"]} == {"number"}


def test_calm_steps_differ_in_nothing(moved: Service) -> None:
    assert moved.get("/v1/runs/moved/differences?from=230&to=239")["items"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("from=9&to=3", "to"), ("from=0&to=90000", "to"), ("from=999&to=999", "from")],
)
def test_steps_that_are_not_there_are_refused(moved: Service, query: str, field: str) -> None:
    refused = moved.call("GET", f"/v1/runs/moved/differences?{query}")
    assert problem(refused, 400, "malformed")["field"] == field
