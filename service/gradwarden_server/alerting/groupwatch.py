"""One group of Prometheus's rules under evaluation: what it records and alerts, in one transaction.

Alert changes, marks for the herald, samples and the memory of the group commit together, so a
crash at any moment goes on from the last evaluation: pending since the same moment, kept as long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradwarden_server.alerting import rulings
from gradwarden_server.alerting.muting import Muting
from gradwarden_server.alerting.rulings import MS_NS, Setting
from gradwarden_server.alerting.shadow import Shadow
from gradwarden_server.alerting.watch import Rooms
from gradwarden_server.model import Alert, Change, Quiet
from gradwarden_server.promql.engine import Engine, Limits
from gradwarden_server.promql.errors import ExecutionError, QueryError
from gradwarden_server.promql.memory import Memory
from gradwarden_server.promql.notation import STALE
from gradwarden_server.promql.vector import NAME, Labels, key
from gradwarden_server.querying.overlay import Overlay
from gradwarden_server.querying.ruling import GroupState, Manner, RuleAlert, RuleState, Sample
from gradwarden_server.querying.storage import ProjectStorage, Sources
from gradwarden_server.rules.groups import PromGroup
from gradwarden_server.rules.spec import Inhibition
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.database import Database, Priority, Transaction
from gradwarden_server.store.errors import Damaged, Unavailable
from gradwarden_server.store.judging.evaluation import Lease
from gradwarden_server.store.judging.rulings import Kept, Rulings
from gradwarden_server.store.log.recorded import Derived, RecordedSeries
from gradwarden_server.store.records import RunRecord
from gradwarden_server.store.runs import RunStore
from gradwarden_server.telemetry import span

log = logging.getLogger(__name__)

QUERY_SECONDS = 30.0
"""How long the expression of one rule may take."""
MOST_RESULTS = 10_000
"""Alerts or series that one rule may give, whatever its group says."""
_LIMITS = Limits(samples=20_000_000)


@dataclass(frozen=True, slots=True)
class RuleRooms:
    """Everything that groups read and write; put together once, in ``house``."""

    database: Database
    runs: RunStore
    sources: Sources
    rulings: Rulings
    ledger: AlertLedger
    recorded: RecordedSeries
    external_url: str
    inhibitions: Sequence[Inhibition]
    shadow: Callable[[str, int], Shadow]
    silences: Callable[[str, int], Sequence[Quiet]]

    @classmethod
    def beside(
        cls, rooms: Rooms, sources: Sources, rulings: Rulings, recorded: RecordedSeries
    ) -> RuleRooms:
        """Those of groups beside those of detectors: they share all that alerts go through."""
        return cls(
            database=rooms.database,
            runs=rooms.runs,
            sources=sources,
            rulings=rulings,
            ledger=rooms.ledger,
            recorded=recorded,
            external_url=rooms.external_url,
            inhibitions=rooms.rules.inhibitions,
            shadow=rooms.shadow,
            silences=rooms.silences,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one evaluation went: rules evaluated, and what went wrong by the name of its rule."""

    rules: int
    errors: Mapping[str, str]
    seconds: float
    news: bool


