"""The series that queries see, by name, with what each means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LAYER = "gradwarden_layer"
SCALAR = "gradwarden_scalar"
ALERTS = "ALERTS"
ALERTS_FOR_STATE = "ALERTS_FOR_STATE"
RUN = "gradwarden_run_info"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a series is, as ``/api/v1/metadata`` tells it."""

    kind: Literal["gauge", "counter", "unknown"]
    help: str


MEANINGS: Mapping[str, Meaning] = {
    LAYER: Meaning(
        "gauge",
        "One statistic of one parameter at each captured step: labels quantity (l2, absmax, rms, "
        "nan, inf, zero, weight_l2, update_ratio, ...), layer, group",
    ),
    SCALAR: Meaning(
        "gauge",
        "One number that a rank logged or measured at each step: labels quantity (loss, lr, "
        "step_seconds, ...), rank",
    ),
    ALERTS: Meaning("gauge", "1 while an alert is pending or firing: label alertstate"),
    ALERTS_FOR_STATE: Meaning(
        "gauge", "While an alert is pending or firing: since when, in seconds since the epoch"
    ),
    RUN: Meaning("gauge", "1 from a run's start to its end: its facts as labels"),
    "gradwarden_gradient_norm": Meaning("gauge", "Global L2 norm of the gradients of a step"),
    "gradwarden_nonfinite_gradients": Meaning(
        "gauge", "NaN and Inf among the gradients of a step, in elements"
    ),
    "gradwarden_loss": Meaning("gauge", "Loss of a step, the mean over the ranks that logged it"),
}
