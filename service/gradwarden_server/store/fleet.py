"""All runs of a project at a glance: a list costs a few statements, however many runs it shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.ledger import OPEN
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.recorded import unpacked

_NAMES = {"loss": "gradwarden_loss", "grad_norm": "gradwarden_gradient_norm"}
"""Newest values by name, and the derived series that hold the same."""
_NEWEST_ATTEMPT = (
    select(func.max(t.attempt.c.ordinal))
    .where(t.attempt.c.run_id == t.run.c.id)
    .scalar_subquery()
    .label("attempt")
)


class ListedRun(NamedTuple):
    """One run of a list, a tuple because there are thousands.

    ``attempt`` is the newest one's number, ``latest`` newest values by name, where non-finite
    ones are text, None before the evaluator told any.
    """

    id: int
    project: str
    run: str
    name: str
    training_job: str | None
    owner: str | None
    environment: str
    world_size: int
    status: str
    started_ns: int
    ended_ns: int | None
    last_seen_ns: int
    last_step: int | None
    position: int
    latest: Mapping[str, Any] | None
    attempt: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of runs, newest first; ``next_cursor`` asks for the next one."""

    items: list[ListedRun]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Ailment:
    """An alert as far as a line about its run tells of it."""

    alertname: str
    severity: str
    state: str
    reason: str
    active_ns: int
    annotations: Mapping[str, str]


_COLUMNS = [_NEWEST_ATTEMPT if name == "attempt" else t.run.c[name] for name in ListedRun._fields]