class GroupWatch:
    """The rules of one group of one project; valid while its lease is held."""

    def __init__(self, rooms: RuleRooms, project: str, group: PromGroup, lease: Lease) -> None:
        """Take up where the last holder stopped.

        Raises:
            Fenced: another process took the lease meanwhile.
        """
        self.lease = lease
        self._rooms = rooms
        self._project = project
        self._state = GroupState(group)
        self._kept = rooms.rulings.resume(project, group.key, lease.epoch)
        with rooms.database.read() as connection:
            self._open = rooms.ledger.ruled(project, connection, group.key)
        self._names = {rule.alert for rule in group.rules}
        self._ended = _restore(self._state.rules, self._kept)

    @property
    def evaluated_ms(self) -> int:
        """The moment of the last evaluation; 0 before the first."""
        return self._kept.evaluated_ns // MS_NS

    def evaluate(self, at_ms: int, now_ns: int, skipped: int = 0) -> Outcome:
        """Evaluate every rule in order and write what that changes.

        Args:
            at_ms: The moment of which they speak.
            now_ns: By our clock.
            skipped: How many evaluations this process left out since it keeps the group.

        Raises:
            Fenced: another process evaluates this group now; nothing was written.
            StoreError: the database refused; nothing was written.
        """
        began = time.monotonic()
        with span("evaluate rules", group=self._state.group.key):
            samples, report = self._samples(at_ms, now_ns)
            seconds = time.monotonic() - began
            errors = {r["name"]: r["error"] for r in report.values() if r["error"]}
            kept = Kept(
                self._state.group.key,
                at_ms * MS_NS,
                {r.identity: [_packed(a) for a in r.alerts.values()] for r in self._state.rules},
                {r.identity: _series(r) for r in self._state.rules if r.rule.record},
                {"seconds": seconds, "skipped": skipped, "rules": report},
            )
            news = self._commit(kept, samples, now_ns, forget=False)
        return Outcome(len(self._state.rules), errors, time.monotonic() - began, news)

    def close(self, now_ns: int) -> None:
        """The group is no more: resolve its alerts, end its series, forget it."""
        at_ns = max(now_ns, self._kept.evaluated_ns)
        self._ended += [dict(k) for rule in self._state.rules for k in rule.recorded]
        self._state.rules, self._names = [], set()
        self._commit(Kept(self._state.group.key, at_ns), [], now_ns, forget=True)

    def _samples(self, at_ms: int, now_ns: int) -> tuple[list[Sample], dict[str, Any]]:
        storage = ProjectStorage(self._rooms.sources, self._project, now_ns)
        self._runs = _Runs(self._rooms.runs, self._project, storage)
        written = Memory()
        overlay = Overlay(storage, written)
        manner = Manner(self._dress, lambda labels: rulings.over(self._runs(labels)), MOST_RESULTS)
        samples: list[Sample] = []
        report: dict[str, Any] = {}
        for rule in self._state.rules:
            began = time.monotonic()
            error = ""
            try:
                made = rule.evaluate(at_ms, _engine(overlay, began), written, manner)
                samples += made
            except Unavailable:
                raise
            except (QueryError, ExecutionError, Damaged) as wrong:
                error = str(wrong)
            except Exception as wrong:
                log.exception("rule %s of %s failed", rule.rule.name, self._state.group.key)
                error = f"{type(wrong).__name__}: {wrong}"
            seconds = time.monotonic() - began
            report[rule.identity] = {"name": rule.rule.name, "error": error, "seconds": seconds}
        return samples, report

    def _dress(self, labels: Labels) -> Labels:
        return rulings.dressed(self._project, labels, self._runs(labels))

    def _commit(self, kept: Kept, samples: Sequence[Sample], now_ns: int, forget: bool) -> bool:
        """Write it all; whether there may be news for somebody."""
        rooms, project = self._rooms, self._project
        if forget:
            storage = ProjectStorage(rooms.sources, project, now_ns)
            self._runs = _Runs(rooms.runs, project, storage)
        ended = [(labels, STALE) for labels in self._ended]
        derived = self._derived([*samples, *ended], kept.evaluated_ns)
        alerts = [a for rule in self._state.rules for a in rule.alerts.values()]
        changes, settled, reworded = self._told(alerts, kept.evaluated_ns, now_ns)
        old_ns = self._kept.evaluated_ns

        def job(connection: Transaction) -> dict[str, Alert]:
            if forget:
                rooms.rulings.forget(project, connection, self.lease.epoch, kept.name)
            else:
                rooms.rulings.save(project, connection, self.lease.epoch, old_ns, kept)
            rooms.rulings.reword(project, connection, reworded)
            touched: dict[str, Alert] = {}
            for row, held in self._by_run(changes).items():
                touched |= rooms.ledger.apply(project, connection, row, held, now_ns)
            rooms.recorded.append_all(project, connection, derived)
            return touched

        touched = rooms.database.write(job, Priority.ALERT, f"rules:{kept.name}").result()
        self._open = {k: touched.get(k, alert) for k, alert in settled.items()}
        self._kept, self._ended = kept, []
        return bool(changes)

    def _told(
        self, alerts: Sequence[RuleAlert], at_ns: int, now_ns: int
    ) -> tuple[list[Change], dict[str, Alert], list[Alert]]:
        """Changes as they are told, what is open behind them, and what has other words now."""
        rooms, project = self._rooms, self._project
        setting = Setting(
            project=project,
            group=self._state.group.key,
            names=self._names,
            shadow=rooms.shadow(project, now_ns),
            runs=self._runs,
            external_url=rooms.external_url,
        )
        reworded = rulings.reworded(self._open, alerts, setting)
        self._open |= reworded
        found = rulings.changes(self._open, alerts, setting, at_ns)
        if not found and not self._open:
            return [], {}, []
        about = {a.run for a in self._open.values()} | {c.alert.run for c in found}
        with rooms.database.read() as connection:
            others = rooms.ledger.beside(project, connection, self._state.group.key, about)
        changes: list[Change] = []
        settled: dict[str, Alert] = {}
        muting = Muting(rooms.inhibitions, rooms.silences(project, now_ns))
        for run in about:
            mine = {k: a for k, a in self._open.items() if a.run == run}
            standing = {a.fingerprint: a for a in others if a.run == run} | mine
            told, open_ = muting.apply(standing, [c for c in found if c.alert.run == run], now_ns)
            owned = mine.keys() | {c.alert.fingerprint for c in found}
            told = [change for change in told if change.alert.fingerprint in owned]
            changes += told
            settled |= {k: a for k, a in open_.items() if k in owned}
        return changes, settled, list(reworded.values())

    def _by_run(self, changes: Iterable[Change]) -> dict[int | None, list[Change]]:
        """Changes by the row of their run, in order."""
        found: dict[int | None, list[Change]] = {}
        for change in changes:
            run = None if change.alert.run is None else self._runs({"run": change.alert.run})
            found.setdefault(None if run is None else run.id, []).append(change)
        return found

    def _derived(self, samples: Iterable[Sample], at_ns: int) -> list[Derived]:
        """Samples as points of series; one that names a run goes with it."""
        found = []
        for labels, value in samples:
            run = self._runs(labels)
            own = {name: held for name, held in labels.items() if name != NAME}
            row = None if run is None else run.id
            found.append(Derived(row, labels[NAME], own, [(at_ns, value)], ruled=True))
        return found


