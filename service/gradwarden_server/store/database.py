"""One database, read by many in short transactions and written by one thread.

Group commit: the writer drains whatever waits into one transaction, each job in its own
savepoint, and resolves the callers only after COMMIT is durable. A write that comes alone
waits for nothing; where acks come in crowds, the next crowd is awaited for some milliseconds,
since a commit costs more CPU than what is in it. Alerts go before acks, acks before
compaction. Jobs of the same kind can share their statements, see
:meth:`Database.write_together`.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.engine import make_url

from gradwarden_server import assets
from gradwarden_server.store import abandon, faults, notices
from gradwarden_server.store.errors import DatabaseInUse, DiskFull, StoreError

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

Transaction = Connection
"""What a write job is given: it sees its own changes, and others do after the commit."""

_JOBS_PER_COMMIT = 512
_GATHER_SECONDS = 0.005
# A PostgreSQL that is not there is noticed within these seconds, and so is one that was
# reached and fell silent: a node that died says no goodbye.
_REACH = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_READERS_KEPT, _READERS_MORE = 5, 10
_READER_WAIT_SECONDS = 10


class Priority(IntEnum):
    """The order in which waiting writes are taken."""

    ALERT = 0
    ACK = 1
    COMPACTION = 2


class Database:
    """SQLite or PostgreSQL behind one face: :meth:`read`, :meth:`write`, :meth:`migrate`."""

    def __init__(self, url: str) -> None:
        """Open without connecting; ``url`` is an SQLAlchemy URL.

        Raises:
            ValueError: the URL is of another kind than SQLite (a file) or PostgreSQL.
        """
        parsed = make_url(url)
        self.kind = parsed.get_backend_name()
        self._lock_file: int | None = None
        self._path: Path | None = None
        if self.kind == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ValueError(f"db: {url!r}; name a file, as in sqlite:////var/lib/gw.sqlite")
            self._path = Path(parsed.database)
            self._path.parent.mkdir(parents=True, exist_ok=True)
        elif self.kind != "postgresql":
            raise ValueError(f"db: {url!r}; use sqlite:///FILE or postgresql+psycopg://...")
        self.url = url
        self.origin = secrets.token_hex(8)
        """Names this process among those that share the database."""
        self.place = "PostgreSQL" if self._path is None else str(self._path.absolute())
        """What errors call it; a URL may hold a password."""
        self.engine = _engine(url, self.kind, "BEGIN")
        event.listen(self.engine, "handle_error", self._tell)
        writing = _engine(url, self.kind, "BEGIN IMMEDIATE")
        self._writer = _Writer(writing, self.origin, self.place)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A short read transaction; hold it for milliseconds, not for a stream.

        Raises:
            Unavailable: the database does not answer.
            DatabaseDamaged: it cannot read its own file.
            Abandoned: whoever asked has left.
        """
        abandon.check()
        with (
            faults.told(self.place),
            self.engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    def write(
        self,
        job: Callable[[Connection], T],
        priority: Priority = Priority.ACK,
        key: str = "",
    ) -> Future[T]:
        """Queue one write; the future resolves after its COMMIT is durable.

        ``key`` orders the jobs of one commit, so that every process locks rows of runs in
        the same order. An exception of the job undoes this job alone and reaches the caller.
        """
        return self._writer.submit(lambda connection, _: [job(connection)], None, priority, key)

    def write_together(
        self,
        take: Callable[[Connection, Sequence[T]], Sequence[R | Exception]],
        item: T,
        priority: Priority = Priority.ACK,
        key: str = "",
    ) -> Future[R]:
        """Queue one item for ``take``, which gets all that wait under one key in one call.

        It answers each item, in order, with a result or with a refusal that reaches its
        caller alone. If it raises, nothing of that call stands, and the items are taken
        again one at a time, so that what is wrong with one of them is its own.
        """
        return self._writer.submit(take, item, priority, key)

    def on_commit(self, call: Callable[[], None]) -> None:
        """After each commit of this process ``call``, which returns at once."""
        self._writer.committed = call

    @property
    def queue_depth(self) -> int:
        """Writes that wait for the next commit."""
        return self._writer.depth

    def migrate(self) -> None:
        """Bring the schema to the newest revision; safe to call on every start."""
        with faults.told(self.place):
            self._migrate()

    def _migrate(self) -> None:
        if self.kind == "postgresql":
            # Several processes start at once; one migrates, the others wait and find it done.
            with self.engine.connect() as guard, guard.begin():
                guard.execute(text("SELECT pg_advisory_xact_lock(7229341)"))
                command.upgrade(self._alembic(), "head")
        else:
            self.ping()  # a new file takes its page size from our connection, not from alembic's
            command.upgrade(self._alembic(), "head")

    def downgrade(self, revision: str) -> None:
        """Take the schema back to ``revision``."""
        command.downgrade(self._alembic(), revision)

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(assets.MIGRATIONS))
        config.attributes["url"] = self.url
        return config

    def ping(self) -> None:
        """Raise if the database does not answer."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def connect_alone(self) -> Any:
        """A driver's connection outside of every pool, each statement its own transaction."""
        dialect = self.engine.dialect
        words, options = dialect.create_connect_args(self.engine.url)
        connection: Any = dialect.connect(*words, **{**_REACH, **options})
        connection.autocommit = True
        return connection

    def _tell(self, context: ExceptionContext) -> StoreError | None:
        """Rooms that read by the engine itself meet the same errors as those that call ``read``."""
        error = context.sqlalchemy_exception
        # The pool's own ping wants its error as it is: then it connects anew and nobody notices.
        if error is None or context.is_pre_ping:
            return None
        return faults.meaning(error, self.place)

    def hold_lock(self, note: str) -> bool:
        """Hold the SQLite file against other writers; does nothing on PostgreSQL.

        Returns:
            Whether this process is now the only one, so that claims of dead ones are void.

        Raises:
            DatabaseInUse: another process holds it; the text says who.
        """
        if self._path is None:
            return False
        path = self._path.with_name(self._path.name + ".lock")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 500).decode(errors="replace").strip()
            os.close(handle)
            raise DatabaseInUse(f"{self._path} is held by {holder or 'another process'}") from None
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()}: {note}\n".encode())
        self._lock_file = handle
        return True

    def close(self) -> None:
        """Finish what waits, then let go of connections and the lock."""
        self._writer.close()
        self.engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def clock_ns(connection: Connection) -> int:
    """The database's own clock in UTC nanoseconds, so that leases need no agreed host time."""
    if connection.dialect.name == "sqlite":
        statement = "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
        return int(connection.execute(text(statement)).scalar_one()) * 1_000_000
    statement = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"
    return int(connection.execute(text(statement)).scalar_one()) * 1_000