class Fleet:
    """Questions about many runs at once, each of them one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self,
        project: str,
        *,
        status: Collection[str] = (),
        query: str = "",
        before: str | None = None,
        limit: int = 50,
    ) -> Listing:
        """Runs, newest first; ``query`` matches run, name, job, model or owner in part."""
        statement = _of(project)
        if status:
            statement = statement.where(t.run.c.status.in_(status))
        if query:
            columns = (
                t.run.c.run,
                t.run.c.name,
                t.run.c.training_job,
                t.run.c.model,
                t.run.c.owner,
            )
            statement = statement.where(
                or_(*(column.icontains(query, autoescape=True) for column in columns))
            )
        if before is not None:
            statement = statement.where(t.run.c.id < int(before))
        statement = statement.order_by(t.run.c.id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        items = list(map(ListedRun._make, rows[:limit]))
        return Listing(items, str(items[-1].id) if len(rows) > limit else None)

    def one(self, project: str, run: str) -> ListedRun | None:
        """One run as a list shows it, or None."""
        with self._database.read() as connection:
            row = connection.execute(_of(project).where(t.run.c.run == run)).one_or_none()
        return None if row is None else ListedRun(*row)

    def ailments(
        self, project: str, runs: Sequence[ListedRun], closed_for: Collection[str]
    ) -> dict[int, list[Ailment]]:
        """By run row: its open alerts, and those that ended for one of these reasons."""
        names = Ailment.__dataclass_fields__
        statement = select(t.alert.c.run_id, *(t.alert.c[name] for name in names)).where(
            t.alert.c.project == project,
            _between(t.alert.c.run_id, runs),
            or_(t.alert.c.state.in_(OPEN), t.alert.c.reason.in_(closed_for)),
        )
        found: dict[int, list[Ailment]] = {}
        with self._database.read() as connection:
            for row, *facts in connection.execute(statement):
                found.setdefault(row, []).append(Ailment(*facts))
        return found

    def last_words(self, project: str, run_rows: Collection[int]) -> dict[int, str]:
        """By run row: the error that its newest finish told, of those that told one."""
        statement = (
            select(t.event.c.run_id, t.event.c.data)
            .join(t.run, t.run.c.id == t.event.c.run_id)
            .where(
                t.run.c.project == project,
                t.event.c.run_id.in_(run_rows),
                t.event.c.kind == "finish",
            )
            .order_by(t.event.c.time_ns, t.event.c.id)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return {row: str(data["error"]) for row, data in rows if data.get("error")}

    def newest_values(
        self, project: str, runs: Sequence[ListedRun]
    ) -> dict[int, Mapping[str, Any]]:
        """By run row: newest values by name, of derived series for runs that hold none."""
        found: dict[int, Mapping[str, Any]] = {
            run.id: run.latest for run in runs if run.latest is not None
        }
        lacking = [run for run in runs if run.latest is None and run.position]
        if lacking:
            newest = (
                select(t.sample_chunk.c.id)
                .where(t.sample_chunk.c.series_id == t.series.c.id)
                .order_by(t.sample_chunk.c.t1_ns.desc(), t.sample_chunk.c.id.desc())
                .limit(1)
                .correlate(t.series)
                .scalar_subquery()
            )
            chunk = t.sample_chunk.alias("newest_chunk")
            within = _between(t.series.c.run_id, lacking)
            told = self._series(project, chunk, chunk.c.id == newest, within, _NAMES.values())
            for row in {run.id for run in lacking} & told.keys():
                series = told[row]
                found[row] = {
                    name: series[derived][-1]
                    for name, derived in _NAMES.items()
                    if derived in series
                }
        return found

    def recent_norms(
        self, project: str, run_rows: Collection[int], points: int
    ) -> dict[int, list[float]]:
        """By run row: the newest ``points`` global gradient norms, oldest first."""
        # Chunks hold at least one point each, so as many chunks as points are enough.
        oldest = (
            select(t.sample_chunk.c.t1_ns)
            .where(t.sample_chunk.c.series_id == t.series.c.id)
            .order_by(t.sample_chunk.c.t1_ns.desc())
            .offset(points - 1)
            .limit(1)
            .correlate(t.series)
            .scalar_subquery()
        )
        chunk = t.sample_chunk.alias("recent_chunk")
        recent = chunk.c.t1_ns >= func.coalesce(oldest, -(2**63))
        norm = _NAMES["grad_norm"]
        within = t.series.c.run_id.in_(run_rows)
        told = self._series(
            project, chunk, and_(chunk.c.series_id == t.series.c.id, recent), within, [norm]
        )
        return {row: series[norm][-points:] for row, series in told.items()}

    def _series(
        self,
        project: str,
        chunk: Any,
        which: ColumnElement[bool],
        within: ColumnElement[bool],
        names: Collection[str],
    ) -> dict[int, dict[str, list[float]]]:
        """By run row and name: the values of the newest attempt, of its first replica group."""
        statement = (
            select(t.series.c.run_id, t.series.c.name, t.series.c.labels, chunk.c.body)
            .join_from(t.series, chunk, which)
            .where(t.series.c.project == project, within, t.series.c.name.in_(names))
            .order_by(t.series.c.id, chunk.c.t0_ns, chunk.c.id)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        bodies: dict[tuple[int, str], dict[tuple[int, int], list[bytes]]] = {}
        for row, name, labels, body in rows:
            place = int(labels.get("attempt", 0)), -int(labels.get("group", 0))
            bodies.setdefault((row, name), {}).setdefault(place, []).append(body)
        found: dict[int, dict[str, list[float]]] = {}
        for (row, name), places in bodies.items():
            points = [point for body in places[max(places)] for point in unpacked(body)]
            found.setdefault(row, {})[name] = [value for _, value in points]
        return found


def _of(project: str) -> Select[Any]:
    return select(*_COLUMNS).where(t.run.c.project == project, t.run.c.deleted_ns.is_(None))


def _between(column: Any, runs: Sequence[ListedRun]) -> ColumnElement[bool]:
    """Rows of these runs and of those between: two bounds cost less than a thousand numbers."""
    rows = [run.id for run in runs]
    within: ColumnElement[bool] = column.between(min(rows, default=0), max(rows, default=-1))
    return within
