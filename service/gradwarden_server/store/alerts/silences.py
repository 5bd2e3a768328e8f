"""Silences: what somebody does not want to hear for a while. They expire and are never deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, insert, select, update

from gradwarden_server.matchers import Matcher
from gradwarden_server.model import Silence
from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.streams import ensure_project

T = TypeVar("T")
_FRESH_NS = 1_000_000_000


class Silences:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[int, list[Silence]]] = {}
        self._lock = threading.Lock()

    def current(self, project: str, now_ns: int) -> list[Silence]:
        """Those that are not over, soonest end first; at most a second old.

        Every live run asks each second.
        """
        with self._lock:
            known = self._known.get(project)
        if known is not None and 0 <= now_ns - known[0] < _FRESH_NS:
            return known[1]
        found = self._current(project, now_ns)
        with self._lock:
            self._known[project] = now_ns, found
        return found

    def _current(self, project: str, now_ns: int) -> list[Silence]:
        mine = t.silence.c.project == project, t.silence.c.ends_ns > now_ns
        query = select(t.silence).where(*mine).order_by(t.silence.c.ends_ns, t.silence.c.id)
        with self._database.read() as connection:
            return [_silence(row) for row in connection.execute(query)]

    def list(self, project: str, limit: int = 500) -> list[Silence]:
        """All of them, the latest end first."""
        query = (
            select(t.silence)
            .where(t.silence.c.project == project)
            .order_by(t.silence.c.ends_ns.desc(), t.silence.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_silence(row) for row in connection.execute(query)]

    def get(self, project: str, silence: int) -> Silence | None:
        """One, or None."""
        query = select(t.silence).where(t.silence.c.project == project, t.silence.c.id == silence)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _silence(row)

    def add(
        self,
        project: str,
        matchers: Sequence[Matcher],
        starts_ns: int,
        ends_ns: int,
        author: str,
        comment: str,
        now_ns: int,
    ) -> Future[int]:
        """Keep a new one; its id. Audited."""

        def job(connection: Connection) -> int:
            ensure_project(connection, project)
            values = {
                "project": project,
                "matchers": [[m.name, m.value, m.is_regex, m.is_equal] for m in matchers],
                "starts_ns": starts_ns,
                "ends_ns": ends_ns,
                "author": author[:128],
                "comment": comment,
            }
            made = connection.execute(insert(t.silence).values(values).returning(t.silence.c.id))
            row_id = int(made.scalar_one())
            words = {"matchers": " ".join(map(str, matchers)), "ends_ns": ends_ns}
            audit.record(project, connection, now_ns, author, "silence.add", str(row_id), words)
            return row_id

        return self._written(project, job)

    def expire(self, project: str, silence: int, actor: str, now_ns: int) -> Future[bool]:
        """End one now; False where there is none that lasts. Audited."""

        def job(connection: Connection) -> bool:
            ended = connection.execute(
                update(t.silence)
                .where(
                    t.silence.c.project == project,
                    t.silence.c.id == silence,
                    t.silence.c.ends_ns > now_ns,
                )
                .values(ends_ns=now_ns)
            )
            if ended.rowcount != 1:
                return False
            audit.record(project, connection, now_ns, actor, "silence.expire", str(silence), {})
            return True

        return self._written(project, job)

    def move(
        self, project: str, silence: int, ends_ns: int, actor: str, now_ns: int
    ) -> Future[bool]:
        """Let one end at another time; False where there is none that lasts. Audited."""

        def job(connection: Connection) -> bool:
            moved = connection.execute(
                update(t.silence)
                .where(
                    t.silence.c.project == project,
                    t.silence.c.id == silence,
                    t.silence.c.ends_ns > now_ns,
                )
                .values(ends_ns=ends_ns)
            )
            if moved.rowcount != 1:
                return False
            words = {"ends_ns": ends_ns}
            audit.record(project, connection, now_ns, actor, "silence.move", str(silence), words)
            return True

        return self._written(project, job)

    def _written(self, project: str, job: Callable[[Connection], T]) -> Future[T]:
        future = self._database.write(job, Priority.ALERT)
        future.add_done_callback(lambda _: self._forget(project))
        return future

    def _forget(self, project: str) -> None:
        with self._lock:
            self._known.pop(project, None)


def _silence(row: Row[Any]) -> Silence:
    return Silence(
        id=row.id,
        project=row.project,
        matchers=tuple(Matcher(*held) for held in row.matchers),
        starts_ns=row.starts_ns,
        ends_ns=row.ends_ns,
        author=row.author,
        comment=row.comment,
    )
