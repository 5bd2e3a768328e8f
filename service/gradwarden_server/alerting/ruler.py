"""The threads that evaluate groups of Prometheus's rules: which are due, and under whose lease.

Each group of each project is evaluated at the moments that its interval and its name give, so that
a restart keeps its rhythm and groups do not all come at once. Moments that were missed are left
out; a group that is slower than its interval leaves out those that it took.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from gradwarden_server.alerting.groupwatch import GroupWatch, Outcome, RuleRooms
from gradwarden_server.alerting.rhythm import last_due_ms
from gradwarden_server.alerting.rulings import MS_NS
from gradwarden_server.querying.ruling import GroupState
from gradwarden_server.rules.groups import PromGroup
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.errors import Fenced, StoreError
from gradwarden_server.store.judging.evaluation import EvaluationStore, Lease

log = logging.getLogger(__name__)

SECOND_NS = 1_000_000_000
LEASE_NS = 15 * SECOND_NS
_WORKERS = 2
_POLL_SECONDS = 1.0
_LEAST_SECONDS = 0.02
_ELSEWHERE_NS = 5 * SECOND_NS
"""How long a group that another process keeps is not asked for again."""


@dataclass(slots=True)
class Tally:
    """What happened since this process started."""

    evaluations: int = 0
    failures: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Turn:
    """One group of one project here."""

    group: PromGroup
    interval_ms: int
    offset_ms: int
    slot_ms: int = 0
    lease: Lease | None = None
    asked_ns: int = 0
    busy: bool = False
    skipped: int = 0
    watch: GroupWatch | None = None
    errors: Mapping[str, str] = field(default_factory=dict)


_Key = tuple[str, str]
"""A group by its project and name."""


class Ruler:
    """Evaluates groups as they become due."""

    def __init__(
        self,
        rooms: RuleRooms,
        evaluation: EvaluationStore,
        groups: Sequence[PromGroup],
        holder: str,
        clock: Callable[[], int],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is called when something may wait for delivery."""
        self._rooms = rooms
        self._evaluation = evaluation
        self._groups = {group.key: group for group in groups}
        self._adopted: RuleSet | None = None
        self._holder = holder
        self._clock = clock
        self._changed = changed
        self._turns: dict[_Key, _Turn] = {}
        self._lost: set[_Key] | None = None
        self._lost_ns = 0
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="rules")
        self._thread = threading.Thread(target=self._loop, name="ruler", daemon=True)
        self.tally = Tally()

    def start(self) -> None:
        """Begin evaluating."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the evaluations under way and give the leases back."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True)
        try:
            for project in {project for project, _ in self._turns}:
                self._evaluation.release(project, self._holder)
        except StoreError as error:
            log.warning("leases of rules are not given back, they run out: %s", error)

    def adopt(self, rules: RuleSet) -> None:
        """Evaluate these groups from the next round on; what is unchanged keeps its state."""
        with self._lock:
            self._adopted = rules
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            patience = _POLL_SECONDS
            try:
                patience = self.round(self._clock())
            except StoreError as error:
                log.error("rules wait: %s", error)
            except Exception:
                log.exception("a round of rules failed")
            self._wake.wait(max(_LEAST_SECONDS, min(patience, _POLL_SECONDS)))
            self._wake.clear()

    def round(self, now_ns: int) -> float:
        """Begin what is due; seconds until something may be due again."""
        self._take_over()
        projects = self._rooms.runs.projects()
        for project in projects:
            for name, group in self._groups.items():
                if (project, name) not in self._turns:
                    self._turns[project, name] = _turn(group)
        self._renew(now_ns)
        self._close_lost(projects, now_ns)
        soonest = now_ns + int(_POLL_SECONDS * SECOND_NS)
        for (project, name), turn in self._turns.items():
            slot_ms = last_due_ms(f"{project}/{name}", turn.interval_ms, now_ns // MS_NS)
            soonest = min(soonest, (slot_ms + turn.interval_ms) * MS_NS)
            if turn.lease is not None and slot_ms > turn.slot_ms:
                self._begin((project, name), turn, slot_ms)
        return (soonest - now_ns) / SECOND_NS

    def _take_over(self) -> None:
        with self._lock:
            adopted, self._adopted = self._adopted, None
        if adopted is None:
            return
        self._groups = {group.key: group for group in adopted.groups}
        self._rooms = replace(self._rooms, inhibitions=adopted.inhibitions)
        self._lost, self._lost_ns = None, 0
        # What is under way ends by itself, and is fenced where the new turn was faster.
        self._turns = {}

    def _renew(self, now_ns: int) -> None:
        """Take what is free, renew what is held, let go of what another process took."""
        wanted: dict[str, list[str]] = {}
        for (project, name), turn in self._turns.items():
            patience_ns = LEASE_NS // 2 if turn.lease is not None else _ELSEWHERE_NS
            if now_ns - turn.asked_ns >= patience_ns:
                turn.asked_ns = now_ns
                wanted.setdefault(project, []).append(name)
        for project, names in wanted.items():
            scopes = {_scope(name): name for name in names}
            found = self._evaluation.acquire_all(project, scopes, self._holder, LEASE_NS)
            for scope, name in scopes.items():
                self._turns[project, name].lease = found.get(scope)

    def _begin(self, key: _Key, turn: _Turn, slot_ms: int) -> None:
        missed = (slot_ms - turn.slot_ms) // turn.interval_ms if turn.slot_ms else 1
        turn.slot_ms = slot_ms
        if turn.busy:
            turn.skipped += missed
            self.tally.skipped += missed
            return
        turn.busy = True
        self._pool.submit(self._evaluate, key, turn, slot_ms)

    def _evaluate(self, key: _Key, turn: _Turn, slot_ms: int) -> None:
        """One evaluation, in a thread of its own; what goes wrong with a group is its own."""
        project, name = key
        try:
            at_ms = slot_ms - turn.offset_ms
            watch = turn.watch
            if turn.lease is None:
                return
            if watch is None or watch.lease.epoch != turn.lease.epoch:
                watch = turn.watch = GroupWatch(self._rooms, project, turn.group, turn.lease)
            if at_ms > watch.evaluated_ms:
                self._note(key, turn, watch.evaluate(at_ms, self._clock(), turn.skipped))
        except Fenced as error:
            log.info("rules %s of %s: %s", name, project, error)
            turn.watch, turn.lease = None, None
        except Exception as error:
            turn.watch = None
            self.tally.failures += 1
            known = isinstance(error, StoreError)
            told = log.error if known else log.exception
            told("rules %s of %s are tried again: %s", name, project, error)
        finally:
            turn.busy = False

    def _note(self, key: _Key, turn: _Turn, outcome: Outcome) -> None:
        with self._lock:
            self.tally.evaluations += outcome.rules
            self.tally.failures += len(outcome.errors)
            self.tally.seconds += outcome.seconds
        for rule, error in outcome.errors.items():
            if turn.errors.get(rule) != error:
                log.warning("rule %s of %s in %s: %s", rule, key[1], key[0], error)
        turn.errors = outcome.errors
        if outcome.news:
            self._changed()

    def _close_lost(self, projects: Iterable[str], now_ns: int) -> None:
        """End what groups that no file has any more left behind."""
        if self._lost is None:
            self._lost = {
                (project, name)
                for project in projects
                for name in self._rooms.rulings.names(project)
                if name not in self._groups
            }
        if now_ns - self._lost_ns < _ELSEWHERE_NS:
            return
        self._lost_ns = now_ns
        for project, name in sorted(self._lost):
            try:
                self._close(project, name, now_ns)
            except StoreError as error:
                log.error("what the rules %s of %s left waits: %s", name, project, error)

    def _close(self, project: str, name: str, now_ns: int) -> None:
        lease = self._evaluation.acquire(project, _scope(name), self._holder, LEASE_NS)
        if lease is None or self._lost is None:
            return
        file, _, bare = name.partition(";")
        watch = GroupWatch(self._rooms, project, PromGroup(bare, (), file=file), lease)
        watch.close(now_ns)
        self._lost.discard((project, name))
        self._changed()


def _turn(group: PromGroup) -> _Turn:
    state = GroupState(group)
    return _Turn(group, state.interval_ms, state.offset_ms)


def _scope(name: str) -> str:
    return f"rules:{name}"
