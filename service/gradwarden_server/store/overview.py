"""A few sums over all projects, for the service's own metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select

from gradwarden_server.model import DRILL
from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.ledger import OPEN
from gradwarden_server.store.database import Database
from gradwarden_server.telemetry import RunGauges, Telemetry


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A running run as a scrape sees it; ``latest`` are newest values by name, if told."""

    id: int
    project: str
    run: str
    last_step: int | None
    latest: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What is in the house."""

    runs: dict[str, int]
    alerts: dict[tuple[str, str], int]
    live: list[LiveRun]
    live_count: int


class Overview:
    """Sums for operators of the service."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def totals(self, project: str | None, most_live: int) -> Totals:
        """Runs by status, open alerts by severity and state, and the newest running runs.

        Sums are over all projects, without drills; runs are named of one project, or of all for
        None.
        """
        earnest = or_(t.run.c.environment.is_(None), t.run.c.environment != DRILL)
        statuses = (
            select(t.run.c.status, func.count())
            .where(t.run.c.deleted_ns.is_(None), earnest)
            .group_by(t.run.c.status)
        )
        alerts = (
            select(t.alert.c.severity, t.alert.c.state, func.count())
            .outerjoin(t.run, t.run.c.id == t.alert.c.run_id)
            .where(t.alert.c.state.in_(OPEN), t.run.c.deleted_ns.is_(None), earnest)
            .group_by(t.alert.c.severity, t.alert.c.state)
        )
        live = (
            select(t.run.c.id, t.run.c.project, t.run.c.run, t.run.c.last_step, t.run.c.latest)
            .where(t.run.c.status == "running", t.run.c.deleted_ns.is_(None))
            .order_by(t.run.c.id.desc())
        )
        if project is not None:
            live = live.where(t.run.c.project == project)
        with self._database.read() as connection:
            return Totals(
                runs=dict(connection.execute(statuses).tuples().all()),
                alerts={(row[0], row[1]): row[2] for row in connection.execute(alerts)},
                live=[LiveRun(*row) for row in connection.execute(live.limit(most_live))],
                live_count=connection.execute(
                    select(func.count()).select_from(live.order_by(None).subquery())
                ).scalar_one(),
            )


def gauges(live: LiveRun, numbers: Telemetry) -> RunGauges:
    """A running run as its gauges; what was counted of it since the start is in ``numbers``."""
    norm = (live.latest or {}).get("grad_norm")
    return RunGauges(
        live.project,
        live.run,
        live.last_step,
        None if norm is None else float(norm),
        numbers.nonfinite(live.project, live.run),
    )
