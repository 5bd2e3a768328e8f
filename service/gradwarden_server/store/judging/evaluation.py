"""Who evaluates a run, how far it got, and what its detectors remember.

A lease is (scope, epoch, expiry by the database's clock). Each evaluation commit moves the
cursor with its epoch and old position in the WHERE clause; no row means that another
process took over while this one slept, and everything computed under the lease is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, text, update

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
    """How far a run was evaluated: log position, and last judged step by attempt ordinal.

    ``recorded`` is the last step of each attempt whose derived points are stored; those after
    it are derived from the log again when they are needed.
    """

    position: int
    judged: Mapping[int, int]
    recorded: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """A cursor to be moved by whoever holds the run's lease."""

    run_row: int
    epoch: int
    old: Cursor
    new: Cursor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Detector state as of a log position at or before the cursor."""

    position: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A deleted run of which alerts still stand."""

    row: int
    run: str


_MOVED = "cursor.run_id = new.run_id AND cursor.epoch = new.epoch AND cursor.position = new.old"
_MOVE = {
    "sqlite": text(
        "UPDATE cursor SET position = new.position, judged = new.judged FROM (SELECT "
        "json_extract(value, '$.run_id') AS run_id, json_extract(value, '$.epoch') AS epoch, "
        "json_extract(value, '$.old') AS old, json_extract(value, '$.new') AS position, "
        f"json_extract(value, '$.judged') AS judged FROM json_each(:rows)) AS new WHERE {_MOVED}"
    ),
    "postgresql": text(
        'UPDATE cursor SET position = new."new", judged = new.judged '
        "FROM json_to_recordset(CAST(:rows AS json)) AS "
        'new(run_id bigint, epoch bigint, old bigint, "new" bigint, judged json) '
        f"WHERE {_MOVED}"
    ),
}
_TELL = {
    "sqlite": text(
        "UPDATE run SET latest = new.latest FROM (SELECT json_extract(value, '$.id') AS id, "
        "json_extract(value, '$.latest') AS latest FROM json_each(:rows)) AS new "
        "WHERE run.id = new.id AND run.project = :project"
    ),
    "postgresql": text(
        "WITH new AS (SELECT * FROM json_to_recordset(CAST(:rows AS json)) "
        "AS new(id bigint, latest json)), free AS (SELECT run.id FROM run "
        "WHERE run.id IN (SELECT new.id FROM new) FOR NO KEY UPDATE SKIP LOCKED) "
        "UPDATE run SET latest = new.latest FROM new JOIN free ON free.id = new.id "
        "WHERE run.id = new.id AND run.project = :project"
    ),
}


