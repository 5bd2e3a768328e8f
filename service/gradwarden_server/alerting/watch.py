"""One run under evaluation: from log entries past the cursor to alerts, in one transaction.

Alert changes, the marks on their groups and the cursor commit together, so a crash at any moment
replays from the log and loses nothing. Steps that were judged before a restart are advanced over
again in silence, since the detectors must remember them. Derived points are kept back for some
seconds, and no longer than the next snapshot: those that a crash takes are derived again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from gradwarden import wire
from gradwarden_server.alerting import translate
from gradwarden_server.alerting.commit import Alerts, Judgement, Registrar
from gradwarden_server.alerting.coverage import shares
from gradwarden_server.alerting.judging import BACKFILL_NS, Judging, Outcome
from gradwarden_server.alerting.rhythm import last_due_ms
from gradwarden_server.alerting.shadow import OPEN, Shadow
from gradwarden_server.detect.base import Liveness, Request
from gradwarden_server.detect.engine import DerivedPoint, RunDetectors
from gradwarden_server.detect.state import pack, unpack
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Alert, Change, Quiet
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.slo.tally import NAMES, NOTHING, SECONDS, Tally
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import Damaged
from gradwarden_server.store.judging.evaluation import Cursor, EvaluationStore, Lease, Snapshot
from gradwarden_server.store.judging.watched import BATCHES, Watched, WatchedRuns
from gradwarden_server.store.log.entries import LogEntry, LogReader
from gradwarden_server.store.log.recorded import Derived, RecordedSeries
from gradwarden_server.store.records import RunRecord
from gradwarden_server.store.runs import RunStore

log = logging.getLogger(__name__)

_SNAPSHOT_STEPS = 256
_MS_NS = 1_000_000
_SNAPSHOT_MS = 30_000
_POINTS_MS = 10_000
_COUNT_NS = 5 * 1_000_000_000
_POINTS = 512  # of all series of a run together
_LATEST = 64
_NORM = "gradwarden_gradient_norm"


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything an evaluation reads and writes; put together once, in ``app``."""

    database: Database
    runs: RunStore
    log: LogReader
    evaluation: EvaluationStore
    watched: WatchedRuns
    registrar: Registrar
    ledger: AlertLedger
    recorded: RecordedSeries
    rules: RuleSet
    external_url: str
    service_started_ns: int
    # Whose pages are tickets now, of a project.
    shadow: Callable[[str, int], Shadow] = lambda project, now_ns: OPEN
    # What its people do not want to hear now.
    silences: Callable[[str, int], Sequence[Quiet]] = lambda project, now_ns: ()


@dataclass(frozen=True, slots=True)
class _Pending:
    """What is so as soon as the judgement under way is durable."""

    cursor: Cursor
    settled: Alerts
    flushed: bool
    snapshot: bool
    news: bool
    now_ns: int


