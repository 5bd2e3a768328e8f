"""Between the words of the store and those of detectors and alerts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from gradwarden_server.detect.base import RankLiveness
from gradwarden_server.detect.engine import DerivedPoint
from gradwarden_server.model import Condition, RunFacts, run_path
from gradwarden_server.store.judging.watched import Sign
from gradwarden_server.store.log.recorded import Derived
from gradwarden_server.store.records import RunRecord


def facts(run: RunRecord, external_url: str) -> RunFacts:
    """What alerts say of a run."""
    return RunFacts(
        row=run.id,
        project=run.project,
        run=run.run,
        name=run.name,
        status=run.status,
        environment="prod" if run.page else run.environment,
        world_size=run.world_size,
        labels=run.labels,
        dashboard_url=external_url + run_path(run.project, run.run),
        started_ns=run.started_ns,
        last_seen_ns=run.last_seen_ns,
        last_step=run.last_step,
        ended_ns=run.ended_ns,
    )


def alive(sign: Sign) -> RankLiveness:
    """What detectors ask of a rank."""
    return RankLiveness(
        rank=sign.rank,
        last_seen_ns=sign.last_seen_ns,
        last_step=sign.last_step,
        last_step_ns=sign.last_step_ns,
        phase=sign.phase,
        # A spool sent later is no sign of life: such a stream is not waited for.
        ended=sign.ended or sign.heartbeat_ns is None,
        host=sign.host,
    )


def told(value: float) -> float | str:
    """A number as JSON can hold it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def as_history(condition: Condition) -> Condition:
    """A finding on old data: it stands in the history and wakes nobody."""
    if not condition.active or condition.severity == "note":
        return condition
    words = {**condition.annotations, "backfill": f"found late; was a {condition.severity}"}
    return replace(condition, severity="note", annotations=words)


def by_series(run_row: int, points: Iterable[DerivedPoint]) -> list[Derived]:
    """Points as chunks, one for each series."""
    series: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[int, float]]] = {}
    for point in points:
        key = (point.name, tuple(sorted(point.labels.items())))
        series.setdefault(key, []).append((point.time_ns, point.value))
    return [Derived(run_row, name, dict(labels), held) for (name, labels), held in series.items()]
