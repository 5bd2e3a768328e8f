"""What the figures of all tools say beside each other, and whether the goals are met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DATABASES = ("sqlite", "postgresql")
TIME_SERIES = ("prometheus", "victoria-metrics", "victoria-metrics import")
AT_LEAST = {"sustained_over_time_series": 10.0, "sustained_over_mlflow": 500.0}
AT_MOST = {
    "bytes_per_sample": 2.5,
    "cpu_share_of_time_series": 1 / 8,
    "bytes_per_sample_12_bits": 1.6,
}

Figures = Mapping[str, Any]


def goals() -> dict[str, float]:
    """Every goal, for each of our databases."""
    return {f"{db}_{name}": goal for db in DATABASES for name, goal in (AT_LEAST | AT_MOST).items()}


def reached(ours: Mapping[str, Figures], peers: Mapping[str, Figures]) -> dict[str, float | None]:
    """What each goal is held against; None where a part of it was not measured.

    Beside time series databases the best of them counts: the highest rate, the least processor
    time. Our processor time is that of the sustained mode, compaction and the database's own
    processes included.
    """
    found: dict[str, float | None] = {}
    complete = {"prometheus", "victoria-metrics"} <= set(peers)
    beside = [peers[name] for name in TIME_SERIES if name in peers] if complete else []
    fastest = max((p["samples_per_second"] for p in beside), default=None)
    leanest = min((p["cpu_us_per_sample"] for p in beside), default=None)
    tracker = peers["mlflow"]["samples_per_second"] if "mlflow" in peers else None
    for db in DATABASES:
        modes = ours.get(db, {})
        sustained = modes.get("sustained", {})
        rate, cpu = sustained.get("samples_per_second"), sustained.get("cpu_us_per_sample")
        values = {
            "sustained_over_time_series": _ratio(rate, fastest, 2),
            "sustained_over_mlflow": _ratio(rate, tracker, 1),
            "bytes_per_sample": _compacted(modes.get("flat_out", {})),
            "cpu_share_of_time_series": _ratio(cpu if rate else None, leanest, 4),
            "bytes_per_sample_12_bits": _compacted(modes.get("precision_12_bits", {})),
        }
        found |= {f"{db}_{name}": value for name, value in values.items()}
    return found


def met(values: Mapping[str, float | None]) -> dict[str, bool | None]:
    """Whether each goal is met; None where that was not measured."""
    verdicts: dict[str, bool | None] = {}
    for name, goal in goals().items():
        value = values[name]
        kind = name.partition("_")[2]
        if value is None:
            verdicts[name] = None
        else:
            verdicts[name] = value >= goal if kind in AT_LEAST else value <= goal
    return verdicts


def _ratio(value: float | None, other: float | None, digits: int) -> float | None:
    return round(value / other, digits) if value and other else None


def _compacted(figures: Figures) -> float | None:
    """Bytes on disk by sample, if all of them were compacted."""
    if not figures or figures["samples_counted_by_service"] != figures["samples"]:
        return None
    size: float = figures["bytes_per_sample"]
    return size
