"""Commands to trainers: open ones ride on the next answer to their rank, until acked.

The table of open commands is tiny and asked for on every ingest, so it is held in memory
and read again once a second and when another server process says that it changed them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update

from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.notices import Topic, announce

CommandKind = Literal["checksums", "capture", "speak", "pause", "resume", "schedule", "halt"]
_OPPOSITES: Mapping[str, tuple[CommandKind, ...]] = {
    "pause": ("pause", "resume"),
    "resume": ("pause", "resume"),
}
LIFETIME_NS = 600 * 1_000_000_000
_FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Command:
    """One thing asked of one rank; repeating it does no harm."""

    id: int
    kind: str
    args: Mapping[str, Any]


class CommandStore:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._open: dict[tuple[str, str, int], list[tuple[int, Command]]] = {}

    def issue(
        self,
        project: str,
        run: str,
        rank: int,
        kind: CommandKind,
        args: Mapping[str, Any],
        *,
        now_ns: int,
        actor: str,
    ) -> Future[int | None]:
        """Ask something of a rank; its id, or None where the run is not known."""

        def job(connection: Connection) -> int | None:
            row = connection.execute(
                select(t.run.c.id).where(
                    t.run.c.project == project, t.run.c.run == run, t.run.c.deleted_ns.is_(None)
                )
            ).scalar_one_or_none()
            if row is None:
                return None
            return self.add(
                project, connection, row, run, rank, kind, args, now_ns=now_ns, actor=actor
            )

        future = self._database.write(job, Priority.ALERT)
        future.add_done_callback(lambda _: self.forget(project))
        return future

    def add(
        self,
        project: str,
        connection: Connection,
        run_row: int,
        run: str,
        rank: int,
        kind: CommandKind,
        args: Mapping[str, Any],
        *,
        now_ns: int,
        actor: str,
    ) -> int:
        """Ask something of a rank within the caller's transaction; its id.

        What the newest open one of its kind asks already is not repeated. Call :meth:`forget`
        after the commit.
        """
        asked = dict(args)
        data = {"rank": rank, "kind": kind, "args": asked}
        audit.record(project, connection, now_ns, actor, "command.issue", run, data)
        newest = (
            select(t.command)
            .where(
                t.command.c.run_id == run_row,
                t.command.c.rank == rank,
                t.command.c.kind.in_(_OPPOSITES.get(kind, (kind,))),
                t.command.c.acked_ns.is_(None),
                t.command.c.expires_ns > now_ns,
            )
            .order_by(t.command.c.id.desc())
            .limit(1)
        )
        row = connection.execute(newest).one_or_none()
        if row is not None and (row.kind, row.args) == (kind, asked):
            return int(row.id)
        values = {"run_id": run_row, "rank": rank, "kind": kind, "args": asked}
        times = {"created_ns": now_ns, "expires_ns": now_ns + LIFETIME_NS}
        statement = insert(t.command).values(values | times).returning(t.command.c.id)
        announce(connection, Topic.COMMANDS)
        return int(connection.execute(statement).scalar_one())

    def forget(self, project: str) -> None:
        """Read open commands anew: some were added in a transaction that is committed now."""
        self._read_at = float("-inf")

    def ack(self, project: str, run: str, rank: int, command: int, now_ns: int) -> Future[bool]:
        """Note that a rank did it; False if there is no such command. Twice is fine."""

        def job(connection: Connection) -> bool:
            owner = select(t.run.c.id).where(t.run.c.project == project, t.run.c.run == run)
            mine = (
                t.command.c.id == command,
                t.command.c.run_id.in_(owner),
                t.command.c.rank == rank,
            )
            connection.execute(
                update(t.command)
                .where(*mine, t.command.c.acked_ns.is_(None))
                .values(acked_ns=now_ns)
            )
            announce(connection, Topic.COMMANDS)
            found = connection.execute(select(t.command.c.id).where(*mine)).scalar_one_or_none()
            return found is not None

        future = self._database.write(job, Priority.ACK)
        future.add_done_callback(lambda _: self.forget(project))
        return future

    def peek(self, project: str, run: str, rank: int, now_ns: int) -> list[Command] | None:
        """Open commands of a rank from memory; None where memory is older than a second."""
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            return None
        held = self._open.get((project, run, rank), ())
        return [command for expires_ns, command in held if expires_ns > now_ns]

    def open(self, project: str, run: str, rank: int, now_ns: int) -> list[Command]:
        """Open commands of a rank, read from the database where memory is too old."""
        with self._lock:
            held = self.peek(project, run, rank, now_ns)
            if held is None:
                self._refresh(now_ns)
                held = self.peek(project, run, rank, now_ns) or []
            return held

    def _refresh(self, now_ns: int) -> None:
        read_at = time.monotonic()
        statement = (
            select(t.command, t.run.c.project, t.run.c.run)
            .join(t.run, t.run.c.id == t.command.c.run_id)
            .where(t.command.c.acked_ns.is_(None), t.command.c.expires_ns > now_ns)
            .order_by(t.command.c.id)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        found: dict[tuple[str, str, int], list[tuple[int, Command]]] = {}
        for row in rows:
            key = (row.project, row.run, row.rank)
            command = Command(row.id, row.kind, row.args)
            found.setdefault(key, []).append((row.expires_ns, command))
        self._open, self._read_at = found, read_at
