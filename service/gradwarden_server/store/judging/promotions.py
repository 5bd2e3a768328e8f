"""When pages began to wake people, and how often they would have: a project's shadow period."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from gradwarden_server.model import DRILL, SHADOW, WOULD_HAVE_PAGED
from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.streams import ensure_project, insert_or_ignore

WHOLE = ""
"""In place of a rule's name: all rules of the project."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """Since when, and by whom."""

    at_ns: int
    actor: str


@dataclass(frozen=True, slots=True)
class Youth:
    """How long a project is there, and how much it has trained; None before its first write."""

    created_ns: int | None
    finished_runs: int


class Promotions:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, project: str) -> dict[str, Promotion]:
        """What was promoted, by the name of its rule; ``WHOLE`` is the project."""
        query = select(t.promotion.c.alertname, t.promotion.c.at_ns, t.promotion.c.actor)
        with self._database.read() as connection:
            found = connection.execute(query.where(t.promotion.c.project == project))
            return {name: Promotion(at_ns, actor) for name, at_ns, actor in found}

    def youth(self, project: str) -> Youth:
        """What ends a shadow period; drills are no training."""
        created = select(t.project.c.created_ns).where(t.project.c.name == project)
        finished = select(func.count()).where(
            t.run.c.project == project,
            t.run.c.status == "finished",
            t.run.c.environment != DRILL,
        )
        with self._database.read() as connection:
            return Youth(
                connection.execute(created).scalar_one_or_none(),
                connection.execute(finished).scalar_one(),
            )

    def promote(self, project: str, alertname: str, now_ns: int, actor: str) -> Future[Promotion]:
        """Let the pages of a rule, or ``WHOLE``, wake people; audited the first time."""

        def job(connection: Connection) -> Promotion:
            ensure_project(connection, project)
            made = connection.execute(
                insert_or_ignore(connection, t.promotion).values(
                    project=project, alertname=alertname, at_ns=now_ns, actor=actor[:128]
                )
            )
            if made.rowcount == 1:
                subject = alertname or project
                audit.record(project, connection, now_ns, actor, "shadow.promote", subject, {})
            found = connection.execute(
                select(t.promotion.c.at_ns, t.promotion.c.actor).where(
                    t.promotion.c.project == project, t.promotion.c.alertname == alertname
                )
            ).one()
            return Promotion(found.at_ns, found.actor)

        return self._database.write(job, Priority.ALERT)

    def would_have_paged(self, project: str) -> Mapping[str, int]:
        """How many alerts of each rule would have paged; drills do not count."""
        word = t.alert.c.annotations[SHADOW].as_string()
        query = (
            select(t.alert.c.alertname, func.count())
            .join(t.run, t.run.c.id == t.alert.c.run_id)
            .where(
                t.alert.c.project == project,
                word == WOULD_HAVE_PAGED,
                t.run.c.deleted_ns.is_(None),
                t.run.c.environment != DRILL,
            )
            .group_by(t.alert.c.alertname)
        )
        with self._database.read() as connection:
            return {row.alertname: row[1] for row in connection.execute(query)}
