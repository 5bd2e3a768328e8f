"""One run under evaluation: from log entries past the cursor to alerts, in one transaction.

Alert changes, their messages, derived series and the cursor commit together, so a crash at
any moment replays from the log and loses nothing. Steps that were judged before a restart
are advanced over again in silence, since the detectors must remember them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradwarden import wire
from gradwarden_server.alerting import lifecycle
from gradwarden_server.detect.assembler import Assembler
from gradwarden_server.detect.base import Liveness, RankLiveness, Request
from gradwarden_server.detect.engine import DerivedPoint, RunDetectors, Verdict
from gradwarden_server.detect.state import pack, unpack
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Alert, Change, Condition, RunFacts, run_path
from gradwarden_server.notify.pipeline import Pipeline
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.commands import CommandStore
from gradwarden_server.store.database import Database, Priority, Transaction
from gradwarden_server.store.entries import LogEntry, LogReader
from gradwarden_server.store.evaluation import Cursor, EvaluationStore, Lease, Snapshot
from gradwarden_server.store.ledger import AlertLedger
from gradwarden_server.store.recorded import RecordedSeries
from gradwarden_server.store.records import AttemptRecord, RunRecord, StreamRecord
from gradwarden_server.store.runs import RunStore

log = logging.getLogger(__name__)

BACKFILL_NS = 600 * 1_000_000_000
"""Findings on data older than this are history and a note, never a page."""
_SNAPSHOT_STEPS = 256
_SNAPSHOT_NS = 30 * 1_000_000_000
_ENTRIES = 64  # held in memory at once; a batch of a large model is some megabytes
_ACTOR = "gradwarden"
_ENDINGS = {"finished": lifecycle.RUN_FINISHED, "cancelled": lifecycle.RUN_CANCELLED}

Outcome = tuple[int, Sequence[Condition]]


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything an evaluation reads and writes; put together once, in ``app``."""

    database: Database
    runs: RunStore
    log: LogReader
    evaluation: EvaluationStore
    commands: CommandStore
    ledger: AlertLedger
    recorded: RecordedSeries
    rules: RuleSet
    pipeline: Pipeline
    external_url: str
    service_started_ns: int


