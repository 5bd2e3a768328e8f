"""Who evaluates a run, how far it got, and what its detectors remember.

A lease is (scope, epoch, expiry by the database's clock). Each evaluation commit moves the
cursor with its epoch and old position in the WHERE clause; no row means that another
process took over while this one slept, and everything computed under the lease is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority, clock_ns
from gradwarden_server.store.errors import Fenced
from gradwarden_server.store.streams import insert_or_ignore


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to evaluate one scope, until ``expires_ns`` on the database's clock."""

    scope: str
    holder: str
    epoch: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a run was evaluated: log position, and last judged step by attempt ordinal."""

    position: int
    judged: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Detector state as of a log position at or before the cursor."""

    position: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Due:
    """A run that the evaluator must look at: unread batches, or alive and watched by time."""

    run: str
    position: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A deleted run of which alerts still stand."""

    row: int
    run: str


class EvaluationStore:
    """Leases, cursors and snapshots of the runs of a project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, project: str, active_since_ns: int, forsaken_ns: int = 0) -> list[Due]:
        """Runs with batches past their cursor, or active since ``active_since_ns``.

        A run that did not end stays due until nobody heard it since ``forsaken_ns``.
        """
        statement = (
            select(t.run.c.run, t.run.c.position)
            .outerjoin(t.cursor, t.cursor.c.run_id == t.run.c.id)
            .where(
                t.run.c.project == project,
                t.run.c.deleted_ns.is_(None),
                (t.cursor.c.position.is_(None))
                | (t.cursor.c.position < t.run.c.position)
                | ((t.run.c.status == "running") & (t.run.c.last_seen_ns > forsaken_ns))
                | (t.run.c.last_seen_ns > active_since_ns),
            )
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return [Due(row.run, row.position) for row in rows]

    def forgotten(self, project: str) -> list[Forgotten]:
        """Deleted runs whose alerts nobody resolved yet."""
        standing = select(t.alert.c.id).where(
            t.alert.c.run_id == t.run.c.id, t.alert.c.state.in_(("pending", "firing"))
        )
        statement = select(t.run.c.id, t.run.c.run).where(
            t.run.c.project == project, t.run.c.deleted_ns.is_not(None), exists(standing)
        )
        with self._database.read() as connection:
            return [Forgotten(*row) for row in connection.execute(statement)]

    def unjudged(self, project: str, run: str) -> int:
        """Batches of a run that were received and not yet judged."""
        statement = (
            select(t.run.c.position - func.coalesce(t.cursor.c.position, 0))
            .outerjoin(t.cursor, t.cursor.c.run_id == t.run.c.id)
            .where(t.run.c.project == project, t.run.c.run == run)
        )
        with self._database.read() as connection:
            return int(connection.execute(statement).scalar_one_or_none() or 0)

    def acquire(self, project: str, scope: str, holder: str, ttl_ns: int) -> Lease | None:
        """Take or renew the lease; None while another holder's has not expired."""
        name = f"{project}/{scope}"

        def job(connection: Connection) -> Lease | None:
            now = clock_ns(connection)
            expires = now + ttl_ns
            row = connection.execute(
                select(t.lease).where(t.lease.c.scope == name).with_for_update()
            ).one_or_none()
            if row is None:
                made = connection.execute(
                    insert_or_ignore(connection, t.lease)
                    .values(scope=name, holder=holder, epoch=1, expires_ns=expires)
                    .returning(t.lease.c.epoch)
                ).scalar_one_or_none()
                return None if made is None else Lease(scope, holder, 1, expires)
            if row.holder != holder and row.expires_ns > now:
                return None
            kept = row.holder == holder and row.expires_ns > now
            epoch = row.epoch if kept else row.epoch + 1
            connection.execute(
                update(t.lease)
                .where(t.lease.c.scope == name)
                .values(holder=holder, epoch=epoch, expires_ns=expires)
            )
            return Lease(scope, holder, epoch, expires)

        return self._database.write(job, Priority.ALERT).result()

    def release(self, project: str, holder: str | None) -> None:
        """Let the leases of a holder that stops (None: of any) go to whoever asks next."""
        statement = update(t.lease).where(
            t.lease.c.scope.startswith(f"{project}/", autoescape=True)
        )
        if holder is not None:
            statement = statement.where(t.lease.c.holder == holder)
        self._database.write(
            lambda connection: connection.execute(statement.values(expires_ns=0)),
            Priority.ALERT,
        ).result()

    def resume(self, project: str, run_row: int, epoch: int) -> tuple[Cursor, Snapshot | None]:
        """Where to go on from; claims the cursor for ``epoch``.

        Raises:
            Fenced: a newer epoch claimed it already.
        """

        def job(connection: Connection) -> tuple[Cursor, Snapshot | None]:
            connection.execute(
                insert_or_ignore(connection, t.cursor).values(
                    run_id=run_row, epoch=epoch, position=0, judged={}
                )
            )
            claimed = connection.execute(
                update(t.cursor)
                .where(t.cursor.c.run_id == run_row, t.cursor.c.epoch <= epoch)
                .values(epoch=epoch)
            )
            if claimed.rowcount != 1:
                raise Fenced(f"epoch {epoch} of run row {run_row} of {project} is over")
            cursor = connection.execute(select(t.cursor).where(t.cursor.c.run_id == run_row)).one()
            state = connection.execute(
                select(t.detector_state).where(t.detector_state.c.run_id == run_row)
            ).one_or_none()
            judged = {int(ordinal): step for ordinal, step in cursor.judged.items()}
            snapshot = None if state is None else Snapshot(state.position, state.body)
            return Cursor(cursor.position, judged), snapshot

        return self._database.write(job, Priority.ALERT).result()

    def move(
        self,
        project: str,
        connection: Connection,
        run_row: int,
        epoch: int,
        old: Cursor,
        new: Cursor,
    ) -> None:
        """Move the cursor within the caller's transaction.

        Raises:
            Fenced: another process evaluates this run now; the caller's work is undone.
        """
        moved = connection.execute(
            update(t.cursor)
            .where(
                t.cursor.c.run_id == run_row,
                t.cursor.c.epoch == epoch,
                t.cursor.c.position == old.position,
            )
            .values(
                position=new.position,
                judged={str(ordinal): step for ordinal, step in new.judged.items()},
            )
        )
        if moved.rowcount != 1:
            raise Fenced(f"the cursor of run row {run_row} of {project} has moved on")

    def snapshot(
        self, project: str, connection: Connection, run_row: int, snapshot: Snapshot
    ) -> None:
        """Replace the detectors' state within the caller's transaction."""
        connection.execute(delete(t.detector_state).where(t.detector_state.c.run_id == run_row))
        connection.execute(
            insert(t.detector_state).values(
                run_id=run_row, position=snapshot.position, body=snapshot.body
            )
        )
