"""What watches a run: counted while it is evaluated, and recalled where nobody evaluates it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from gradwarden import wire
from gradwarden_server.alerting import translate
from gradwarden_server.alerting.judging import Judging
from gradwarden_server.detect.base import Coverage
from gradwarden_server.detect.state import unpack
from gradwarden_server.diagnosis import coverage
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.judging.evaluation import EvaluationStore
from gradwarden_server.store.runs import RunStore

ARMED, WATCHABLE = "gradwarden_detectors_armed", "gradwarden_detectors"
"""Names of two newest values of a run: detectors that watch it, and that could."""

_MOST = 256


def shares(watches: Iterable[Coverage]) -> dict[str, float]:
    """The two newest values."""
    armed, of = coverage.counted(list(watches))
    return {ARMED: float(armed), WATCHABLE: float(of)}


class Recalled:
    """Coverage of runs that ended, or that another process evaluates, from their snapshots."""

    def __init__(self, rules: RuleSet, runs: RunStore, evaluation: EvaluationStore) -> None:
        self._rules, self._runs, self._evaluation = rules, runs, evaluation
        self._held: dict[tuple[int, int], list[Coverage]] = {}
        self._lock = threading.Lock()

    def of(self, project: str, run: str) -> list[Coverage] | None:
        """What watched a run when its newest snapshot was taken; None where there is none."""
        record = self._runs.get(project, run)
        snapshot = None if record is None else self._evaluation.kept(project, record.id)
        if record is None or snapshot is None:
            return None
        key = record.id, snapshot.position
        with self._lock:
            if key in self._held:
                return self._held[key]

        def layout(digest: str) -> wire.Layout | None:
            return self._runs.layout(project, digest)

        judging = Judging(self._rules, translate.facts(record, ""), layout, "")
        try:
            judging.detectors.restore(unpack(snapshot.body)["detectors"])
        except (LookupError, TypeError, ValueError):  # of another version, or of other rules
            return None
        judging.detectors.start(record.world_size)
        found = judging.detectors.coverage()
        with self._lock:
            while len(self._held) >= _MOST:
                self._held.pop(next(iter(self._held)))
            self._held[key] = found
        return found
