"""One run in one line: its health and why, its loss, its recent gradient norms."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradwarden_server.alerting.coverage import ARMED, WATCHABLE
from gradwarden_server.alerting.lifecycle import AT_THE_END
from gradwarden_server.api.plain import kept_number, rfc3339
from gradwarden_server.diagnosis.coverage import HEALTHY, PARTLY, partly
from gradwarden_server.store.alerts.ledger import OPEN
from gradwarden_server.store.fleet import Ailment, Fleet, ListedRun

Health = Literal["ok", "warn", "crit", "silent"]
Spark = tuple[float | None, ...]

SILENT_NS = 60 * 1_000_000_000
MOST_WITH_SPARKS = 200
"""Longer pages come without: a line of 240 steps for each of a thousand runs is read for nobody."""
_SPARK_POINTS = 48
_SPARK_STEPS = 240
_RECOUNT_SECONDS = 2.0
_SETTLED_NS = 60 * 1_000_000_000
_MOST_KEPT = 2000
_WORDS = {"warn": "at risk", "crit": "critical", "silent": "silent"}
_RANK = {"page": 0, "ticket": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class _Recent:
    """The recent past of a run as of a moment; ``settled`` when nothing more is to come."""

    position: int
    settled: bool
    read_at: float
    spark: Spark


class Summaries:
    """Lines for the list of runs, from derived series alone: a list never reads layers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._recent: dict[tuple[str, str], _Recent] = {}
        self._lock = threading.Lock()

    def lines(self, project: str, runs: Sequence[ListedRun], now_ns: int) -> list[dict[str, Any]]:
        """The lines of some runs of a project, in a handful of statements.

        Each is the content of a :class:`~gradwarden_server.api.schemas.RunFace`; a thousand
        models would take longer than the reading of them.
        """
        known = self._fleet.ailments(project, runs, AT_THE_END)
        ailing = {row: ails for row, alerts in known.items() if (ails := _ailing(alerts))}
        mute = [run.id for run in runs if run.status == "failed" and run.id not in ailing]
        # What a failed run said of its end, before its alert is due.
        words = self._fleet.last_words(project, mute) if mute else {}
        values = self._fleet.newest_values(project, runs)
        sparks = self._sparks(project, runs, now_ns) if len(runs) <= MOST_WITH_SPARKS else {}
        lines = []
        for run in runs:
            states = [a.state for a in known.get(run.id, ())]
            ails = ailing.get(run.id, [])
            health, reason = judge(run, ails, now_ns)
            if run.id in words:
                reason = f"failed: {words[run.id]}"
            layers = [layer for a in ails if (layer := a.annotations.get("layer"))]
            lines.append(
                {
                    "run": run.run,
                    "name": run.name,
                    "project": run.project,
                    "owner": run.owner,
                    "training_job": run.training_job,
                    "environment": run.environment,
                    "status": run.status,
                    "health": health,
                    "reason": reason,
                    "verdict": verdict(health, values.get(run.id, {})),
                    "attempt": run.attempt or 1,
                    "step": run.last_step,
                    "loss": kept_number(values.get(run.id, {}).get("loss")),
                    "spark": list(sparks.get(run.id, ())),
                    "worst_layer": layers[0] if layers else None,
                    "alerts": {state: states.count(state) for state in OPEN},
                    "world_size": run.world_size,
                    "started_at": rfc3339(run.started_ns),
                    "last_seen_at": rfc3339(run.last_seen_ns),
                    "ended_at": rfc3339(run.ended_ns),
                }
            )
        return lines

    def _sparks(self, project: str, runs: Sequence[ListedRun], now_ns: int) -> dict[int, Spark]:
        """By run row: recent norms, those of runs that moved read anew."""
        now = time.monotonic()
        held = {run.id: self._recent.get((project, run.run)) for run in runs}
        stale = [run for run in runs if not _holds(held[run.id], run, now)]
        if stale:
            norms = self._fleet.recent_norms(project, [run.id for run in stale], _SPARK_STEPS)
            with self._lock:
                while self._recent and len(self._recent) + len(stale) > _MOST_KEPT:
                    self._recent.pop(next(iter(self._recent)))
                for run in stale:
                    settled = now_ns - run.last_seen_ns > _SETTLED_NS
                    line = spark(norms.get(run.id, ()))
                    recent = _Recent(run.position, settled, now, line)
                    held[run.id] = self._recent[project, run.run] = recent
        return {row: recent.spark for row, recent in held.items() if recent is not None}


def judge(run: ListedRun, ailing: Sequence[Ailment], now_ns: int) -> tuple[Health, str]:
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


def verdict(health: Health, values: Mapping[str, Any]) -> str:
    """Health in words; a run that is well says so only as far as somebody looked."""
    if health != "ok":
        return _WORDS[health]
    armed, of = values.get(ARMED), values.get(WATCHABLE)
    known = isinstance(armed, (int, float)) and isinstance(of, (int, float))
    return PARTLY if known and partly(int(armed), int(of)) else HEALTHY  # type: ignore[arg-type]


def spark(norms: Sequence[float]) -> Spark:
    """At most 48 points, each the largest of its steps; None where any is not finite."""
    width = max(1, math.ceil(len(norms) / _SPARK_POINTS))
    groups = (norms[at : at + width] for at in range(0, len(norms), width))
    return tuple(max(g) if all(map(math.isfinite, g)) else None for g in groups)


def _ailing(alerts: Sequence[Ailment]) -> list[Ailment]:
    """What a run suffers from, the worst first; one that ended ill is not healthy, though its
    end closed its alerts."""
    firing = _worst_first(a for a in alerts if a.state == "firing")
    return firing or _worst_first(a for a in alerts if a.reason in AT_THE_END)


def _worst_first(alerts: Iterable[Ailment]) -> list[Ailment]:
    return sorted(alerts, key=lambda a: (_RANK.get(a.severity, 3), a.active_ns))


def _holds(recent: _Recent | None, run: ListedRun, now: float) -> bool:
    if recent is None:
        return False
    if recent.settled and recent.position == run.position:
        return True
    return bool(recent.spark) and now - recent.read_at < _RECOUNT_SECONDS
