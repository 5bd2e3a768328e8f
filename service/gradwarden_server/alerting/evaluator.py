"""The thread that evaluates: which runs are due, in which order, and under whose lease."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

from gradwarden_server.alerting.beats import SYSTEM, Beats
from gradwarden_server.alerting.commit import Alerts
from gradwarden_server.alerting.coverage import Recalled
from gradwarden_server.alerting.failing import Failing
from gradwarden_server.alerting.farewell import close_alerts
from gradwarden_server.alerting.hurry import Hurry, Key
from gradwarden_server.alerting.losses import Losses
from gradwarden_server.alerting.turns import SECOND_NS, TICK_NS, Held, Turn, turn_of
from gradwarden_server.alerting.watch import Rooms, RunWatch
from gradwarden_server.detect.base import Coverage
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.alerts.outbox import Outbox
from gradwarden_server.store.database import Priority
from gradwarden_server.store.errors import Fenced, StoreError, Unavailable
from gradwarden_server.store.judging.evaluation import Lease
from gradwarden_server.store.judging.watched import BATCHES, Due, Watched
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.records import RunRecord
from gradwarden_server.telemetry import span

log = logging.getLogger(__name__)

LEASE_NS = 15 * SECOND_NS
# Appends wake it, here and in other processes, so time alone makes it look around.
_POLL_SECONDS = 1.0
_PAUSE_SECONDS = 0.05
# Ranks of many runs wake it all the time; what comes within this is judged together.
_GATHER_SECONDS = 0.1
_ACTIVE_NS = 3600 * SECOND_NS
# A run that never said its end, and that nobody heard for so long while we listened, has
# been told of; its alerts stand, and it is looked at again when it speaks.
_FORSAKEN_NS = 24 * 3600 * SECOND_NS
_RETRY_MOST_SECONDS = 60
# A database that was away or full is back at once, and pages wait for the next try.
_RETRY_AWAY_SECONDS = 2
_UnderWay = tuple[Turn, Future[Alerts] | None]
"""A run that was judged, and what is being written of it."""


class Evaluator:
    """Wakes on every append, when a step has waited long enough, and each second."""

    def __init__(
        self,
        rooms: Rooms,
        outbox: Outbox,
        receivers: Sequence[Receiver],
        holder: str,
        clock: Callable[[], int],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is called after each round in which something may wait for delivery."""
        self._rooms = rooms
        self._recalled = Recalled(rooms.rules, rooms.runs, rooms.evaluation)
        self._outbox = outbox
        self._beats = Beats(rooms, outbox, receivers, holder)
        self._losses = Losses(rooms, holder)
        self._holder = holder
        self._adopted: RuleSet | None = None
        self._clock = clock
        self._hurry = Hurry(clock)
        self._passed: set[Key] = set()
        self._changed = changed
        self._held: dict[Key, Held] = {}
        self._failing = Failing()
        self._parted_ns = 0
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="evaluator", daemon=True)
        self.errors = 0
        self.lag_seconds = 0.0
        self.last_round_ns = 0

    def inherit(self) -> None:
        """Take over at once from a process that died; only where no other can be alive."""
        for project in (*self._rooms.runs.projects(), SYSTEM):
            self._rooms.evaluation.release(project, None)
        self._rooms.database.write(self._outbox.void_claims, Priority.ALERT).result()

    def adopt(self, rules: RuleSet) -> None:
        """Judge by these rules from the next round on, as after a restart."""
        with self._lock:
            self._adopted = rules
        self._wake.set()

    def start(self) -> None:
        """Begin evaluating."""
        self._thread.start()

    def wake(self) -> None:
        """Something was appended."""
        self._wake.set()

    def hurry(self, project: str, run: str) -> None:
        """A run sent something not finite: it is judged before those that wait their turn."""
        if self._hurry.tell(project, run):
            self._wake.set()

    def stop(self) -> None:
        """Finish the round under way and give the leases back."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            for project in {SYSTEM, *(project for project, _ in self._held)}:
                self._rooms.evaluation.release(project, self._holder)
        except Unavailable as error:
            log.warning("leases are not given back, they run out: %s", error)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and had a round within the last minute."""
        fresh = self._clock() - self.last_round_ns < 60 * SECOND_NS
        return self._thread.is_alive() and fresh

    def coverage(self, project: str, run: str) -> list[Coverage] | None:
        """What watches a run, or watched it last; None where nobody evaluated it yet."""
        with self._lock:
            held = self._held.get((project, run))
            if held is not None:
                return list(held.watch.detectors.coverage())
        return self._recalled.of(project, run)

    def unjudged(self, project: str, run: str) -> int:
        """Batches of a run that no detector has looked at yet, wherever it is evaluated."""
        return self._rooms.evaluation.unjudged(project, run)

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait(self._patience())
            self._wake.clear()
            try:
                self.round(self._clock())
            except StoreError as error:
                self.errors += 1
                log.error("evaluation waits, the log is kept: %s", error)
            except Exception:
                self.errors += 1
                log.exception("evaluation round failed; the log is kept and read again")
            self._hurry.wait(_GATHER_SECONDS)

    def _patience(self) -> float:
        """Seconds until something may be due by time alone."""
        deadlines = (held.watch.deadline_ns for held in self._held.values())
        soonest = min((at_ns for at_ns in deadlines if at_ns is not None), default=None)
        if soonest is None:
            return _POLL_SECONDS
        # What is overdue and still stands is put off elsewhere, and is not waited for here.
        return min(_POLL_SECONDS, max(_PAUSE_SECONDS, (soonest - self._clock()) / SECOND_NS))

    def round(self, now_ns: int) -> None:
        """Evaluate every due run once."""
        self._take_over()
        self._passed.clear()
        self._let_past()
        lag = 0.0
        due_now: set[Key] = set()
        projects = self._rooms.runs.projects()
        if now_ns - self._parted_ns >= TICK_NS:
            self._part(projects, now_ns)
        for project in projects:
            due = self._due(project, now_ns)
            due_now |= {(project, one.run) for one in due}
            lag = max(lag, self._project(project, due, now_ns))
        due_now |= self._passed
        for key in [key for key in self._held if key not in due_now]:
            self._drop(key)
        self._failing.keep(due_now)
        self._beats.round(now_ns)
        self.lag_seconds = lag
        self.last_round_ns = now_ns
        self._changed()

    def _due(self, project: str, now_ns: int) -> list[Due]:
        listening_ns = now_ns - self._rooms.service_started_ns
        forsaken_ns = now_ns - _FORSAKEN_NS if listening_ns > _FORSAKEN_NS else 0
        return self._rooms.watched.due(project, now_ns - _ACTIVE_NS, forsaken_ns)

    def _take_over(self) -> None:
        with self._lock:
            adopted, self._adopted = self._adopted, None
            if adopted is None or adopted == self._rooms.rules:
                return
            self._rooms = replace(self._rooms, rules=adopted)
            self._recalled = Recalled(adopted, self._rooms.runs, self._rooms.evaluation)
            self._held.clear()

    def _part(self, projects: Iterable[str], now_ns: int) -> None:
        """What concerns no single run: telemetry that is lost, and runs that were deleted."""
        self._parted_ns = now_ns
        for project in projects:
            try:
                close_alerts(self._rooms, project, partial(self._lease, project), now_ns)
                self._losses.round(project, now_ns, self._changed)
            except Fenced as error:
                log.info("project %s: %s", project, error)

    def _lease(self, project: str, run: str) -> Lease | None:
        return self._rooms.evaluation.acquire(project, f"run:{run}", self._holder, LEASE_NS)

    def _project(self, project: str, due: Sequence[Due], now_ns: int) -> float:
        """Evaluate the due runs of a project; how old the oldest batch was when judged."""
        healthy = [one for one in due if not self._failing.waits((project, one.run), now_ns)]
        for run, lease in self._lease_all(project, healthy, now_ns):
            self._let_past()
            self._take_up(project, run, lease, now_ns)
        return self._sweep(project, healthy, now_ns)

    def _let_past(self) -> None:
        """Judge who hurries, wherever the round has got to."""
        for project, runs in self._hurry.take().items():
            now_ns = self._clock()
            due = [
                one
                for one in self._due(project, now_ns)
                if one.run in runs and not self._failing.waits((project, one.run), now_ns)
            ]
            self._passed |= {(project, one.run) for one in due}
            for run, lease in self._lease_all(project, due, now_ns):
                self._take_up(project, run, lease, now_ns)
            self._sweep(project, due, now_ns, hurried=True)

    def _sweep(self, project: str, due: Sequence[Due], now_ns: int, hurried: bool = False) -> float:
        """Evaluate some due runs of a project; how old the oldest batch was when judged."""
        turns = {}
        for one in due:
            held = self._held.get((project, one.run))
            turn = None if held is None else turn_of(one, held, now_ns)
            if turn is not None:
                turns[one.row] = turn
        if not turns:
            return 0.0
        ticking = [row for row, turn in turns.items() if turn.tick]
        watched = self._rooms.watched.runs(project, turns, ticking)
        behind = {row: turn.behind for row, turn in turns.items() if turn.behind > 0}
        fresh = self._rooms.watched.fresh(project, behind)
        under_way: list[_UnderWay] = []
        lag = 0.0
        for row, turn in turns.items():
            key = project, turn.due.run
            if self._hurry.waiting and not hurried:
                lag = max(lag, self._settle(project, under_way, now_ns))
                under_way = []
                self._let_past()
            if row not in watched or self._held.get(key) is not turn.held:
                continue
            with self._guarded(key, now_ns):
                entries = self._entries(project, turn, fresh.pop(row, []))
                under_way.append((turn, self._evaluate(turn, watched[row], entries, now_ns)))
        return max(lag, self._settle(project, under_way, now_ns))

    def _settle(self, project: str, under_way: Iterable[_UnderWay], now_ns: int) -> float:
        """Wait until what was judged is durable; how old the oldest batch was by then."""
        lag = 0.0
        latest: dict[int, Mapping[str, object]] = {}
        for turn, future in under_way:
            watch = turn.held.watch
            with self._guarded((project, turn.due.run), now_ns):
                if future is not None:
                    watch.settle(future.result())
                    lag = max(lag, watch.lag_seconds(self._clock()))
                    latest[turn.due.row] = watch.latest
                self._failing.recovered((project, turn.due.run))
        if latest:
            self._rooms.registrar.latest(project, latest).add_done_callback(_complain)
        return lag

    def _entries(self, project: str, turn: Turn, fresh: list[LogEntry]) -> list[LogEntry]:
        """The next batches of a run; where the log has gaps, segments hold what is missing."""
        if turn.behind <= 0:
            return []
        position = turn.held.watch.position
        whole = bool(fresh) and fresh[0].position == position + 1
        if whole and fresh[-1].position == position + len(fresh):
            return fresh
        return self._rooms.log.after(project, turn.due.run, position, BATCHES)

    def _evaluate(
        self, turn: Turn, watched: Watched, entries: list[LogEntry], now_ns: int
    ) -> Future[Alerts] | None:
        traced = span("evaluate", run=turn.due.run, batches=len(entries))
        with traced if entries else nullcontext():
            causes = self._losses.over(watched.run.project, watched.run, now_ns)
            future = turn.held.watch.evaluate(watched, entries, now_ns, turn.tick, causes)
        if future is not None and turn.held.watch.speaks:
            future.add_done_callback(lambda _: self._changed())
        if len(entries) == BATCHES:
            self._wake.set()
        return future

    @contextmanager
    def _guarded(self, key: Key, now_ns: int) -> Iterator[None]:
        """What goes wrong with one run is its own; its memory is rebuilt from the last commit."""
        try:
            yield
        except Fenced as error:
            log.info("run %s: %s", key[1], error)
            self._drop(key)
        except Unavailable as error:
            self.errors += 1
            log.error("run %s: evaluation is tried again: %s", key[1], error)
            self._drop(key)
            self._failing.put_off(key, now_ns, _RETRY_AWAY_SECONDS)
        except Exception:
            self.errors += 1
            log.exception("run %s: evaluation failed and is tried again", key[1])
            self._drop(key)
            self._failing.put_off(key, now_ns, _RETRY_MOST_SECONDS)

    def _lease_all(
        self, project: str, due: Sequence[Due], now_ns: int
    ) -> list[tuple[RunRecord, Lease]]:
        """Take what is free, renew what is held, let go of what another process took.

        Returns:
            What was taken and is to be taken up.
        """
        wanted = {}
        for one in due:
            held = self._held.get((project, one.run))
            if held is None or now_ns >= held.renew_ns:
                wanted[f"run:{one.run}"] = one
        if not wanted:
            return []
        leases = self._rooms.evaluation.acquire_all(project, wanted, self._holder, LEASE_NS)
        lacking = []
        for scope, one in wanted.items():
            key = project, one.run
            held, lease = self._held.get(key), leases.get(scope)
            if held is not None and (lease is None or held.watch.lease.epoch != lease.epoch):
                self._drop(key)
                held = None
            if held is not None:
                held.renew_ns = now_ns + LEASE_NS // 2
            elif lease is not None:
                lacking.append((one, lease))
        if not lacking:
            return []
        runs = self._rooms.watched.runs(project, [one.row for one, _ in lacking], ())
        return [(runs[one.row].run, lease) for one, lease in lacking if one.row in runs]

    def _take_up(self, project: str, run: RunRecord, lease: Lease, now_ns: int) -> None:
        """Begin to watch a run, from where it was left."""
        key = project, run.run
        if key in self._held:
            return  # it hurried, and was taken up meanwhile
        with self._guarded(key, now_ns):
            watch = RunWatch(self._rooms, project, run, lease, now_ns)
            with self._lock:
                self._held[key] = Held(watch, now_ns + LEASE_NS // 2)

    def _drop(self, key: Key) -> None:
        with self._lock:
            self._held.pop(key, None)


def _complain(told: Future[None]) -> None:
    """Newest values are for show: they are told again with the next step."""
    error = told.exception()
    if error is not None:
        log.warning("newest values are not told: %s", error)