class _Runs:
    """The runs that labels name, each looked up once."""

    def __init__(self, store: RunStore, project: str, storage: ProjectStorage) -> None:
        self._store = store
        self._project = project
        self._storage = storage
        self._known: dict[str, RunRecord | None] = {}

    def __call__(self, labels: Mapping[str, str]) -> RunRecord | None:
        name = labels.get("run", "")
        if name not in self._known:
            found = self._storage.run(name) if name else None
            if found is None and name:
                found = self._store.get(self._project, name)
            self._known[name] = found
        return self._known[name]


def _engine(overlay: Overlay, began: float) -> Engine:
    return Engine(overlay, _LIMITS, lambda: time.monotonic() - began > QUERY_SECONDS)


def _series(rule: RuleState) -> list[Labels]:
    return [dict(identity) for identity in sorted(rule.recorded)]


def _restore(rules: Iterable[RuleState], kept: Kept) -> list[Labels]:
    """Give every rule its memory back; the series of rules that are gone."""
    recorded = {identity: list(series) for identity, series in kept.recorded.items()}
    for rule in rules:
        told = [_unpacked(held) for held in kept.alerts.get(rule.identity, ())]
        rule.alerts = {key(alert.labels): alert for alert in told}
        rule.recorded = {key(dict(labels)) for labels in recorded.pop(rule.identity, ())}
    return [dict(labels) for series in recorded.values() for labels in series]


def _packed(alert: RuleAlert) -> dict[str, Any]:
    """As JSON; a number as text, for it may be NaN."""
    return {
        "labels": alert.labels,
        "annotations": alert.annotations,
        "value": repr(alert.value),
        "active_ms": alert.active_ms,
        "state": alert.state,
        "lost_ms": alert.lost_ms,
    }


def _unpacked(held: Mapping[str, Any]) -> RuleAlert:
    return replace(RuleAlert(**held), value=float(held["value"]))
