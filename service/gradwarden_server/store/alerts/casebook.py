"""What is known of alerts beyond their state: who was told, how such ones ended, what was done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, exists, func, or_, select

from gradwarden_server.model import Alert
from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.ledger import ACKNOWLEDGED, NOTED, as_alert, of_project
from gradwarden_server.store.alerts.told import Delivery, deliveries
from gradwarden_server.store.database import Database
from gradwarden_server.store.records import RunRecord
from gradwarden_server.store.runs import record


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody wrote of an alert."""

    at_ns: int
    by: str
    text: str


@dataclass(frozen=True, slots=True)
class Concerned:
    """A run that alerts speak of; ``gpus`` whether any of its processes named a GPU."""

    run: RunRecord
    gpus: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one incident went: whether anybody wrote of it, and whether a message of it arrived."""

    alert: Alert
    noted: bool
    told: bool


class Casebook:
    """Every method takes the project first and reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def told(self, project: str, alerts: Sequence[Alert]) -> Mapping[int, Sequence[Delivery]]:
        """Who was told of each alert, by its id, oldest message first."""
        with self._database.read() as connection:
            return deliveries(project, connection, [one.id for one in alerts if one.id is not None])

    def concerned(self, project: str, runs: Collection[str]) -> dict[str, Concerned]:
        """Runs by their identifiers."""
        query = select(t.run).where(
            t.run.c.project == project, t.run.c.run.in_(runs), t.run.c.deleted_ns.is_(None)
        )
        with self._database.read() as connection:
            records = [record(row) for row in connection.execute(query)]
            on_gpus = set(
                connection.execute(
                    select(t.stream.c.run_id)
                    .where(
                        t.stream.c.run_id.in_([one.id for one in records]),
                        t.stream.c.place["gpu_name"].as_string().is_not(None),
                    )
                    .distinct()
                ).scalars()
            )
        return {one.run: Concerned(one, one.id in on_gpus) for one in records}

    def alike(self, project: str, alertname: str, since_ns: int, limit: int) -> list[Alert]:
        """The newest alerts of a name that fired since a moment."""
        query = (
            of_project(project)
            .where(
                t.alert.c.alertname == alertname,
                t.alert.c.fired_ns >= since_ns,
                t.run.c.deleted_ns.is_(None),
            )
            .order_by(t.alert.c.fired_ns.desc(), t.alert.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [as_alert(row) for row in connection.execute(query)]

    def said(self, project: str, alerts: Iterable[int]) -> dict[int, list[Said]]:
        """What people wrote of alerts, by id, oldest first."""
        query = (
            select(t.alert_transition)
            .join(t.alert, t.alert.c.id == t.alert_transition.c.alert_id)
            .where(
                t.alert.c.project == project,
                t.alert.c.id.in_(list(alerts)),
                t.alert_transition.c.reason.in_((NOTED, ACKNOWLEDGED)),
            )
            .order_by(t.alert_transition.c.id)
        )
        found: dict[int, list[Said]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                if row.annotations.get("text"):
                    words = Said(row.at_ns, row.annotations["by"], row.annotations["text"])
                    found.setdefault(row.alert_id, []).append(words)
        return found

    def outcomes(self, project: str, since_ns: int) -> list[Outcome]:
        """Every incident that fired since a moment, oldest first."""
        noted, spoken = _done()
        query = (
            of_project(project)
            .add_columns(noted.label("noted"), spoken.label("spoken"))
            .where(t.alert.c.fired_ns >= since_ns, t.run.c.deleted_ns.is_(None))
            .order_by(t.alert.c.fired_ns, t.alert.c.id)
        )
        with self._database.read() as connection:
            rows: Sequence[Row[Any]] = connection.execute(query).all()
        return [Outcome(as_alert(row), bool(row.noted), bool(row.spoken)) for row in rows]

    def acted(self, project: str, since_ns: int) -> tuple[int, int]:
        """Of the pages and tickets that fired since a moment and were told: of how many somebody
        wrote or took care, and how many there were."""
        noted, spoken = _done()
        cared = or_(noted, t.alert.c.acked_ns.is_not(None))
        query = (
            select(func.count().filter(cared), func.count())
            .select_from(t.alert)
            .outerjoin(t.run, t.run.c.id == t.alert.c.run_id)
            .where(
                t.alert.c.project == project,
                t.alert.c.fired_ns >= since_ns,
                t.alert.c.severity.in_(("page", "ticket")),
                t.run.c.deleted_ns.is_(None),
                spoken,
            )
        )
        with self._database.read() as connection:
            cared_for, told = connection.execute(query).one()
        return cared_for, told

    def firing(self, project: str, alertname: str) -> list[Alert]:
        """Every alert of a name that fires, the newest first."""
        query = (
            of_project(project)
            .where(
                t.alert.c.state == "firing",
                t.alert.c.alertname == alertname,
                t.run.c.deleted_ns.is_(None),
            )
            .order_by(t.alert.c.active_ns.desc(), t.alert.c.id.desc())
        )
        with self._database.read() as connection:
            return [as_alert(row) for row in connection.execute(query)]

    def firing_since(self, project: str, since_ns: int) -> list[Mapping[str, str]]:
        """The labels of every alert that fired at any time since a moment."""
        query = select(t.alert.c.labels).where(
            t.alert.c.project == project,
            and_(
                t.alert.c.fired_ns.is_not(None),
                or_(t.alert.c.resolved_ns.is_(None), t.alert.c.resolved_ns >= since_ns),
            ),
        )
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())


def _done() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whether anybody wrote of an alert, and whether a message of it arrived."""
    line = t.alert_transition
    noted = exists().where(line.c.alert_id == t.alert.c.id, line.c.reason == NOTED)
    # A firing that was let through may have been over before its group's message left.
    spoken = exists().where(
        t.telling.c.alert_id == t.alert.c.id,
        t.outbox.c.id == t.telling.c.outbox_id,
        t.outbox.c.state == "sent",
    )
    return noted, spoken
