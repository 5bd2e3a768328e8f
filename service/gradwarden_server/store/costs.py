"""What runs held and what hardware costs: the raw numbers of reports."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select

from gradwarden_server.model import DRILL
from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.streams import ensure_project, insert_or_ignore

ANY_GPU = "*"
"""The price of every type that has none of its own."""


@dataclass(frozen=True, slots=True)
class HeldAttempt:
    """One attempt of a run."""

    status: str
    first_step: int
    last_step: int | None
    started_ns: int
    ended_ns: int | None


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run with its attempts in order; ``gpu`` is the type of its GPUs, if it has any.

    ``good`` is how it ended (None: not yet, or not counted), ``armed`` and ``watchable`` how many
    of its detectors watch it, where known.
    """

    row: int
    run: str
    name: str
    owner: str
    model: str
    world_size: int
    cost_per_hour: float | None
    status: str
    started_ns: int
    last_seen_ns: int
    good: bool | None
    ended_ns: int | None
    latest: dict[str, Any]
    gpu: str
    attempts: tuple[HeldAttempt, ...]


@dataclass(frozen=True, slots=True)
class Price:
    """What an hour of one GPU of a type costs; ``ANY_GPU`` stands for all others."""

    gpu: str
    per_hour: float
    currency: str


class Costs:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def runs(self, project: str, since_ns: int, until_ns: int) -> list[HeldRun]:
        """Runs that were there within a time, but for drills, oldest first."""
        within = (
            t.run.c.project == project,
            t.run.c.deleted_ns.is_(None),
            t.run.c.environment != DRILL,
            t.run.c.started_ns <= until_ns,
            t.run.c.last_seen_ns >= since_ns,
        )
        runs = (
            select(t.run, t.outcome.c.good, t.outcome.c.ended_ns.label("judged_ns"))
            .outerjoin(t.outcome, t.outcome.c.run_id == t.run.c.id)
            .where(*within)
            .order_by(t.run.c.id)
        )
        last = (
            select(func.max(t.stream.c.last_step))
            .where(t.stream.c.attempt_id == t.attempt.c.id)
            .scalar_subquery()
            .label("last_step")
        )
        attempts = (
            select(t.attempt, last)
            .join(t.run, t.run.c.id == t.attempt.c.run_id)
            .where(*within)
            .order_by(t.attempt.c.run_id, t.attempt.c.ordinal)
        )
        gpu = t.stream.c.place["gpu_name"].as_string()
        types = (
            select(t.stream.c.run_id, func.max(gpu))
            .join(t.run, t.run.c.id == t.stream.c.run_id)
            .where(*within, gpu.is_not(None))
            .group_by(t.stream.c.run_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(runs).all()
            held: dict[int, list[HeldAttempt]] = {}
            for a in connection.execute(attempts):
                one = HeldAttempt(a.status, a.first_step, a.last_step, a.started_ns, a.ended_ns)
                held.setdefault(a.run_id, []).append(one)
            gpus = {row[0]: row[1] for row in connection.execute(types)}
        return [
            HeldRun(
                row=row.id,
                run=row.run,
                name=row.name,
                owner=row.owner or "",
                model=row.model or "",
                world_size=row.world_size,
                cost_per_hour=row.cost_per_hour,
                status=row.status,
                started_ns=row.started_ns,
                last_seen_ns=row.last_seen_ns,
                good=row.good,
                ended_ns=row.judged_ns,
                latest=row.latest or {},
                gpu=gpus.get(row.id, ""),
                attempts=tuple(held.get(row.id, ())),
            )
            for row in rows
        ]

    def saved_ns(self, project: str, run_rows: Sequence[int]) -> dict[int, int]:
        """By run row, when it last saved a checkpoint; those that never did are left out."""
        query = (
            select(t.event.c.run_id, func.max(t.event.c.time_ns))
            .join(t.run, t.run.c.id == t.event.c.run_id)
            .where(
                t.run.c.project == project,
                t.event.c.run_id.in_(run_rows),
                t.event.c.kind == "checkpoint",
            )
            .group_by(t.event.c.run_id)
        )
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def fired(self, project: str, since_ns: int, until_ns: int) -> tuple[int, int]:
        """How many pages and tickets fired within a time, and how many of all stand open now."""
        told = or_(t.alert.c.severity == "page", t.alert.c.severity == "ticket")
        mine = t.alert.c.project == project, told
        fired = select(func.count()).where(*mine, t.alert.c.fired_ns.between(since_ns, until_ns))
        open_ = select(func.count()).where(*mine, t.alert.c.state == "firing")
        with self._database.read() as connection:
            return connection.execute(fired).scalar_one(), connection.execute(open_).scalar_one()

    def prices(self, project: str) -> list[Price]:
        """The price table, by type."""
        query = select(t.price).where(t.price.c.project == project).order_by(t.price.c.gpu)
        with self._database.read() as connection:
            return [Price(row.gpu, row.per_hour, row.currency) for row in connection.execute(query)]

    def put_prices(
        self, project: str, prices: Sequence[Price], now_ns: int, actor: str
    ) -> Future[None]:
        """Replace the price table; audited."""

        def job(connection: Connection) -> None:
            ensure_project(connection, project)
            connection.execute(delete(t.price).where(t.price.c.project == project))
            rows = [
                {"project": project, "gpu": p.gpu, "per_hour": p.per_hour, "currency": p.currency}
                for p in prices
            ]
            if rows:
                connection.execute(insert(t.price), rows)
            said = {p.gpu: f"{p.per_hour:g} {p.currency}" for p in prices}
            audit.record(project, connection, now_ns, actor, "prices.set", project, said)

        return self._database.write(job)

    def was_sent(self, project: str, receiver: str, period: str) -> bool:
        """Whether the report of a period went to a receiver."""
        mine = _report(project, receiver, period)
        with self._database.read() as connection:
            return (
                connection.execute(select(t.report_sent.c.at_ns).where(*mine)).first() is not None
            )

    def claim_report(
        self, project: str, connection: Connection, receiver: str, period: str, now_ns: int
    ) -> bool:
        """Within the caller's transaction, be the one who sends a report; False for all others."""
        ensure_project(connection, project)
        row = {"project": project, "receiver": receiver, "period": period, "at_ns": now_ns}
        adding = insert_or_ignore(connection, t.report_sent).values(row)
        return connection.execute(adding.returning(t.report_sent.c.period)).first() is not None


def _report(project: str, receiver: str, period: str) -> tuple[Any, ...]:
    sent = t.report_sent.c
    return sent.project == project, sent.receiver == receiver, sent.period == period
