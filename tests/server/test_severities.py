"""How loud each alert may be, held against the catalogue of sicknesses."""

from __future__ import annotations

import pytest

from gradwarden_server.assets import ALERT_RULES
from gradwarden_server.detect import registry
from gradwarden_server.rules import spec

CATALOGUE: dict[str, tuple[str, ...]] = {
    "NonFiniteGradient": ("page", "ticket", "note"),
    "NonFiniteLoss": ("page", "note"),  # a note where the step was skipped and all went on
    "ExplodingGradient": ("page", "ticket", "note"),
    "VanishingGradient": ("ticket",),
    "DeadLayer": ("ticket",),
    "ExpertStarved": ("ticket",),
    "NoGradient": ("ticket",),
    "GradientsNotZeroed": ("ticket",),
    "GradientUnderflow": ("ticket",),
    "LossScaleCollapse": ("page", "ticket"),
    "LossSpike": ("note",),
    "LossDivergence": ("page", "ticket", "note"),  # a note where losses need not fall
    "LossPlateau": ("ticket",),
    "UpdateRatioOutOfBand": ("ticket",),
    "ClipSaturation": ("ticket", "note"),
    "ReplicaMismatch": ("page", "ticket"),
    "NeverSynchronized": ("ticket",),
    "NormSelfCheckFailed": ("ticket",),
    "AllReduceSlow": ("ticket",),  # a declared objective that burns pages by itself
    "Straggler": ("ticket",),
    "RunStalled": ("page", "ticket"),
    "RankSilent": ("page", "ticket"),
    "RunFailed": ("page", "ticket", "note"),  # not in production: a ticket; preempted: a note
    "CheckpointSlow": ("ticket",),
    "CheckpointStale": ("ticket",),
    "CheckpointCorrupt": ("page",),
    "InputBound": ("ticket",),
    "ThroughputDrop": ("ticket", "note"),  # a note where sequences got longer
    "GpuMemoryPressure": ("ticket",),
    "GradientShift": ("note",),
    "StaleGradients": ("ticket",),
    "Overfitting": ("ticket", "note"),
    "TrainingInEvalMode": ("note",),
    "OverheadBudgetExceeded": ("note",),
}
"""Loudest first; what a detector says more quietly than its row has its reason beside it."""

RULES = spec.load(ALERT_RULES, registry.schemas(), registry.BASELINE_SCHEMA).detectors


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.alert)
def test_a_shipped_alert_is_as_loud_as_its_row_says(rule: spec.DetectorRule) -> None:
    assert rule.severity is None, "what ships leaves the severity to the detector"
    assert registry.DETECTORS[rule.detector].severities == CATALOGUE[rule.alert]


def test_every_row_of_the_catalogue_ships() -> None:
    assert sorted(rule.alert for rule in RULES) == sorted(CATALOGUE)
