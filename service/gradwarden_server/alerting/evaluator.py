"""The thread that evaluates: which runs are due, under whose lease, and the Watchdog's beat."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from gradwarden_server.alerting.farewell import close_alerts
from gradwarden_server.alerting.watch import Rooms, RunWatch
from gradwarden_server.detect.base import Coverage
from gradwarden_server.model import Notification
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.watchdog import watchdog, watchdogs
from gradwarden_server.store.database import Priority, Transaction
from gradwarden_server.store.errors import Fenced, StoreError, Unavailable
from gradwarden_server.store.evaluation import Due, Lease
from gradwarden_server.store.outbox import Outbox
from gradwarden_server.telemetry import span

log = logging.getLogger(__name__)

SECOND_NS = 1_000_000_000
LEASE_NS = 15 * SECOND_NS
TICK_NS = 1 * SECOND_NS
# Appends wake it, here and in other processes, so time alone makes it look around.
_POLL_SECONDS = 1.0
_PAUSE_SECONDS = 0.05
_ACTIVE_NS = 3600 * SECOND_NS
# A run that never said its end, and that nobody heard for so long while we listened, has
# been told of; its alerts stand, and it is looked at again when it speaks.
_FORSAKEN_NS = 24 * 3600 * SECOND_NS
_RETRY_MOST_SECONDS = 60
# A database that was away or full is back at once, and pages wait for the next try.
_RETRY_AWAY_SECONDS = 2
_SYSTEM = "gradwarden"


@dataclass(slots=True)
class _Held:
    watch: RunWatch
    renew_ns: int
    tick_ns: int = 0


@dataclass(slots=True)
class _Failing:
    """A run whose evaluation raises: tried again after 1, 2, 4, ... seconds."""

    times: int = 0
    retry_ns: int = 0


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
        self._outbox = outbox
        self._dogs = watchdogs(receivers)
        self._holder = holder
        self._clock = clock
        self._changed = changed
        self._held: dict[tuple[str, str], _Held] = {}
        self._failing: dict[tuple[str, str], _Failing] = {}
        self._beats: dict[str, int] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="evaluator", daemon=True)
        self.errors = 0
        self.lag_seconds = 0.0
        self.last_round_ns = 0

    def inherit(self) -> None:
        """Take over at once from a process that died; only where no other can be alive."""
        for project in (*self._rooms.runs.projects(), _SYSTEM):
            self._rooms.evaluation.release(project, None)
        self._rooms.database.write(self._outbox.void_claims, Priority.ALERT).result()

    def start(self) -> None:
        """Begin evaluating."""
        self._thread.start()

    def wake(self) -> None:
        """Something was appended."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the round under way and give the leases back."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            for project in {_SYSTEM, *(project for project, _ in self._held)}:
                self._rooms.evaluation.release(project, self._holder)
        except Unavailable as error:
            log.warning("leases are not given back, they run out: %s", error)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and had a round within the last minute."""
        fresh = self._clock() - self.last_round_ns < 60 * SECOND_NS
        return self._thread.is_alive() and fresh

    def coverage(self, project: str, run: str) -> list[Coverage] | None:
        """What watches a run; None where another process evaluates it."""
        with self._lock:
            held = self._held.get((project, run))
            return None if held is None else list(held.watch.detectors.coverage())

    def unjudged(self, project: str, run: str) -> int:
        """Batches of a run that no detector has looked at yet, wherever it is evaluated."""
        return self._rooms.evaluation.unjudged(project, run)

    def _loop(self) -> None:
        while not self._stopping:
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
        lag = 0.0
        due_now: set[tuple[str, str]] = set()
        listening_ns = now_ns - self._rooms.service_started_ns
        forsaken_ns = now_ns - _FORSAKEN_NS if listening_ns > _FORSAKEN_NS else 0
        for project in self._rooms.runs.projects():
            for due in self._rooms.evaluation.due(project, now_ns - _ACTIVE_NS, forsaken_ns):
                due_now.add((project, due.run))
                failing = self._failing.get((project, due.run))
                if failing is not None and now_ns < failing.retry_ns:
                    continue
                try:
                    self._run(project, due, now_ns)
                    self._failing.pop((project, due.run), None)
                except Fenced as error:
                    log.info("run %s: %s", due.run, error)
                    self._drop(project, due.run)
                except Unavailable as error:
                    self.errors += 1
                    log.error("run %s: evaluation is tried again: %s", due.run, error)
                    self._drop(project, due.run)
                    self._put_off(project, due.run, now_ns, _RETRY_AWAY_SECONDS)
                except Exception:
                    # What was half done in memory is rebuilt from the last commit.
                    self.errors += 1
                    log.exception("run %s: evaluation failed and is tried again", due.run)
                    self._drop(project, due.run)
                    self._put_off(project, due.run, now_ns, _RETRY_MOST_SECONDS)
                behind = self._held.get((project, due.run))
                if behind is not None:
                    lag = max(lag, behind.watch.lag_seconds(now_ns))
        for project, run in [key for key in self._held if key not in due_now]:
            self._drop(project, run)
        self._part(now_ns)
        self._failing = {key: held for key, held in self._failing.items() if key in due_now}
        self._beat(now_ns)
        self.lag_seconds = lag
        self.last_round_ns = now_ns
        self._changed()

    def _part(self, now_ns: int) -> None:
        """Let nobody stay paged for a run that was deleted."""
        for project in self._rooms.runs.projects():
            try:
                close_alerts(self._rooms, project, partial(self._lease, project), now_ns)
            except Fenced as error:
                log.info("deleted runs of %s: %s", project, error)

    def _lease(self, project: str, run: str) -> Lease | None:
        return self._rooms.evaluation.acquire(project, f"run:{run}", self._holder, LEASE_NS)

    def _run(self, project: str, due: Due, now_ns: int) -> None:
        held = self._held.get((project, due.run))
        if held is None or now_ns >= held.renew_ns:
            held = self._acquire(project, due, held, now_ns)
        if held is None:
            return
        tick = now_ns - held.tick_ns >= TICK_NS
        waiting = held.watch.deadline_ns
        overdue = waiting is not None and waiting <= now_ns
        if not (tick or overdue or due.position > held.watch.position):
            return
        run = self._rooms.runs.get(project, due.run)
        if run is None:
            return
        if tick:
            held.tick_ns = now_ns
        batches = due.position - held.watch.position
        with span("evaluate", run=due.run, batches=batches) if batches else nullcontext():
            more = held.watch.evaluate(run, now_ns, tick)
        if more:
            self._wake.set()

    def _acquire(self, project: str, due: Due, held: _Held | None, now_ns: int) -> _Held | None:
        lease = self._rooms.evaluation.acquire(project, f"run:{due.run}", self._holder, LEASE_NS)
        if lease is None or (held is not None and held.watch.lease.epoch != lease.epoch):
            self._drop(project, due.run)
            held = None
        if lease is None:
            return None
        renew_ns = now_ns + LEASE_NS // 2
        if held is not None:
            held.renew_ns = renew_ns
            return held
        run = self._rooms.runs.get(project, due.run)
        if run is None:
            return None
        held = _Held(RunWatch(self._rooms, project, run, lease), renew_ns)
        with self._lock:
            self._held[project, due.run] = held
        return held

    def _drop(self, project: str, run: str) -> None:
        with self._lock:
            self._held.pop((project, run), None)

    def _put_off(self, project: str, run: str, now_ns: int, most_seconds: int) -> None:
        failing = self._failing.setdefault((project, run), _Failing())
        failing.retry_ns = now_ns + min(2**failing.times, most_seconds) * SECOND_NS
        failing.times = min(failing.times + 1, 10)

    def _beat(self, now_ns: int) -> None:
        """Let the Watchdog speak: only a process whose evaluator runs gets here."""
        for dog in self._dogs:
            interval_ns = (dog.watchdog_seconds or 0) * SECOND_NS
            if now_ns - self._beats.get(dog.name, 0) < interval_ns:
                continue
            lease = self._rooms.evaluation.acquire(
                _SYSTEM, f"watchdog:{dog.name}", self._holder, max(2 * interval_ns, LEASE_NS)
            )
            self._beats[dog.name] = now_ns
            if lease is None:
                continue
            since_ns = self._rooms.service_started_ns
            message = watchdog(dog, _SYSTEM, since_ns, self._rooms.external_url)
            self._rooms.database.write(
                partial(self._enqueue, message=message, now_ns=now_ns), Priority.ALERT
            ).result()

    def _enqueue(self, connection: Transaction, message: Notification, now_ns: int) -> None:
        self._outbox.beat(_SYSTEM, connection, message, now_ns)
