"""Where it broke: the origin of a non-finite gradient, not its aftermath. Pure.

Gradients flow from the loss down, and a NaN poisons everything behind it. So the fault lies
between the last clean layer on the loss side and the first bad one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.detect.context import GroupView
from gradwarden_server.detect.steps import Step

_LARGEST = {
    "float16": 65504.0,
    "float8_e4m3fn": 448.0,
    "float8_e5m2": 57344.0,
    "float64": 1.797e308,
}
_TOP_BIN = {"float16": 14, "float8_e4m3fn": 12, "float8_e5m2": 14}
"""The histogram's bin that holds the largest numbers of a dtype; of others it is the last one."""
_LARGEST_FLOAT32 = 3.4028e38
"""Also bfloat16's, whose exponent is as wide."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The bracket of a fault: rows of the layout, or None where there is none on that side."""

    first_bad: int
    last_clean: int | None
    bad: int
    observed: int
    behind_clean: bool

    @property
    def everywhere(self) -> bool:
        """All bad: it came from the loss or the input."""
        return self.bad == self.observed


def find(bad: NDArray[np.bool_], seen: NDArray[np.bool_], backward: Sequence[int]) -> Origin:
    """The origin among rows of which at least one is bad, walking from the loss down."""
    walk = [int(row) for row in backward if seen[row] or bad[row]]
    at = next(i for i, row in enumerate(walk) if bad[row])
    return Origin(
        first_bad=walk[at],
        last_clean=walk[at - 1] if at else None,
        bad=int(bad.sum()),
        observed=len(walk),
        behind_clean=not any(bad[row] for row in walk[at + 1 :]) and at + 1 < len(walk),
    )


def largest(dtype: str) -> float:
    """The largest finite number of a dtype."""
    return _LARGEST.get(dtype.removeprefix("torch."), _LARGEST_FLOAT32)


@dataclass(frozen=True, slots=True)
class Cause:
    """What probably happened, and the first thing to do that can do no harm."""

    words: str
    first_action: str


def explain(
    origin: Origin,
    view: GroupView,
    bad_loss: bool | None,
    overflow_share: float,
    loss_scale: float | None = None,
) -> Cause:
    """The likely cause of a non-finite gradient.

    Args:
        origin: Where it broke.
        view: The group's step and the values before it.
        bad_loss: Whether the loss of this step was non-finite; None if none was logged.
        overflow_share: Share of the dtype's maximum from which a value before counts as near.
        loss_scale: The scale that gradients carried in half precision, if any.
    """
    layer = view.layout.layer(origin.first_bad)
    peak = _peak_before(origin, view) * (loss_scale or 1.0)
    dtype = "float16" if loss_scale else view.layout.layout.parameters[origin.first_bad].dtype
    if peak >= overflow_share * largest(dtype):
        return Cause(
            f"overflow: abs-max reached {peak:.3g} just before, of {largest(dtype):.3g} that "
            f"{dtype} can hold",
            "Resume from the last good checkpoint with gradient clipping on or a lower "
            "learning rate.",
        )
    if from_outside(origin, view, bad_loss):
        if bad_loss:
            words = "the loss itself is non-finite, and the gradients with it: a bad batch or input"
        elif bad_loss is None:
            words = "every gradient is non-finite at once: the loss or the input"
        else:
            words = (
                "every gradient is non-finite though the loss is finite: the derivative of the "
                "loss (log, sqrt or division at zero), or the input"
            )
        return Cause(
            words,
            "Resume from the last good checkpoint past the batch of this step; check that batch "
            "and the loss for zeros, log and division.",
        )
    if bad_loss:
        words = f"the loss is non-finite as well: values overflow in {layer}, or in what it reads"
    elif origin.behind_clean:
        words = f"fault inside {layer} alone: the gradients on both sides of it are finite"
    elif origin.last_clean is None:
        words = f"fault inside {layer}, the layer next to the loss, or in what follows it"
    else:
        above = view.layout.layer(origin.last_clean)
        words = f"fault inside {layer}, or between it and {above}: forward is finite, backward not"
    return Cause(
        words,
        f"Resume from the last good checkpoint; look in {layer} for sqrt, log, division or norm "
        "at zero (torch.autograd.detect_anomaly names the operation).",
    )


def from_outside(origin: Origin, view: GroupView, bad_loss: bool | None) -> bool:
    """Whether it came from the loss or the input.

    Where the loss is bad and so is every matrix, finite biases prove nothing: what is so huge that
    its products overflow may be finite in a sum.
    """
    if origin.everywhere or not bad_loss:
        return origin.everywhere
    parameters = view.layout.layout.parameters
    clean = np.flatnonzero(view.observed & ~view.bad)
    return all(len(parameters[row].shape) < 2 for row in clean)


def bracket(origin: Origin, view: GroupView, bad_loss: bool | None = None) -> str:
    """The bracket in words, loss side first."""
    bad = view.layout.layer(origin.first_bad)
    count = f"{origin.bad} of {origin.observed} parameters bad"
    if from_outside(origin, view, bad_loss):
        return f"the loss or the input ({count})"
    if origin.last_clean is None:
        return f"from the loss side on, first {bad} ({count})"
    clean = view.layout.layer(origin.last_clean)
    return f"between {clean} (clean) and {bad} (bad) ({count})"


def values_before(origin: Origin, view: GroupView) -> str:
    """Abs-max of the first bad parameter in the steps before, against what its dtype holds."""
    row = origin.first_bad
    dtype = view.layout.layout.parameters[row].dtype
    values = [f"{at}: {absmax[row]:.3g}" for at, absmax in view.before]
    if not values:
        return "no step before it was seen"
    peak = f"abs-max by step {', '.join(values)} (largest {dtype}: {largest(dtype):.3g})"
    return f"{peak}{_top_bin(row, dtype, view)}"


def _top_bin(row: int, dtype: str, view: GroupView) -> str:
    """How much of the parameter's gradient lay in the dtype's top bin when last counted."""
    if view.spread is None:
        return ""
    at, counts = view.spread
    total = float(np.nansum(counts[row]))
    top = _TOP_BIN.get(dtype.removeprefix("torch."), len(wire.HISTOGRAM) - 1)
    if total <= 0:
        return ""
    share = float(np.nansum(counts[row, top:])) / total
    return f"; {share:.2%} of its values from 2^{4 * top - 42} up at step {at}"


def batch(step: Step, ranks: Sequence[int] = ()) -> dict[str, str]:
    """The batch that the loop says it was at (``monitor.log(batch=i)``), of these ranks first."""
    told = [
        step.ranks[r].scalars for r in (*ranks, *step.ranks) if "batch" in step.ranks[r].scalars
    ]
    return {"batch": f"{told[0]['batch']:.15g}"} if told else {}


def _peak_before(origin: Origin, view: GroupView) -> float:
    values = [float(absmax[origin.first_bad]) for _, absmax in view.before]
    return max((v for v in values if np.isfinite(v)), default=0.0)
