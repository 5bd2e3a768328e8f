"""The janitor: a thread that drops what nobody wants kept, in small writes beside ingest.

Each hour, and at once when a run was deleted or a project changed what it keeps. One process
at a time, under a lease; every write by itself leaves the database whole.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, delete, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.errors import StoreError
from gradwarden_server.store.judging.evaluation import EvaluationStore
from gradwarden_server.store.keeping import expiry, merging, removal
from gradwarden_server.store.keeping.retention import DAY_NS, SERIES_DAYS, RetentionStore
from gradwarden_server.store.keeping.sweep import Broom, Step, Stopped
from gradwarden_server.store.keeping.vacuum import Room, vacuum_some
from gradwarden_server.store.runs import RunStore
from gradwarden_server.store.shelves.shelf import SeriesEngine

log = logging.getLogger(__name__)

_SYSTEM, _SCOPE = "gradwarden", "janitor"
_ACTOR = "retention"
_LEASE_NS = 15 * 1_000_000_000
_HOUR_SECONDS = 3600.0
_SOON_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round did, in rows, and in segments of a series engine.

    ``waiting`` deleted runs have alerts that still stand.
    """

    runs: int = 0
    waiting: int = 0
    narrowed: int = 0
    values: int = 0
    points: int = 0
    merged: int = 0


class Janitor:
    """Keeps house for all projects."""

    def __init__(
        self,
        database: Database,
        holder: str,
        clock: Callable[[], int] = time.time_ns,
        series: SeriesEngine | None = None,
    ) -> None:
        self._database = database
        self._series = series
        self._holder = f"{holder}/{_SCOPE}"
        self._clock = clock
        self._leases = EvaluationStore(database)
        self._policies = RetentionStore(database)
        self._runs = RunStore(database)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="janitor", daemon=True)

    def start(self) -> None:
        """Begin with a round: the last process may have died within one."""
        self._thread.start()

    def wake(self) -> None:
        """Something is to go; do not wait for the hour."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the write under way."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self, now_ns: int) -> Swept | None:
        """Drop all that is due; None where another process is at it.

        Raises:
            Stopped: :meth:`stop` was called.
        """
        lease = self._leases.acquire(_SYSTEM, _SCOPE, self._holder, _LEASE_NS)
        if lease is None:
            return None
        try:
            return self._sweep(_LeasedBroom(self._database, self._stopping, self._renew), now_ns)
        finally:
            self._database.write(self._release, Priority.COMPACTION).result()

    def vacuum(self, seconds: float) -> Room:
        """Give room back for some seconds, beside everything else; what is left.

        Raises:
            NotOnline: this database cannot do that, and the text says what can be done.
            Stopped: :meth:`stop` was called.
        """
        return vacuum_some(Broom(self._database, self._stopping), seconds)

    def _sweep(self, broom: Broom, now_ns: int) -> Swept:
        for project in self._runs.projects():
            self._expire_runs(broom, project, now_ns)
        with self._database.read() as connection:
            doomed = removal.doomed(connection)
        left = [removal.remove(broom, run, now_ns, self._series) for run in doomed]
        narrowed = 0
        for project in self._runs.projects():
            policy = self._policies.get(project)
            if policy.raw_days is not None:
                before_ns = now_ns - int(policy.raw_days * DAY_NS)
                narrowed += expiry.narrow(broom, project, before_ns, "raw", "rollup")
            if policy.rollup_days is not None:
                before_ns = now_ns - int(policy.rollup_days * DAY_NS)
                narrowed += expiry.narrow(broom, project, before_ns, "rollup", "coarse")
        return Swept(
            runs=left.count("nothing"),
            waiting=left.count("alerts"),
            narrowed=narrowed,
            points=merging.drop_old(broom, now_ns - SERIES_DAYS * DAY_NS),
            merged=merging.merge_all(broom),
            # Last: a series engine that is away keeps nothing else from being done.
            values=expiry.drop_unheld(broom) + self._drop_elsewhere(broom),
        )

    def _drop_elsewhere(self, broom: Broom) -> int:
        return 0 if self._series is None else expiry.drop_elsewhere(broom, self._series)

    def _expire_runs(self, broom: Broom, project: str, now_ns: int) -> None:
        days = self._policies.get(project).run_days
        if days is None:
            return
        old = select(t.run.c.run).where(
            t.run.c.project == project,
            t.run.c.deleted_ns.is_(None),
            t.run.c.last_seen_ns < now_ns - int(days * DAY_NS),
        )
        with self._database.read() as connection:
            runs = connection.execute(old).scalars().all()
        for run in runs:
            mark = partial(removal.mark, project=project, run=run, now_ns=now_ns, actor=_ACTOR)
            broom.once(mark)

    def _loop(self) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait)
            self._wake.clear()
            try:
                swept = self.round(self._clock())
                wait = _SOON_SECONDS if swept is None or swept.waiting else _HOUR_SECONDS
            except Stopped:
                return
            except StoreError as error:
                log.warning("retention waits: %s", error)
                wait = _HOUR_SECONDS / 60
            except Exception:
                log.exception("a round of retention failed and is tried again")
                wait = _HOUR_SECONDS / 60

    def _renew(self) -> None:
        if self._leases.acquire(_SYSTEM, _SCOPE, self._holder, _LEASE_NS) is None:
            raise Stopped

    def _release(self, connection: Connection) -> None:
        mine = (t.lease.c.scope == f"{_SYSTEM}/{_SCOPE}", t.lease.c.holder == self._holder)
        connection.execute(delete(t.lease).where(*mine))


class _LeasedBroom(Broom):
    """One that renews its lease before it runs out."""

    def __init__(
        self, database: Database, stopping: threading.Event, renew: Callable[[], None]
    ) -> None:
        super().__init__(database, stopping)
        self._renew = renew
        self._renewed = time.monotonic()

    def once(self, step: Step) -> int:
        """One write under the lease."""
        if time.monotonic() - self._renewed > _LEASE_NS / 3e9:
            self._renew()
            self._renewed = time.monotonic()
        return super().once(step)
