"""A run that was put aside at any step is judged as if it never was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.detect.engine import RunDetectors
from gradwarden_server.detect.state import BadState, pack, unpack
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition
from tests.server.detection import LAYOUTS, ROWS, RULES, carrier, engine, noise, step


def eventful_run() -> list[Step]:
    """Everything that detectors remember happens once."""
    rows = noise(420, seed=5)
    rows[200:206] *= 50
    rows[300:330] *= 80
    steps = [
        step(
            n,
            row,
            loss=np.nan if n == 250 else 1.0 + (n - 300 if 300 <= n < 330 else 0),
            nan=[4, 5] if n in (150, 155, 250, 251) else [],
            stepped=n not in (150, 155),
            lr=min(1.0, (n + 1) / 60) * 1e-3,
            tokens=1024.0,
        )
        for n, row in enumerate(rows)
    ]
    steps += [step(n, np.geomspace(1e-9, 1, ROWS), attempt=2) for n in range(380, 520)]
    steps.insert(100, carrier(99, {"kind": "mark", "name": "data", "value": 2}, 99.5))
    steps.insert(350, carrier(347, {"kind": "phase", "name": "eval", "seconds": 30}, 348))
    return steps


STEPS = eventful_run()


def judged(detectors: RunDetectors, steps: list[Step]) -> list[tuple[int, tuple[Condition, ...]]]:
    return [(v.step, v.conditions) for s in steps for v in detectors.advance([s])]


ALL = judged(engine(), STEPS)


def test_the_run_is_eventful() -> None:
    active = {(c.alertname, c.severity) for _, said in ALL for c in said if c.active}
    assert {name for name, _ in active} >= {
        "NonFiniteGradient",
        "NonFiniteLoss",
        "ExplodingGradient",
        "VanishingGradient",
    }


@given(st.integers(0, len(STEPS) - 1))
@settings(max_examples=12, deadline=None)
def test_restored_at_any_step_it_says_the_same(at: int) -> None:
    before = engine()
    before.advance(STEPS[:at])
    after = engine()
    after.restore(before.state())
    assert judged(after, STEPS[at : at + 130]) == ALL[at : at + 130]
    assert after.coverage() == _continued(before, at).coverage()


def _continued(detectors: RunDetectors, at: int) -> RunDetectors:
    detectors.advance(STEPS[at : at + 130])
    return detectors


def test_a_state_of_other_rules_is_refused() -> None:
    state = engine(["NonFiniteGradient"]).state()
    with pytest.raises(BadState, match="rules changed"):
        engine().restore(state)
    other = RunDetectors(LAYOUTS.get, RULES.detectors, {**RULES.baseline, "flag_z": 5.0})
    with pytest.raises(BadState, match="rules changed"):
        engine().restore(other.state())


def test_a_state_of_another_version_is_refused() -> None:
    state = unpack(engine().state()) | {"version": 99}
    with pytest.raises(BadState, match="version 99"):
        engine().restore(pack(state))


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", pack({})[:-3]])
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadState):
        unpack(data)
