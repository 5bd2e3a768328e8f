"""Open alerts as a stream of news tells of them: which there are and in what state, no more."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select

from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.ledger import OPEN
from gradwarden_server.store.database import Database

MOST = 1000


class StandingAlert(NamedTuple):
    """One open alert; ``run`` is None for one of the whole project."""

    id: int
    run: str | None
    alertname: str
    severity: str
    state: str
    muted: str
    acked_ns: int | None


class Standing:
    """The open alerts of a project in one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, project: str) -> list[StandingAlert]:
        """The newest thousand."""
        alert = t.alert.c
        columns = [t.run.c.run if name == "run" else alert[name] for name in StandingAlert._fields]
        statement = (
            select(*columns)
            .select_from(t.alert.outerjoin(t.run, t.run.c.id == alert.run_id))
            .where(alert.project == project, alert.state.in_(OPEN), t.run.c.deleted_ns.is_(None))
            .order_by(alert.id.desc())
            .limit(MOST)
        )
        with self._database.read() as connection:
            return [StandingAlert(*row) for row in connection.execute(statement)]