class EvaluationStore:
    """Leases, cursors and snapshots of the runs of a project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def forgotten(self, project: str) -> list[Forgotten]:
        """Deleted runs whose alerts nobody resolved yet."""
        standing = (
            select(t.alert.c.id)
            .where(t.alert.c.run_id == t.run.c.id, t.alert.c.state.in_(("pending", "firing")))
            .where(t.alert.c.rule_group.is_(None))
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
        return self.acquire_all(project, [scope], holder, ttl_ns).get(scope)

    def acquire_all(
        self, project: str, scopes: Collection[str], holder: str, ttl_ns: int
    ) -> dict[str, Lease]:
        """Take or renew many leases; those of others that have not expired are left out."""
        names = {f"{project}/{scope}": scope for scope in sorted(scopes)}

        def job(connection: Connection) -> dict[str, Lease]:
            now = clock_ns(connection)
            expires = now + ttl_ns
            found = connection.execute(
                select(t.lease)
                .where(t.lease.c.scope.in_(names))
                .order_by(t.lease.c.scope)
                .with_for_update()
            ).all()
            leases: dict[str, Lease] = {}
            # Nobody took one of ours that ran out, in a long round: its holder would be another.
            kept = [row for row in found if row.holder == holder]
            for row in kept:
                leases[names[row.scope]] = Lease(names[row.scope], holder, row.epoch, expires)
            if kept:
                renewed = [row.scope for row in kept]
                connection.execute(
                    update(t.lease).where(t.lease.c.scope.in_(renewed)).values(expires_ns=expires)
                )
            for row in found:
                if row.holder != holder and row.expires_ns <= now:
                    connection.execute(
                        update(t.lease)
                        .where(t.lease.c.scope == row.scope)
                        .values(holder=holder, epoch=row.epoch + 1, expires_ns=expires)
                    )
                    scope = names[row.scope]
                    leases[scope] = Lease(scope, holder, row.epoch + 1, expires)
            for name in names.keys() - {row.scope for row in found}:
                made = connection.execute(
                    insert_or_ignore(connection, t.lease)
                    .values(scope=name, holder=holder, epoch=1, expires_ns=expires)
                    .returning(t.lease.c.epoch)
                ).scalar_one_or_none()
                if made is not None:
                    leases[names[name]] = Lease(names[name], holder, 1, expires)
            return leases

        return self._database.write(job, Priority.ALERT).result()

    def check(self, project: str, connection: Connection, lease: Lease) -> None:
        """Hold a lease until the end of the caller's transaction.

        Raises:
            Fenced: another process took it.
        """
        mine = select(t.lease.c.epoch).where(t.lease.c.scope == f"{project}/{lease.scope}")
        epoch = connection.execute(mine.with_for_update()).scalar_one_or_none()
        if epoch != lease.epoch:
            raise Fenced(f"{lease.scope} of {project} is held by another process")

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
            snapshot = None if state is None else Snapshot(state.position, state.body)
            return Cursor(cursor.position, *_unpacked(cursor.judged)), snapshot

        return self._database.write(job, Priority.ALERT).result()

    def kept(self, project: str, run_row: int) -> Snapshot | None:
        """The newest state of a run's detectors, for reading only."""
        query = (
            select(t.detector_state.c.position, t.detector_state.c.body)
            .join(t.run, t.run.c.id == t.detector_state.c.run_id)
            .where(t.run.c.project == project, t.detector_state.c.run_id == run_row)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Snapshot(row.position, row.body)

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
        self.move_all(project, connection, [Move(run_row, epoch, old, new)])

    def move_all(self, project: str, connection: Connection, moves: Sequence[Move]) -> None:
        """Move the cursors of many runs within the caller's transaction.

        Raises:
            Fenced: another process evaluates one of them now; the caller's work is undone.
        """
        rows = [
            {
                "run_id": move.run_row,
                "epoch": move.epoch,
                "old": move.old.position,
                "new": move.new.position,
                "judged": _packed(move.new),
            }
            for move in moves
        ]
        moved = connection.execute(_MOVE[connection.dialect.name], {"rows": json.dumps(rows)})
        if moved.rowcount != len(moves):
            which = ", ".join(str(move.run_row) for move in moves)
            raise Fenced(f"the cursor of run row {which} of {project} has moved on")

    def tell_latest(
        self, project: str, connection: Connection, latest: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Keep newest values by name, by run row, for lists of runs.

        On PostgreSQL a run whose row is being written waits for its next values: what is
        shown must not wait, with rows of other runs in hand, for what is stored.
        """
        rows = [{"id": row, "latest": values} for row, values in sorted(latest.items())]
        asked = {"rows": json.dumps(rows), "project": project}
        connection.execute(_TELL[connection.dialect.name], asked)

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


def _packed(cursor: Cursor) -> dict[str, list[int | None]]:
    """Judged and recorded step, by attempt ordinal."""
    return {
        str(ordinal): [step, cursor.recorded.get(ordinal)]
        for ordinal, step in cursor.judged.items()
    }


def _unpacked(held: Mapping[str, Any]) -> tuple[dict[int, int], dict[int, int]]:
    """Before points were kept back a moment, all that was judged was recorded."""
    pairs = {
        int(ordinal): steps if isinstance(steps, list) else [steps, steps]
        for ordinal, steps in held.items()
    }
    judged = {ordinal: steps[0] for ordinal, steps in pairs.items()}
    recorded = {o: steps[1] for o, steps in pairs.items() if steps[1] is not None}
    return judged, recorded
