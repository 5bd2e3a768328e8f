"""Maintenance windows: work that is planned. They end and are never deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import time
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, and_, insert, or_, select, update

from gradwarden_server.matchers import Matcher
from gradwarden_server.model import Maintenance, Quiet
from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.silences import Silences
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.streams import ensure_project
from gradwarden_server.weekly import Weekly

T = TypeVar("T")
_FRESH_NS = 1_000_000_000


class MaintenanceWindows:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[int, list[Maintenance]]] = {}
        self._lock = threading.Lock()

    def current(self, project: str, now_ns: int) -> list[Maintenance]:
        """Those that are not over for good; at most a second old."""
        with self._lock:
            known = self._known.get(project)
        if known is not None and 0 <= now_ns - known[0] < _FRESH_NS:
            return known[1]
        table = t.maintenance
        query = select(table).where(
            table.c.project == project,
            table.c.ended_ns.is_(None),
            or_(table.c.ends_ns.is_(None), table.c.ends_ns > now_ns),
        )
        with self._database.read() as connection:
            found = [_maintenance(row) for row in connection.execute(query.order_by(table.c.id))]
        with self._lock:
            self._known[project] = now_ns, found
        return found

    def list(self, project: str, limit: int = 500) -> list[Maintenance]:
        """All of them, the newest first."""
        query = (
            select(t.maintenance)
            .where(t.maintenance.c.project == project)
            .order_by(t.maintenance.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_maintenance(row) for row in connection.execute(query)]

    def get(self, project: str, number: int) -> Maintenance | None:
        """One, or None."""
        with self._database.read() as connection:
            query = select(t.maintenance).where(_one(project, number))
            row = connection.execute(query).one_or_none()
        return None if row is None else _maintenance(row)

    def add(
        self,
        project: str,
        matchers: Sequence[Matcher],
        starts_ns: int,
        ends_ns: int | None,
        weekly: Weekly | None,
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
                "weekly": None if weekly is None else _packed(weekly),
                "author": author[:128],
                "comment": comment,
            }
            made = connection.execute(
                insert(t.maintenance).values(values).returning(t.maintenance.c.id)
            )
            row_id = int(made.scalar_one())
            words = {"matchers": " ".join(map(str, matchers)), "weekly": str(weekly or "")}
            act = "maintenance.add"
            audit.record(project, connection, now_ns, author, act, str(row_id), words)
            return row_id

        return self._written(project, job)

    def end(self, project: str, number: int, actor: str, now_ns: int) -> Future[bool]:
        """End one for good; False where there is none that lasts. Audited."""

        def job(connection: Connection) -> bool:
            lasting = and_(
                t.maintenance.c.ended_ns.is_(None),
                or_(t.maintenance.c.ends_ns.is_(None), t.maintenance.c.ends_ns > now_ns),
            )
            ended = connection.execute(
                update(t.maintenance).where(_one(project, number), lasting).values(ended_ns=now_ns)
            )
            if ended.rowcount != 1:
                return False
            audit.record(project, connection, now_ns, actor, "maintenance.end", str(number), {})
            return True

        return self._written(project, job)

    def _written(self, project: str, job: Callable[[Connection], T]) -> Future[T]:
        future = self._database.write(job, Priority.ALERT)
        future.add_done_callback(lambda _: self._forget(project))
        return future

    def _forget(self, project: str) -> None:
        with self._lock:
            self._known.pop(project, None)


class Wishes:
    """What people do not want to hear, for a while or while work goes on."""

    def __init__(self, silences: Silences, windows: MaintenanceWindows) -> None:
        self._silences = silences
        self._windows = windows

    def current(self, project: str, now_ns: int) -> list[Quiet]:
        """All that is not over; at most a second old."""
        return [
            *self._silences.current(project, now_ns),
            *self._windows.current(project, now_ns),
        ]


def _one(project: str, number: int) -> Any:
    return and_(t.maintenance.c.project == project, t.maintenance.c.id == number)


def _packed(weekly: Weekly) -> dict[str, Any]:
    at = f"{weekly.at:%H:%M}"
    return {
        "days": sorted(weekly.days),
        "at": at,
        "seconds": weekly.seconds,
        "zone": weekly.zone,
    }


def _maintenance(row: Row[Any]) -> Maintenance:
    weekly = None
    if row.weekly is not None:
        held = row.weekly
        at = time.fromisoformat(held["at"])
        weekly = Weekly(frozenset(held["days"]), at, held["seconds"], held["zone"])
    return Maintenance(
        id=row.id,
        project=row.project,
        matchers=tuple(Matcher(*held) for held in row.matchers),
        starts_ns=row.starts_ns,
        ends_ns=row.ends_ns,
        weekly=weekly,
        author=row.author,
        comment=row.comment,
        ended_ns=row.ended_ns,
    )
