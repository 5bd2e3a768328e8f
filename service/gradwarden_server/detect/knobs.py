"""Which numbers of a rule make its detector speak less, and which way they turn.

For whoever looks for thresholds in stored runs. What is not listed is no matter of taste: a
length over which something is measured, or a fact of arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Way = Literal["up", "down", "towards one"]


@dataclass(frozen=True, slots=True)
class Knob:
    """One number: which way is quieter, and the number of the rule that it must not pass."""

    way: Way
    within: str | None = None

    def turned(self, value: float, factor: float) -> float:
        """The number, ``factor`` times quieter; 1 leaves it as it is."""
        if self.way == "up":
            return value * factor
        if self.way == "down":
            return value / factor
        return 1 - (1 - value) / factor


UP, DOWN, SHARE = Knob("up"), Knob("down"), Knob("towards one")

KNOBS: Mapping[str, Mapping[str, Knob]] = {
    "all_reduce_slow": {"ratio": UP, "share": SHARE, "seconds": UP},
    "checkpoint_slow": {"ratio": UP, "least_seconds": UP, "share": SHARE},
    "checkpoint_stale": {"declared_ratio": UP, "observed_ratio": UP, "least_seconds": UP},
    "clip_saturation": {"ticket_median": DOWN, "window_steps": UP},
    "dead_layer": {"zero_share": SHARE, "steps": UP, "lived_share": SHARE},
    "expert_starved": {"steps": UP},
    "exploding_gradient": {
        "z": UP,
        "ratio": UP,
        "ticket_steps": Knob("up", within="ticket_window_steps"),
        "page_steps": Knob("up", within="page_window_steps"),
        "loss_z": UP,
        "update_ratio": UP,
        "page_ratio": UP,
        "page_ratio_steps": UP,
        "birth_ratio": UP,
        "birth_steps": Knob("up", within="birth_window_steps"),
    },
    "gpu_memory": {
        "retry_windows": UP,
        "peak_share": SHARE,
        "leak_windows": UP,
        "leak_growth": UP,
    },
    "gradient_underflow": {"share": SHARE, "steps": UP},
    "gradients_not_zeroed": {"steps": UP},
    "input_bound": {"share": SHARE, "window_steps": UP, "least_seconds": UP, "lost_seconds": UP},
    "loss_divergence": {
        "gained_share": UP,
        "spreads": UP,
        "ticket_steps": UP,
        "page_start_steps": UP,
        "page_ticket_steps": UP,
    },
    "loss_plateau": {"improvement": DOWN, "window_steps": UP},
    "loss_scale_collapse": {"calibration_skips": UP, "skipped_share": SHARE, "in_a_row": UP},
    "never_synchronized": {"steps": UP, "share": SHARE},
    "no_gradient": {"steps": UP, "declared_steps": UP},
    "nonfinite_gradient": {
        "skipped_ticket": Knob("up", within="skipped_window_steps"),
        "skipped_in_a_row": UP,
    },
    "nonfinite_loss": {"skipped_in_a_row": UP},
    "norm_self_check": {
        "tolerance": UP,
        "half_tolerance": UP,
        "steps": Knob("up", within="window_steps"),
    },
    "overfitting": {"rise": UP, "evaluations": UP},
    "rank_silent": {"ticket_seconds": UP, "page_seconds": UP, "standing_page_seconds": UP},
    "run_failed": {"grace_seconds": UP, "silent_seconds": UP},
    "run_stalled": {
        "start_ticket_seconds": UP,
        "start_page_seconds": UP,
        "phase_ticket_seconds": UP,
        "phase_page_seconds": UP,
        "ticket_seconds": UP,
        "ticket_medians": UP,
        "ticket_gaps": UP,
        "page_seconds": UP,
        "page_medians": UP,
        "page_gaps": UP,
    },
    "stale_gradients": {
        "per_worker": UP,
        "least": UP,
        "steps": Knob("up", within="window_steps"),
    },
    "straggler": {"ratio": UP, "lost_share": SHARE},
    "throughput_drop": {"share": DOWN, "seconds": UP},
    "update_ratio": {"highest": UP, "lowest": DOWN, "steps": UP},
    "vanishing_gradient": {
        "ratio": DOWN,
        "monotone_blocks": UP,
        "update_ratio": DOWN,
        "severe_ratio": DOWN,
        "steps": UP,
        "birth_steps": UP,
        "lr_share": SHARE,
    },
}
