"""How long each project keeps what; what is older is dropped by :mod:`.expiry`."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.streams import ensure_project

DAY_NS = 86_400 * 1_000_000_000
SERIES_DAYS = 400
"""Derived and recorded series are small, and outlive the frames that they came from."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Days for which a project keeps what; None is for ever.

    ``raw_days`` for every value of every layer, ``rollup_days`` for roll-ups over 16 steps
    (wider ones stay with their run), ``run_days`` for runs with all that they have.
    """

    raw_days: float | None = 14.0
    rollup_days: float | None = 90.0
    run_days: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would keep the fine for longer than the coarse.

        Raises:
            ValueError: the text names the field, what was found, and the remedy.
        """
        held = asdict(self)
        for name, days in held.items():
            if days is not None and not 0 < days <= 36500:
                raise ValueError(f"{name}: {days:g}; give 0 to 36500 days, or null for ever")
        for finer, coarser in (("raw_days", "rollup_days"), ("rollup_days", "run_days")):
            least, most = held[finer], held[coarser]
            if most is not None and (least is None or least > most):
                shown = "for ever" if least is None else f"{least:g} days"
                raise ValueError(
                    f"{coarser}: {most:g} days, while {finer} is {shown}; "
                    f"give {coarser} at least as many"
                )


class RetentionStore:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, project: str) -> Policy:
        """What holds for a project; the defaults where nobody said otherwise."""
        query = select(t.retention).where(t.retention.c.project == project)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return Policy() if row is None else _policy(row)

    def put(self, project: str, policy: Policy, now_ns: int, actor: str) -> Future[None]:
        """Replace it; audited."""

        def job(connection: Connection) -> None:
            ensure_project(connection, project)
            connection.execute(delete(t.retention).where(t.retention.c.project == project))
            connection.execute(insert(t.retention).values(project=project, **asdict(policy)))
            audit.record(
                project, connection, now_ns, actor, "retention.set", project, asdict(policy)
            )

        return self._database.write(job)


def _policy(row: Row[Any]) -> Policy:
    return Policy(row.raw_days, row.rollup_days, row.run_days)
