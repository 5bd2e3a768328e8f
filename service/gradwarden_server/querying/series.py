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
    "gradwarden_steps_total": Meaning("counter", "Steps of a run that were judged"),
    "gradwarden_nonfinite_steps_total": Meaning(
        "counter", "Steps with NaN or Inf in a gradient or the loss, but for those a scaler skipped"
    ),
    "gradwarden_run_minutes_total": Meaning("counter", "Minutes of a live run"),
    "gradwarden_silent_minutes_total": Meaning(
        "counter", "Minutes of a live run in which nothing was heard of it"
    ),
    "gradwarden_run_ended_seconds": Meaning("gauge", "When a run ended, since the epoch"),
    "gradwarden_run_good": Meaning("gauge", "1 of a run that ended well, 0 of one that did not"),
    "gradwarden_run_converge_seconds": Meaning("gauge", "How long a run took that ended well"),
    "gradwarden_loss": Meaning("gauge", "Loss of a step, the mean over the ranks that logged it"),
}
