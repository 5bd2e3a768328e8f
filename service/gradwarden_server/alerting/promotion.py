"""Shadow periods as they are kept: read about once a second, ended here when they are over."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from gradwarden_server.alerting.shadow import Progress, Shadow, progress
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.judging.promotions import WHOLE, Promotion, Promotions

_FRESH_NS = 1_000_000_000
_ACTOR = "gradwarden"


@dataclass(frozen=True, slots=True)
class RuleReport:
    """What becomes of the pages of one rule."""

    alert: str
    pages: bool
    would_have_paged: int
    promoted: Promotion | None


@dataclass(frozen=True, slots=True)
class Report:
    """A project's shadow period for people; ``ended`` None while it lasts, or where it is off."""

    period: bool
    progress: Progress
    ended: Promotion | None
    rules: list[RuleReport]


class Shadows:
    """Whose pages are tickets, by project."""

    def __init__(self, store: Promotions, rules: RuleSet, wanted_days: float) -> None:
        """``wanted_days`` 0 means that no project has a shadow period."""
        self._store = store
        self.adopt(rules)
        self._wanted_days = wanted_days
        self._known: dict[str, tuple[int, Shadow]] = {}
        self._lock = threading.Lock()

    def adopt(self, rules: RuleSet) -> None:
        """Speak of these rules from now on."""
        ruled = {r.alert for group in rules.groups for r in group.rules if r.alert}
        self._alerts = [*(rule.alert for rule in rules.detectors), *sorted(ruled)]
        self._on_probation = frozenset(rule.alert for rule in rules.detectors if rule.shadow)

    def of(self, project: str, now_ns: int) -> Shadow:
        """What holds for a project; at most a second old."""
        with self._lock:
            known = self._known.get(project)
        if known is not None and now_ns - known[0] < _FRESH_NS:
            return known[1]
        promoted = self._store.of(project)
        shadow = self._shadow(promoted, self._period(project, promoted, now_ns))
        with self._lock:
            self._known[project] = now_ns, shadow
        return shadow

    def promote(
        self, project: str, alert: str | None, now_ns: int, actor: str
    ) -> Future[Promotion]:
        """Let pages of a rule, or of all of them, wake people.

        Raises:
            LookupError: there is no such rule.
        """
        if alert is not None and alert not in self._alerts:
            raise LookupError(alert)
        future = self._store.promote(project, alert or WHOLE, now_ns, actor)
        future.add_done_callback(lambda _: self._forget(project))
        return future

    def report(self, project: str, now_ns: int) -> Report:
        """All of it."""
        promoted = self._store.of(project)
        youth = self._store.youth(project)
        far = progress(youth.created_ns, youth.finished_runs, now_ns, self._wanted_days)
        period = WHOLE not in promoted and not far.over
        shadow = self._shadow(promoted, period)
        counts = self._store.would_have_paged(project)
        return Report(period, far, promoted.get(WHOLE), self._rules(shadow, promoted, counts))

    def _rules(
        self, shadow: Shadow, promoted: Mapping[str, Promotion], counts: Mapping[str, int]
    ) -> list[RuleReport]:
        named = [*self._alerts, *sorted(set(counts) - set(self._alerts))]
        return [
            RuleReport(name, not shadow.holds(name), counts.get(name, 0), promoted.get(name))
            for name in named
        ]

    def _period(self, project: str, promoted: Iterable[str], now_ns: int) -> bool:
        """Whether it lasts. Once over it stays over, whatever runs are deleted later."""
        if WHOLE in promoted or self._wanted_days <= 0:
            return False
        youth = self._store.youth(project)
        far = progress(youth.created_ns, youth.finished_runs, now_ns, self._wanted_days)
        if far.over:
            self._store.promote(project, WHOLE, now_ns, _ACTOR).result()
        return not far.over

    def _shadow(self, promoted: Mapping[str, Promotion], period: bool) -> Shadow:
        names = frozenset(name for name in promoted if name != WHOLE)
        return Shadow(period, self._on_probation, names)

    def _forget(self, project: str) -> None:
        with self._lock:
            self._known.pop(project, None)
