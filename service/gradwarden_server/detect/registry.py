"""Detectors by the name that rules call them by. Adding one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from gradwarden_server.detect.all_reduce_slow import AllReduceSlow
from gradwarden_server.detect.base import Detector, Rule
from gradwarden_server.detect.baseline import SETTING_TYPES
from gradwarden_server.detect.checkpoint_corrupt import CheckpointCorrupt
from gradwarden_server.detect.checkpoint_slow import CheckpointSlow
from gradwarden_server.detect.checkpoint_stale import CheckpointStale
from gradwarden_server.detect.clip_saturation import ClipSaturation
from gradwarden_server.detect.dead_layer import DeadLayer
from gradwarden_server.detect.eval_mode import TrainingInEvalMode
from gradwarden_server.detect.expert_starved import ExpertStarved
from gradwarden_server.detect.exploding import ExplodingGradient
from gradwarden_server.detect.gpu_memory import GpuMemoryPressure
from gradwarden_server.detect.gradient_shift import GradientShift
from gradwarden_server.detect.gradient_underflow import GradientUnderflow
from gradwarden_server.detect.gradients_not_zeroed import GradientsNotZeroed
from gradwarden_server.detect.input_bound import InputBound
from gradwarden_server.detect.loss_divergence import LossDivergence
from gradwarden_server.detect.loss_plateau import LossPlateau
from gradwarden_server.detect.loss_scale_collapse import LossScaleCollapse
from gradwarden_server.detect.loss_spike import LossSpike
from gradwarden_server.detect.never_synchronized import NeverSynchronized
from gradwarden_server.detect.no_gradient import NoGradient
from gradwarden_server.detect.nonfinite_gradient import NonFiniteGradient
from gradwarden_server.detect.nonfinite_loss import NonFiniteLoss
from gradwarden_server.detect.norm_self_check import NormSelfCheckFailed
from gradwarden_server.detect.overfitting import Overfitting
from gradwarden_server.detect.overhead import OverheadBudgetExceeded
from gradwarden_server.detect.rank_silent import RankSilent
from gradwarden_server.detect.replica_mismatch import ReplicaMismatch
from gradwarden_server.detect.run_failed import RunFailed
from gradwarden_server.detect.stale_gradients import StaleGradients
from gradwarden_server.detect.stalled import RunStalled
from gradwarden_server.detect.straggler import Straggler
from gradwarden_server.detect.throughput_drop import ThroughputDrop
from gradwarden_server.detect.update_ratio import UpdateRatioOutOfBand
from gradwarden_server.detect.vanishing import VanishingGradient

DETECTORS: Mapping[str, type[Detector]] = {
    kind.name: kind
    for kind in (
        NonFiniteGradient,
        NonFiniteLoss,
        ExplodingGradient,
        VanishingGradient,
        GradientUnderflow,
        LossScaleCollapse,
        LossSpike,
        LossDivergence,
        LossPlateau,
        UpdateRatioOutOfBand,
        ClipSaturation,
        Overfitting,
        DeadLayer,
        ExpertStarved,
        ReplicaMismatch,
        NeverSynchronized,
        NormSelfCheckFailed,
        RunStalled,
        RankSilent,
        RunFailed,
        AllReduceSlow,
        Straggler,
        CheckpointSlow,
        CheckpointStale,
        CheckpointCorrupt,
        InputBound,
        ThroughputDrop,
        GpuMemoryPressure,
        OverheadBudgetExceeded,
        NoGradient,
        GradientsNotZeroed,
        TrainingInEvalMode,
        StaleGradients,
        GradientShift,
    )
}
BASELINE_SCHEMA = SETTING_TYPES


def schemas() -> dict[str, dict[str, str]]:
    """Parameter names and types of every detector, for the rules loader."""
    return {name: kind.schema() for name, kind in DETECTORS.items()}


def build(rule: Rule) -> Detector:
    """The detector of one rule for one run; the loader has checked its parameters."""
    kind = DETECTORS[rule.detector]
    return kind(rule.alert, kind.parameters(**rule.params))
