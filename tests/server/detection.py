"""A small model and its steps as detectors see them, for the tables of the detection tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden import wire
from gradwarden_server.detect import registry
from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.steps import GroupStep, RankStep, Step
from gradwarden_server.model import Condition
from gradwarden_server.rules import spec

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000
BLOCKS = 8
RULES = spec.load(ROOT / "alert_rules", registry.schemas(), registry.BASELINE_SCHEMA)


def layout(blocks: int = BLOCKS, kind: str = "matrix", dtype: str = "float32") -> wire.Layout:
    """``blocks`` blocks of one matrix and one bias, then a head; gradients ready in reverse."""
    parameters = []
    for i in range(blocks):
        block = f"blocks.{i}"
        parameters += [
            wire.Parameter(f"{block}.fc.weight", (64, 64), dtype, block, kind),
            wire.Parameter(f"{block}.fc.bias", (64,), dtype, block, "bias"),
        ]
    parameters.append(wire.Parameter("head.weight", (10, 64), dtype, "head", "head"))
    return wire.Layout(tuple(parameters), tuple(reversed(range(len(parameters)))))


LAYOUT = layout()
ROWS = len(LAYOUT.parameters)
LAYOUTS: dict[str, wire.Layout] = {LAYOUT.hash: LAYOUT}


def engine(alerts: Iterable[str] = (), world_size: int = 1, **changed: Any) -> RunDetectors:
    """The shipped rules, all or those named, with the layouts of this module."""
    wanted = set(alerts)
    rules = [r for r in RULES.detectors if not wanted or r.alert in wanted]
    return RunDetectors(LAYOUTS.get, rules, RULES.baseline, world_size=world_size, **changed)


def matrix(norms: Sequence[float] | float, nan: Iterable[int] = (), inf: Iterable[int] = ()) -> Any:
    """Rows of l2, absmax and counts; an L2 norm of NaN leaves the row unobserved."""
    l2 = np.broadcast_to(np.asarray(norms, np.float64), (ROWS,))
    rows = np.zeros((ROWS, len(wire.QUANTITIES)), np.float32)
    rows[:, 0] = l2
    rows[:, 1] = l2 / 8
    rows[np.isnan(l2)] = np.nan
    for row in nan:
        rows[row] = [np.nan, np.nan, 5, 0, 0, 0]
    for row in inf:
        rows[row] = [np.inf, np.inf, 0, 3, 0, 0]
    return rows


def step(
    number: int,
    norms: Sequence[float] | float = 1.0,
    *,
    nan: Iterable[int] = (),
    inf: Iterable[int] = (),
    loss: float | Mapping[int, float] | None = 1.0,
    stepped: bool | None = True,
    capture: wire.Capture = "pre_clip",
    lr: float | None = 1e-3,
    attempt: int = 1,
    seconds: float | None = None,
    events: Iterable[Mapping[str, Any]] = (),
    layout: str = LAYOUT.hash,
    **scalars: float,
) -> Step:
    """One joined step; a mapping of losses makes one rank of each of its keys."""
    losses = loss if isinstance(loss, Mapping) else {0: loss}
    own = scalars if lr is None else {**scalars, "lr": lr}
    time_ns = round((number if seconds is None else seconds) * SECOND)
    ranks = {
        rank: RankStep(
            group=0,
            time_ns=time_ns,
            scalars=own if value is None else {**own, "loss": value},
            stepped=stepped,
            capture=capture,
        )
        for rank, value in losses.items()
    }
    values = matrix(norms, nan, inf)
    held = GroupStep(values, wire.QUANTITIES, layout, min(ranks), capture, stepped)
    return Step(
        attempt=attempt,
        step=number,
        time_ns=time_ns,
        first_received_ns=time_ns,
        groups={0: held},
        ranks=ranks,
        events=tuple((0, event) for event in events),
    )


def carrier(number: int, event: Mapping[str, Any], seconds: float, rank: int = 0) -> Step:
    """A step that carries one event alone."""
    at = round(seconds * SECOND)
    return Step(1, number, at, at, events=((rank, event),))


def noise(steps: int, seed: int = 0, sigma: float = 0.3) -> np.ndarray[Any, Any]:
    """Norms of a healthy run: layers that move together, with heavy tails."""
    rng = np.random.default_rng(seed)
    together = rng.standard_t(4, (steps, 1)) * sigma / 2
    alone = rng.standard_t(4, (steps, ROWS)) * sigma / 2
    return np.asarray(np.exp(together + alone))


def spoken(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], int]:
    """When each alert and severity first became active."""
    first: dict[tuple[str, str], int] = {}
    for verdict in verdicts:
        for condition in verdict.conditions:
            if condition.active:
                first.setdefault((condition.alertname, condition.severity), verdict.step)
    return first


def held(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], Condition]:
    """What is active in the end."""
    last: dict[tuple[str, str], Condition] = {}
    for verdict in verdicts:
        for condition in verdict.conditions:
            last[condition.alertname, condition.severity] = condition
    return {key: condition for key, condition in last.items() if condition.active}


def urgent(first: Mapping[tuple[str, str], int]) -> set[str]:
    """Alerts that reach a person: pages and tickets."""
    return {name for name, severity in first if severity != "note"}