class RunWatch:
    """The detectors of one run and how far they got; valid while its lease is held."""

    def __init__(
        self, rooms: Rooms, project: str, run: RunRecord, lease: Lease, now_ns: int
    ) -> None:
        """Take up where the last holder stopped.

        Raises:
            Fenced: another process took the lease meanwhile.
        """
        self.lease = lease
        self._rooms = rooms
        self._project = project
        self._run = run
        url = rooms.external_url
        self._judging = Judging(rooms.rules, translate.facts(run, url), self._layout, url)
        self._cursor, snapshot = rooms.evaluation.resume(project, run.id, lease.epoch)
        self._open: dict[str, Alert] = {}
        with rooms.database.read() as connection:
            self._open = rooms.ledger.open_alerts(project, connection, run.id)
        stood = rooms.recorded.newest(project, run.id, NAMES, 1)
        told = [(one.name, one.labels, one.points[-1][1]) for one in stood]
        self._tally = Tally(told, now_ns)
        self._tally.recall(NOTHING, {})
        start = 0
        if snapshot is not None:
            try:
                state = unpack(snapshot.body)
                self._judging.assembler.restore(state["assembler"])
                self._judging.detectors.restore(state["detectors"])
                self._tally.recall(state.get("tally"), self._cursor.recorded)
                start = snapshot.position
            except (LookupError, TypeError, ValueError) as error:
                # Of another version, or damaged; BadState is a ValueError.
                log.warning("run %s: snapshot refused (%s); replaying its log", run.run, error)
                self._judging.forget()
                self._tally.recall(NOTHING, {})
        # What was kept already is kept again in its turn: all runs begin at once after a restart.
        self._snapshot_ns = 0 if snapshot is None else now_ns
        self._steps_since = 0
        self._late_outcomes: list[Outcome] = []
        self._points: list[DerivedPoint] = []
        self._requests: list[tuple[int, Request]] = []
        self._points_ns = 0
        self._oldest_ns: int | None = None
        self._pending: _Pending | None = None
        self._counted_ns = 0
        self.latest: dict[str, float | str] = {}
        """Newest values by name; non-finite ones as text."""
        self._judged = dict(self._cursor.judged)
        self._replay(start)
        self._tally.caught_up()
        self._recall()

    @property
    def detectors(self) -> RunDetectors:
        """The run's detectors, for their coverage."""
        return self._judging.detectors

    @property
    def position(self) -> int:
        """How far the log was judged."""
        return self._cursor.position

    @property
    def speaks(self) -> bool:
        """Whether what is being written may be news to somebody."""
        return self._pending is not None and self._pending.news

    def lag_seconds(self, now_ns: int) -> float:
        """Age of the oldest batch that the last evaluation judged."""
        return 0.0 if self._oldest_ns is None else max(0, now_ns - self._oldest_ns) / 1e9

    @property
    def deadline_ns(self) -> int | None:
        """When a step has waited long enough for its missing ranks."""
        return self._judging.assembler.deadline_ns

    def evaluate(
        self,
        watched: Watched,
        entries: Sequence[LogEntry],
        now_ns: int,
        tick: bool,
        elsewhere: Sequence[Alert] = (),
    ) -> Future[Alerts] | None:
        """Judge what arrived and, on a tick, what only time can tell.

        Args:
            watched: The run as it is now, on a tick with the signs of life of its ranks.
            entries: The next batches past :attr:`position`; as many as ``BATCHES`` say that
                more may wait.
            now_ns: By our clock.
            tick: Whether to ask what time tells.
            elsewhere: Alerts of the project that explain some of this run's.

        Returns:
            What is being written, to be waited for and told to :meth:`settle`; None where
            nothing changed.
        """
        run = self._run = watched.run
        self._judging.facts = translate.facts(run, self._rooms.external_url)
        self._judging.shadow = self._rooms.shadow(self._project, now_ns)
        self._judging.silences = self._rooms.silences(self._project, now_ns)
        self._judging.elsewhere = elsewhere
        self._judging.start(watched.ordinal or 0, run.world_size)
        outcomes, self._late_outcomes = self._late_outcomes, []
        judged = dict(self._judged)
        for entry in entries:
            self._take(entry)
            outcomes += self._judge(
                self._judging.assembler.release(entry.received_ns), judged, now_ns
            )
        more = len(entries) == BATCHES
        if not more:
            outcomes += self._judge(self._judging.assembler.release(now_ns), judged, now_ns)
        for verdict in self._judging.detectors.peek(self._judging.assembler.urgent()):
            self._tally.saw(verdict.attempt, verdict.step, verdict.time_ns)
            outcomes.append(self._judging.outcome(verdict, now_ns))
        if tick and watched.ordinal is not None and not more:
            outcomes.append(self._tick(watched, now_ns))
            if run.status == "running" and any(sign.heartbeat_ns for sign in watched.signs):
                self._tally.minute(now_ns, run.last_seen_ns)
        position = entries[-1].position if entries else self._cursor.position
        self._oldest_ns = entries[0].received_ns if entries else None
        return self._commit(position, judged, outcomes, now_ns, drained=not more)

    def settle(self, touched: Alerts) -> None:
        """What :meth:`evaluate` began to write is durable."""
        pending, self._pending = self._pending, None
        assert pending is not None
        self._open = {key: touched.get(key, alert) for key, alert in pending.settled.items()}
        self._cursor, self._judged = pending.cursor, dict(pending.cursor.judged)
        self._requests = []
        if pending.flushed:
            self._points, self._points_ns = [], pending.now_ns
        if pending.snapshot:
            self._snapshot_ns, self._steps_since = pending.now_ns, 0
        if pending.now_ns - self._counted_ns >= _COUNT_NS or self._run.status != "running":
            self._counted_ns = pending.now_ns
            self.latest |= shares(self.detectors.coverage())

    def _layout(self, digest: str) -> wire.Layout | None:
        return self._rooms.runs.layout(self._project, digest)

    def _replay(self, start: int) -> None:
        """Advance over what was judged before, keeping only what was not said yet."""
        while start < self._cursor.position:
            entries = self._rooms.log.after(self._project, self._run.run, start, BATCHES)
            entries = [e for e in entries if e.position <= self._cursor.position]
            if not entries:
                return
            for entry in entries:
                self._take(entry)
                steps = self._judging.assembler.release(entry.received_ns)
                self._late_outcomes += self._judge(steps, self._judged, entry.received_ns)
            start = entries[-1].position

    def _recall(self) -> None:
        """Alerts may stand for steps that were seen early and never joined before the crash."""
        for alert in self._open.values():
            step = int(alert.annotations.get("step") or -1)
            attempt = int(alert.annotations.get("attempt") or -1)
            if step > self._cursor.judged.get(attempt, -1):
                self._judging.detectors.recall(alert.alertname, attempt, step)

    def _take(self, entry: LogEntry) -> None:
        try:
            batch = entry.batch()
        except Damaged as error:
            log.error("run %s is judged without this: %s", self._run.run, error)
            return
        cell = entry.shard, entry.shards
        self._judging.assembler.add(batch, entry.ordinal, entry.received_ns, entry.shift_ns, cell)

    def _judge(self, steps: Sequence[Step], judged: dict[int, int], now_ns: int) -> list[Outcome]:
        outcomes = []
        self._steps_since += len(steps)
        recorded = self._cursor.recorded
        spent = {(step.attempt, step.step): _spent(step) for step in steps if not step.eventful}
        for verdict in self._judging.detectors.advance(steps):
            norms = [p.value for p in verdict.points if p.name == _NORM]
            if norms:  # those of the first replica group come first
                self.latest["grad_norm"] = translate.told(norms[0])
            self._tally.saw(verdict.attempt, verdict.step, verdict.time_ns)
            if verdict.step > recorded.get(verdict.attempt, -1):
                self._points += verdict.points
            if not verdict.eventful and verdict.time_ns >= now_ns - BACKFILL_NS:
                which = verdict.attempt, verdict.step
                self._tally.step(*which, verdict.sound, spent[which])
            last = judged.get(verdict.attempt, -1)
            # A carrier of events may share its number with a step, so it moves nothing.
            if verdict.step < last or (verdict.step == last and not verdict.eventful):
                continue  # said before a restart
            if not verdict.eventful:
                judged[verdict.attempt] = verdict.step
            self._requests += [(verdict.time_ns, request) for request in verdict.requests]
            outcomes.append(self._judging.outcome(verdict, now_ns))
        newest = next((step for step in reversed(steps) if not step.eventful), None)
        if newest is not None:
            self._note(newest)
        return outcomes

    def _note(self, step: Step) -> None:
        """Keep what a list of runs shows of the newest step."""
        names = {name for said in step.ranks.values() for name in said.scalars}
        for name in sorted(names)[:_LATEST]:
            value = step.scalar(name)
            if value is not None and not (name == "grad_norm" and step.groups):
                self.latest[name] = translate.told(value)

    def _commit(
        self,
        position: int,
        judged: dict[int, int],
        outcomes: Sequence[Outcome],
        now_ns: int,
        drained: bool,
    ) -> Future[Alerts] | None:
        changes, settled = self._judging.changes(self._open, outcomes, now_ns, drained)
        self._time(changes, now_ns)
        snapshot = self._snapshot(position, now_ns)
        # A snapshot is where a restart begins, so no point from before it may be owed.
        flushed = snapshot is not None or self._flushes(now_ns)
        cursor = Cursor(position, judged, judged if flushed else self._cursor.recorded)
        derived = self._derived(now_ns) if flushed else ()
        if cursor == self._cursor and not changes and snapshot is None and not derived:
            return None
        requests: list[Request] = []
        if self._run.status == "running":  # and nothing is asked about the past
            requests = [r for at_ns, r in self._requests if at_ns >= now_ns - BACKFILL_NS]
        kept = snapshot is not None
        self._pending = _Pending(cursor, settled, flushed, kept, bool(changes), now_ns)
        return self._rooms.registrar.submit(
            Judgement(
                project=self._project,
                row=self._run.id,
                run=self._run.run,
                epoch=self.lease.epoch,
                old=self._cursor,
                new=cursor,
                changes=changes,
                derived=derived,
                requests=requests,
                snapshot=snapshot,
                now_ns=now_ns,
            )
        )

    def _flushes(self, now_ns: int) -> bool:
        """Whether derived points are to be stored now."""
        if self._tally.due(now_ns) or (self._run.status != "running" and self._tally.owed):
            return True
        if not self._points:
            return False
        late = self._in_turn(_POINTS_MS, self._points_ns, now_ns) or len(self._points) >= _POINTS
        return late or self._run.status != "running"

    def _in_turn(self, interval_ms: int, done_ns: int, now_ns: int) -> bool:
        """Whether what is done once in an interval is due: not of all runs at one moment."""
        name = f"{self._project}/{self._run.run}"
        return last_due_ms(name, interval_ms, now_ns // _MS_NS) * _MS_NS > done_ns

    def _derived(self, now_ns: int) -> list[Derived]:
        """What is stored beside the log: points of steps, and now and then the counters."""
        points = list(self._points)
        if self._tally.due(now_ns) or self._run.status != "running":
            points += [DerivedPoint(*count[:2], *count[2:]) for count in self._tally.counts(now_ns)]
        return translate.by_series(self._run.id, points)

    def _time(self, changes: Sequence[Change], now_ns: int) -> None:
        """Count how long after its first bad step each alert fired that reaches people."""
        for change in changes:
            words = change.alert.annotations
            new = change.to_state == "firing" and change.from_state != "firing"
            if new and change.alert.severity != "note" and "backfill" not in words:
                step, attempt = words.get("step", ""), words.get("attempt", "")
                if step.isdigit():
                    ordinal = (
                        int(attempt) if attempt.isdigit() else self._judging.detectors.judged[0]
                    )
                    self._tally.fired(change.alert.alertname, ordinal, int(step), now_ns)

    def _snapshot(self, position: int, now_ns: int) -> Snapshot | None:
        late = self._in_turn(_SNAPSHOT_MS, self._snapshot_ns, now_ns)
        over = late or self._run.status != "running"
        due = self._steps_since >= _SNAPSHOT_STEPS or (self._steps_since and over)
        if not due:
            return None
        state = {
            "assembler": self._judging.assembler.state(),
            "detectors": self._judging.detectors.state(),
            "tally": self._tally.state(),
        }
        return Snapshot(position, pack(state))

    def _tick(self, watched: Watched, now_ns: int) -> Outcome:
        liveness = Liveness(
            attempt=watched.ordinal or 0,
            attempt_started_ns=watched.started_ns,
            service_started_ns=self._rooms.service_started_ns,
            ranks=tuple(map(translate.alive, watched.signs)),
        )
        at_ns, conditions = self._judging.tick(now_ns, liveness)
        if all(sign.heartbeat_ns is None for sign in watched.signs):
            # Known from a spool alone: however it ended, it ended before we heard of it.
            conditions = [translate.as_history(c) for c in conditions]
        return at_ns, conditions


def _spent(step: Step) -> dict[str, float]:
    """What of a step was timed, in seconds: the mean over its ranks."""
    found = {name: step.scalar(name) for name in SECONDS}
    return {name: value for name, value in found.items() if value is not None}