class RunWatch:
    """The detectors of one run and how far they got; valid while its lease is held."""

    def __init__(self, rooms: Rooms, project: str, run: RunRecord, lease: Lease) -> None:
        """Take up where the last holder stopped.

        Raises:
            Fenced: another process took the lease meanwhile.
        """
        self.lease = lease
        self._rooms = rooms
        self._project = project
        self._run = run
        self._facts = self._facts_of(run)
        self._cursor, snapshot = rooms.evaluation.resume(project, run.id, lease.epoch)
        self._open: dict[str, Alert] = {}
        with rooms.database.read() as connection:
            self._open = rooms.ledger.open_alerts(project, connection, run.id)
        self._assembler, self._detectors = self._fresh()
        start = 0
        if snapshot is not None:
            try:
                state = unpack(snapshot.body)
                self._assembler.restore(state["assembler"])
                self._detectors.restore(state["detectors"])
                start = snapshot.position
            except (LookupError, TypeError, ValueError) as error:
                # Of another version, or damaged; BadState is a ValueError.
                log.warning("run %s: snapshot refused (%s); replaying its log", run.run, error)
                self._assembler, self._detectors = self._fresh()
        self._snapshot_ns = 0
        self._steps_since = 0
        self._late_outcomes: list[Outcome] = []
        self._points: list[DerivedPoint] = []
        self._requests: list[tuple[int, Request]] = []
        self._behind_ns: int | None = None
        self._judged = dict(self._cursor.judged)
        self._labels = {rule.alert: rule.labels for rule in rooms.rules.detectors}
        self._replay(start)
        self._recall()

    @property
    def detectors(self) -> RunDetectors:
        """The run's detectors, for their coverage."""
        return self._detectors

    @property
    def position(self) -> int:
        """How far the log was judged."""
        return self._cursor.position

    def lag_seconds(self, now_ns: int) -> float:
        """Age of the oldest batch that was read too late to be judged in the last round."""
        return 0.0 if self._behind_ns is None else max(0, now_ns - self._behind_ns) / 1e9

    @property
    def deadline_ns(self) -> int | None:
        """When a step has waited long enough for its missing ranks."""
        return self._assembler.deadline_ns

    def evaluate(self, run: RunRecord, now_ns: int, tick: bool) -> bool:
        """Judge what arrived and, on a tick, what only time can tell; whether more waits.

        Raises:
            Fenced: another process holds the lease now; this object must be dropped.
        """
        self._run = run
        self._facts = self._facts_of(run)
        attempts = self._rooms.runs.attempts(self._project, run.run)
        self._assembler.start(attempts[-1].ordinal if attempts else 0, run.world_size)
        self._detectors.start(run.world_size)
        entries: list[LogEntry] = []
        if run.position > self.position:
            entries = self._rooms.log.after(self._project, run.run, self.position, _ENTRIES)
        outcomes, self._late_outcomes = self._late_outcomes, []
        judged = dict(self._judged)
        for entry in entries:
            self._take(entry)
            outcomes += self._judge(self._assembler.release(entry.received_ns), judged, now_ns)
        more = len(entries) == _ENTRIES
        if not more:
            outcomes += self._judge(self._assembler.release(now_ns), judged, now_ns)
        for verdict in self._detectors.peek(self._assembler.urgent()):
            outcomes.append(self._outcome(verdict, now_ns))
        if tick and attempts and not more:
            outcomes.append((now_ns, self._dress(self._tick(attempts[-1], now_ns))))
        position = entries[-1].position if entries else self._cursor.position
        self._commit(Cursor(position, judged), outcomes, now_ns, drained=not more)
        self._behind_ns = entries[-1].received_ns if more else None
        return more

    def _fresh(self) -> tuple[Assembler, RunDetectors]:
        detectors = RunDetectors(
            self._layout,
            self._rooms.rules.detectors,
            self._rooms.rules.baseline,
            environment=self._run.environment,
            world_size=self._run.world_size,
        )
        return Assembler(self._run.world_size, layouts=self._layout), detectors

    def _layout(self, digest: str) -> wire.Layout | None:
        return self._rooms.runs.layout(self._project, digest)

    def _replay(self, start: int) -> None:
        """Advance over what was judged before, keeping only what was not said yet."""
        while start < self._cursor.position:
            entries = self._rooms.log.after(self._project, self._run.run, start, _ENTRIES)
            entries = [e for e in entries if e.position <= self._cursor.position]
            if not entries:
                return
            for entry in entries:
                self._take(entry)
                steps = self._assembler.release(entry.received_ns)
                self._late_outcomes += self._judge(steps, self._judged, entry.received_ns)
            start = entries[-1].position

    def _recall(self) -> None:
        """Alerts may stand for steps that were seen early and never joined before the crash."""
        for alert in self._open.values():
            step = int(alert.annotations.get("step") or -1)
            attempt = int(alert.annotations.get("attempt") or -1)
            if step > self._cursor.judged.get(attempt, -1):
                self._detectors.recall(alert.alertname, attempt, step)

    def _take(self, entry: LogEntry) -> None:
        try:
            batch = entry.batch()
        except wire.WireError as error:
            log.error("run %s: log position %d: %s", self._run.run, entry.position, error)
            return
        cell = entry.shard, entry.shards
        self._assembler.add(batch, entry.ordinal, entry.received_ns, entry.shift_ns, cell)

    def _judge(self, steps: Sequence[Step], judged: dict[int, int], now_ns: int) -> list[Outcome]:
        outcomes = []
        self._steps_since += len(steps)
        for verdict in self._detectors.advance(steps):
            last = judged.get(verdict.attempt, -1)
            # A carrier of events may share its number with a step, so it moves nothing.
            if verdict.step < last or (verdict.step == last and not verdict.eventful):
                continue  # said before a restart
            if not verdict.eventful:
                judged[verdict.attempt] = verdict.step
            self._points += verdict.points
            self._requests += [(verdict.time_ns, request) for request in verdict.requests]
            outcomes.append(self._outcome(verdict, now_ns))
        return outcomes

    def _outcome(self, verdict: Verdict, now_ns: int) -> Outcome:
        conditions: Sequence[Condition] = verdict.conditions
        if verdict.time_ns < now_ns - BACKFILL_NS:
            conditions = [_as_history(c) for c in conditions]
        return min(verdict.time_ns, now_ns), self._dress(conditions)

    def _dress(self, conditions: Sequence[Condition]) -> list[Condition]:
        """Add the links that every alert carries."""
        dressed = []
        for condition in conditions:
            slug = self._runbook(condition.alertname)
            links = {"dashboard_url": self._facts.dashboard_url}
            if slug:
                links["runbook_url"] = f"{self._rooms.external_url}/runbooks/{slug}"
            words = {**links, **condition.annotations} if condition.active else {}
            dressed.append(replace(condition, annotations=words))
        return dressed

    def _runbook(self, alertname: str) -> str | None:
        return next((r.runbook for r in self._rooms.rules.detectors if r.alert == alertname), None)

    def _commit(
        self, cursor: Cursor, outcomes: Sequence[Outcome], now_ns: int, drained: bool
    ) -> None:
        changes, settled = self._changes(outcomes, now_ns, drained)
        snapshot = self._snapshot(cursor, now_ns)
        if cursor == self._cursor and not changes and snapshot is None:
            return
        notifications = self._rooms.pipeline.run(self._open, changes)
        points = _by_series(self._points)
        requests: list[Request] = []
        if self._run.status == "running":  # and nothing is asked about the past
            requests = [r for at_ns, r in self._requests if at_ns >= now_ns - BACKFILL_NS]

        def job(connection: Transaction) -> dict[str, Alert]:
            rooms, project, row = self._rooms, self._project, self._run.id
            rooms.evaluation.move(project, connection, row, self.lease.epoch, self._cursor, cursor)
            touched = rooms.ledger.apply(project, connection, row, changes, notifications, now_ns)
            for (name, labels), values in points.items():
                rooms.recorded.append(project, connection, row, name, dict(labels), values)
            self._ask(connection, requests, now_ns)
            if snapshot is not None:
                rooms.evaluation.snapshot(project, connection, row, snapshot)
            return touched

        touched = self._rooms.database.write(job, Priority.ALERT).result()
        if requests:
            self._rooms.commands.forget(self._project)
        self._open = {key: touched.get(key, alert) for key, alert in settled.items()}
        self._cursor, self._judged = cursor, dict(cursor.judged)
        self._points, self._requests = [], []
        if snapshot is not None:
            self._snapshot_ns, self._steps_since = now_ns, 0

    def _ask(self, connection: Transaction, requests: Iterable[Request], now_ns: int) -> None:
        where = (self._project, connection, self._run.id, self._run.run)
        for request in requests:
            what = (request.rank, request.kind, request.args)
            self._rooms.commands.add(*where, *what, now_ns=now_ns, actor=_ACTOR)

    def _changes(
        self, outcomes: Sequence[Outcome], now_ns: int, drained: bool
    ) -> tuple[list[Change], dict[str, Alert]]:
        settled = dict(self._open)
        changes: list[Change] = []
        moment = 0
        for at_ns, conditions in outcomes:
            moment = max(moment, at_ns)
            new = lifecycle.advance(settled, self._facts, conditions, moment, labels=self._labels)
            settled = lifecycle.settle(settled, new)
            changes += new
        ending = _ENDINGS.get(self._run.status)
        if ending is not None and drained and self._assembler.deadline_ns is None:
            new = lifecycle.resolve_all(settled, ending, max(moment, now_ns))
            settled = lifecycle.settle(settled, new)
            changes += new
        return changes, settled

    def _snapshot(self, cursor: Cursor, now_ns: int) -> Snapshot | None:
        due = self._steps_since >= _SNAPSHOT_STEPS or (
            self._steps_since and now_ns - self._snapshot_ns > _SNAPSHOT_NS
        )
        if not due:
            return None
        state = {
            "assembler": self._assembler.state(),
            "detectors": self._detectors.state(),
        }
        return Snapshot(cursor.position, pack(state))

    def _facts_of(self, run: RunRecord) -> RunFacts:
        return RunFacts(
            row=run.id,
            project=run.project,
            run=run.run,
            name=run.name,
            status=run.status,
            environment="prod" if run.page else run.environment,
            world_size=run.world_size,
            labels=run.labels,
            dashboard_url=self._rooms.external_url + run_path(run.project, run.run),
            started_ns=run.started_ns,
            last_seen_ns=run.last_seen_ns,
            last_step=run.last_step,
            ended_ns=run.ended_ns,
        )

    def _tick(self, newest: AttemptRecord, now_ns: int) -> Sequence[Condition]:
        streams = self._rooms.runs.streams(self._project, self._run.run)
        ranks = [s for s in streams if s.ordinal == newest.ordinal]
        liveness = Liveness(
            attempt=newest.ordinal,
            attempt_started_ns=newest.started_ns,
            service_started_ns=self._rooms.service_started_ns,
            ranks=tuple(map(_alive, ranks)),
        )
        conditions = self._detectors.tick(now_ns, self._facts, liveness)
        if all(s.heartbeat_ns is None for s in ranks):
            # Known from a spool alone: however it ended, it ended before we heard of it.
            return [_as_history(c) for c in conditions]
        return conditions


def _alive(stream: StreamRecord) -> RankLiveness:
    return RankLiveness(
        rank=stream.rank,
        last_seen_ns=stream.last_seen_ns,
        last_step=stream.last_step,
        last_step_ns=stream.last_step_ns,
        phase=stream.phase,
        # A spool sent later is no sign of life: such a stream is not waited for.
        ended=stream.ended or stream.heartbeat_ns is None,
        host=stream.host,
    )


def _as_history(condition: Condition) -> Condition:
    """A finding on old data: it stands in the history and wakes nobody."""
    if not condition.active or condition.severity == "note":
        return condition
    words = {**condition.annotations, "backfill": f"found late; was a {condition.severity}"}
    return replace(condition, severity="note", annotations=words)


def _by_series(
    points: Iterable[DerivedPoint],
) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], list[tuple[int, float]]]:
    series: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[int, float]]] = {}
    for point in points:
        key = (point.name, tuple(sorted(point.labels.items())))
        series.setdefault(key, []).append((point.time_ns, point.value))
    return series