def _engine(url: str, kind: str, begin: str) -> Engine:
    if kind != "sqlite":
        asked = make_url(url).query
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=_READERS_KEPT,
            max_overflow=_READERS_MORE,
            pool_timeout=_READER_WAIT_SECONDS,
            connect_args={name: value for name, value in _REACH.items() if name not in asked},
        )
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would hide savepoints
        for pragma in (
            "page_size=8192",
            "auto_vacuum=INCREMENTAL",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


_Take = Callable[[Connection, Sequence[Any]], Sequence[Any]]


class _Job:
    def __init__(self, take: _Take, item: Any, priority: int, key: str, number: int) -> None:
        self.take = take
        self.item = item
        self.priority = priority
        self.key = key
        self.number = number
        self.future: Future[Any] = Future()
        # What is queued is written. A caller that is cancelled, as at shutdown, would else
        # cancel the future, and giving it the result would raise here and end the writer.
        self.future.set_running_or_notify_cancel()


class _Writer:
    """The one thread that writes."""

    def __init__(self, engine: Engine, origin: str, place: str) -> None:
        self._engine = engine
        self._origin = origin
        self._place = place
        self._waiting: list[_Job] = []
        self._wake = threading.Condition()
        self._count = itertools.count()
        # While it gathers: how many waiting writes end that.
        self._awaited = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self.committed: Callable[[], None] = lambda: None

    @property
    def depth(self) -> int:
        return len(self._waiting)

    def submit(self, take: _Take, item: Any, priority: int, key: str) -> Future[Any]:
        with self._wake:
            if self._closed:
                raise RuntimeError("the database is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="gradwarden-writer")
                self._thread.daemon = True
                self._thread.start()
            job = _Job(take, item, priority, key, next(self._count))
            self._waiting.append(job)
            if priority == Priority.ALERT or len(self._waiting) >= self._awaited:
                self._wake.notify()
        return job.future

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._engine.dispose()

    def _loop(self) -> None:
        crowd = 0
        while True:
            with self._wake:
                while not self._waiting:
                    if self._closed:
                        return
                    self._wake.wait()
                if crowd > 1:
                    self._gather(crowd)
                # The oldest are taken, and only then ordered by key: no run starves another.
                self._waiting.sort(key=lambda job: (job.priority, job.number))
                jobs = self._waiting[:_JOBS_PER_COMMIT]
                del self._waiting[:_JOBS_PER_COMMIT]
            crowd = sum(job.priority == Priority.ACK for job in jobs)
            jobs.sort(key=lambda job: (job.priority, job.key, job.number))
            if self._engine.dialect.name == "sqlite":
                self._commit(jobs)
                continue
            # Keys order the locks of one priority. Were they held on to through the next one,
            # two processes could wait for each other.
            for _, level in itertools.groupby(jobs, lambda job: job.priority):
                self._commit(list(level))

    def _gather(self, crowd: int) -> None:
        """Wait a moment for as many acks as came last time; nothing else waits for them."""
        hurried = any(job.priority != Priority.ACK for job in self._waiting)
        if hurried or len(self._waiting) >= crowd:
            return
        self._awaited = crowd
        self._wake.wait(_GATHER_SECONDS)
        self._awaited = 0

    def _commit(self, jobs: list[_Job]) -> None:
        outcomes: list[Any] = []
        try:
            with self._engine.connect() as connection, connection.begin():
                for _, alike in itertools.groupby(jobs, lambda job: (job.key, job.take)):
                    outcomes += self._attempt(connection, list(alike))
                notices.publish(connection, self._origin)
        except BaseException as error:
            reason = faults.meaning(error, self._place) or error
            if isinstance(reason, StoreError):
                driver = getattr(reason.__cause__, "orig", reason.__cause__)
                log.error("commit of %d writes failed: %s (%s)", len(jobs), reason, driver)
            else:
                log.exception("commit of %d writes failed", len(jobs))
            for job in jobs:
                job.future.set_exception(reason)
            return
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self.committed()

    def _attempt(self, connection: Connection, jobs: list[_Job]) -> Sequence[Any]:
        """A result or a refusal for each of some jobs that are taken alike."""
        savepoint = connection.begin_nested()
        try:
            outcomes = jobs[0].take(connection, [job.item for job in jobs])
        except Exception as error:
            reason = faults.meaning(error, self._place) or error
            if connection.invalidated or isinstance(reason, DiskFull):
                raise  # the connection is gone or stuck, and with it everything since BEGIN
            savepoint.rollback()
            if len(jobs) > 1:
                return [outcome for job in jobs for outcome in self._attempt(connection, [job])]
            return [reason]
        savepoint.commit()
        return outcomes
