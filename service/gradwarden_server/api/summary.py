"""One run in one line: its health and why, its loss, its recent gradient norms."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gradwarden_server.alerting.lifecycle import AT_THE_END
from gradwarden_server.api.plain import Number, number, rfc3339
from gradwarden_server.api.schemas import AlertCounts, RunFace
from gradwarden_server.model import Alert
from gradwarden_server.store.ledger import OPEN, AlertLedger
from gradwarden_server.store.recorded import RecordedSeries, Sampled
from gradwarden_server.store.records import RunRecord
from gradwarden_server.store.runs import RunStore

Health = Literal["ok", "warn", "crit", "silent"]

SILENT_NS = 60 * 1_000_000_000
_SPARK_POINTS = 48
_SPARK_STEPS = 240
_LOSS = "gradwarden_loss"
_NORM = "gradwarden_gradient_norm"
_RECOUNT_SECONDS = 2.0
_SETTLED_NS = 60 * 1_000_000_000
_MOST_KEPT = 2000
_MOST_ALERTS = 1000
_RANK = {"page": 0, "ticket": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class _Recent:
    """The recent past of a run as of a moment; ``settled`` when nothing more is to come."""

    position: int
    settled: bool
    read_at: float
    loss: Number | None
    spark: tuple[float | None, ...]


class Summaries:
    """Lines for the list of runs, from derived series alone: a list never reads layers."""

    def __init__(self, runs: RunStore, recorded: RecordedSeries, ledger: AlertLedger) -> None:
        self._runs = runs
        self._recorded = recorded
        self._ledger = ledger
        self._recent: dict[tuple[str, str], _Recent] = {}
        self._lock = threading.Lock()

    def faces(self, project: str, records: Sequence[RunRecord], now_ns: int) -> list[RunFace]:
        """The lines of some runs of a project."""
        only = records[0].run if len(records) == 1 else None
        known = self._ledger.list(project, (), only, limit=_MOST_ALERTS).items
        of_run: dict[str, list[Alert]] = {}
        for alert in known:
            if alert.run is not None:
                of_run.setdefault(alert.run, []).append(alert)
        return [self._face(project, run, of_run.get(run.run, []), now_ns) for run in records]

    def _face(self, project: str, run: RunRecord, known: Sequence[Alert], now_ns: int) -> RunFace:
        alerts = [a for a in known if a.state in OPEN]
        firing = _worst_first(a for a in alerts if a.state == "firing")
        # A run that ended ill is not healthy, though its end closed its alerts.
        ailing = firing or _worst_first(a for a in known if a.reason in AT_THE_END)
        health, reason = judge(run, ailing, now_ns)
        if run.status == "failed" and not ailing:
            reason = self._last_words(project, run) or reason
        attempts = self._runs.attempts(project, run.run)
        recent = self._past(project, run, now_ns)
        layers = (a.annotations.get("layer") for a in ailing)
        return RunFace(
            run=run.run,
            name=run.name,
            project=run.project,
            owner=run.owner,
            training_job=run.training_job,
            environment=run.environment,
            status=run.status,
            health=health,
            reason=reason,
            attempt=attempts[-1].ordinal if attempts else 1,
            step=run.last_step,
            loss=recent.loss,
            spark=list(recent.spark),
            worst_layer=next((layer for layer in layers if layer), None),
            alerts=AlertCounts(pending=len(alerts) - len(firing), firing=len(firing)),
            world_size=run.world_size,
            started_at=rfc3339(run.started_ns),
            last_seen_at=rfc3339(run.last_seen_ns),
            ended_at=rfc3339(run.ended_ns),
        )

    def _last_words(self, project: str, run: RunRecord) -> str:
        """What a failed run said of its end, before its alert is due."""
        ends = (e for e in self._runs.events(project, run.run, limit=20) if e.kind == "finish")
        errors = [str(e.data["error"]) for e in ends if e.data.get("error")]
        return f"failed: {errors[-1]}" if errors else ""

    def _past(self, project: str, run: RunRecord, now_ns: int) -> _Recent:
        key = (project, run.run)
        held = self._recent.get(key)
        now = time.monotonic()
        if held is not None and (
            now - held.read_at < _RECOUNT_SECONDS
            or (held.settled and held.position == run.position)
        ):
            return held
        losses = _newest(self._recorded.newest(project, run.id, (_LOSS,), 1), _LOSS)
        norms = _newest(self._recorded.newest(project, run.id, (_NORM,), _SPARK_STEPS), _NORM)
        recent = _Recent(
            run.position,
            now_ns - run.last_seen_ns > _SETTLED_NS,
            now,
            number(losses[-1]) if losses else None,
            spark(norms),
        )
        with self._lock:
            while len(self._recent) >= _MOST_KEPT:
                self._recent.pop(next(iter(self._recent)))
            self._recent[key] = recent
        return recent


def judge(run: RunRecord, ailing: Sequence[Alert], now_ns: int) -> tuple[Health, str]:
    """Health and its reason in words; ``ailing`` has the worst alert first."""
    worst = ailing[0] if ailing else None
    summary = "" if worst is None else worst.annotations.get("summary") or worst.alertname
    if worst is not None and worst.severity == "page":
        return "crit", summary
    if worst is not None and worst.severity == "ticket":
        return "warn", summary
    if run.status == "failed":
        return "warn", summary or "the run failed"
    quiet_ns = now_ns - run.last_seen_ns
    if run.status == "running" and quiet_ns > SILENT_NS:
        return "silent", f"nothing heard for {quiet_ns // 1_000_000_000} s"
    return "ok", summary


def _worst_first(alerts: Iterable[Alert]) -> list[Alert]:
    return sorted(alerts, key=lambda a: (_RANK.get(a.severity, 3), a.active_ns))


def spark(norms: Sequence[float]) -> tuple[float | None, ...]:
    """At most 48 points, each the largest of its steps; None where any is not finite."""
    width = max(1, math.ceil(len(norms) / _SPARK_POINTS))
    groups = (norms[at : at + width] for at in range(0, len(norms), width))
    return tuple(max(g) if all(map(math.isfinite, g)) else None for g in groups)


def _newest(found: Sequence[Sampled], name: str) -> list[float]:
    """Values of the newest attempt, of its first replica group."""
    series = [one for one in found if one.name == name and one.points]
    if not series:
        return []
    best = max(series, key=_place)
    return [value for _, value in best.points]


def _place(series: Sampled) -> tuple[int, int]:
    return int(series.labels.get("attempt", 0)), -int(series.labels.get("group", 0))
