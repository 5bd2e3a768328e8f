"""How runs ended: judged once their end is certain, or said by a person, who is not overruled."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, func, insert, or_, select

from gradwarden_server.model import DRILL
from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.log.recorded import Derived, RecordedSeries

ENDED = "gradwarden_run_ended_seconds"
GOOD = "gradwarden_run_good"
CONVERGED = "gradwarden_run_converge_seconds"

AT_ONCE = 500
_STATUSES = ("running", "finished", "failed", "cancelled", "preempted")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run whose outcome is not known, or not of its newest end."""

    row: int
    run: str
    status: str
    started_ns: int
    ended_ns: int | None
    last_seen_ns: int
    target_loss: float | None
    loss: float | str | None


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome of a run; ``good`` None leaves it out of the count."""

    good: bool | None
    reason: str
    ended_ns: int
    marked: bool = False
    at_ns: int = 0
    actor: str = ""


class Outcomes:
    """Every method takes the project first."""

    def __init__(self, database: Database, recorded: RecordedSeries) -> None:
        self._database = database
        self._recorded = recorded

    def of(self, project: str, run: str) -> Settled | None:
        """The outcome of one run; None before it is known."""
        query = (
            select(t.outcome)
            .join(t.run, t.run.c.id == t.outcome.c.run_id)
            .where(t.run.c.project == project, t.run.c.run == run)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return Settled(row.good, row.reason, row.ended_ns, row.marked, row.at_ns, row.actor)

    def candidates(
        self, project: str, silent_since_ns: int, heard_since_ns: int = 0, after: int = 0
    ) -> list[Candidate]:
        """Runs that ended, or are silent since a moment, without an outcome of that end.

        Those that nobody heard since ``heard_since_ns`` are left out: there are many, and nearly
        all are settled. At most :data:`AT_ONCE` come, by their rows behind ``after``.
        """
        newer = and_(
            t.outcome.c.marked.is_(False),
            func.coalesce(t.run.c.ended_ns, t.run.c.last_seen_ns) > t.outcome.c.ended_ns,
        )
        columns = (
            t.run.c.id,
            t.run.c.run,
            t.run.c.status,
            t.run.c.started_ns,
            t.run.c.ended_ns,
            t.run.c.last_seen_ns,
            t.run.c.target_loss,
            t.run.c.latest,
        )
        query = (
            select(*columns)
            .outerjoin(t.outcome, t.outcome.c.run_id == t.run.c.id)
            .where(
                t.run.c.project == project,
                t.run.c.deleted_ns.is_(None),
                t.run.c.environment != DRILL,
                t.run.c.id > after,
                # Project, status and last sign of life are an index.
                t.run.c.status.in_(_STATUSES),
                t.run.c.last_seen_ns >= heard_since_ns,
                or_(t.run.c.status != "running", t.run.c.last_seen_ns < silent_since_ns),
                or_(t.outcome.c.run_id.is_(None), newer),
            )
            .order_by(t.run.c.id)
            .limit(AT_ONCE)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Candidate(*row[:7], (row.latest or {}).get("loss")) for row in rows]

    def settle(
        self, project: str, found: list[tuple[Candidate, Settled]], actor: str
    ) -> Future[None]:
        """Keep outcomes, with the series that objectives read, in one transaction.

        What a person said since the candidates were read stands.
        """

        def job(connection: Connection) -> None:
            told = select(t.outcome.c.run_id).where(
                t.outcome.c.run_id.in_([candidate.row for candidate, _ in found]),
                t.outcome.c.marked.is_(True),
            )
            marked = set(connection.execute(told).scalars())
            mine = [
                (candidate, settled) for candidate, settled in found if candidate.row not in marked
            ]
            for candidate, settled in mine:
                _keep(connection, candidate.row, settled, actor)
            series = [one for candidate, settled in mine for one in _series(candidate, settled)]
            self._recorded.append_all(project, connection, series)

        return self._database.write(job, Priority.ALERT)

    def mark(
        self, project: str, run: str, good: bool, reason: str, now_ns: int, actor: str
    ) -> Future[bool]:
        """A person's word, which holds from now on; False where there is no such run. Audited."""

        def job(connection: Connection) -> bool:
            query = select(t.run.c.id, t.run.c.ended_ns, t.run.c.last_seen_ns).where(
                t.run.c.project == project, t.run.c.run == run, t.run.c.deleted_ns.is_(None)
            )
            row = connection.execute(query).one_or_none()
            if row is None:
                return False
            ended_ns = row.last_seen_ns if row.ended_ns is None else row.ended_ns
            settled = Settled(good, reason, ended_ns, True, now_ns)
            _keep(connection, row.id, settled, actor)
            told = [
                Derived(row.id, ENDED, {}, [(ended_ns, ended_ns / 1e9)]),
                Derived(row.id, GOOD, {}, [(now_ns, float(good))]),
            ]
            self._recorded.append_all(project, connection, told)
            said = {"good": good, "reason": reason}
            audit.record(project, connection, now_ns, actor, "run.mark", run, said)
            return True

        return self._database.write(job)


def _keep(connection: Connection, row: int, settled: Settled, actor: str) -> None:
    connection.execute(delete(t.outcome).where(t.outcome.c.run_id == row))
    connection.execute(
        insert(t.outcome).values(
            run_id=row,
            ended_ns=settled.ended_ns,
            good=settled.good,
            reason=settled.reason[:256],
            marked=settled.marked,
            at_ns=settled.at_ns,
            actor=actor[:128],
        )
    )


def _series(of: Candidate, settled: Settled) -> list[Derived]:
    if settled.good is None:
        return []
    at_ns = settled.ended_ns
    told = [
        Derived(of.row, ENDED, {}, [(at_ns, at_ns / 1e9)]),
        Derived(of.row, GOOD, {}, [(at_ns, float(settled.good))]),
    ]
    reached = of.target_loss is None or (
        isinstance(of.loss, int | float) and of.loss <= of.target_loss
    )
    if settled.good and reached:
        told.append(Derived(of.row, CONVERGED, {}, [(at_ns, (at_ns - of.started_ns) / 1e9)]))
    return told
