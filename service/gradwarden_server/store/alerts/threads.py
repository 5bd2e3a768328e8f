"""The first message of each group that a receiver with threads was told, over restarts."""

from __future__ import annotations

import hashlib
import time

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select

from gradwarden_server.model import Thread
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.tables import receiver_thread as t


class ReceiverThreads:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, project: str, receiver: str, group_key: str) -> Thread | None:
        """The thread of a group that was told and is not over."""
        query = select(t.c.place, t.c.anchor).where(_mine(project, receiver, group_key))
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Thread(row.place, row.anchor)

    def keep(self, project: str, receiver: str, group_key: str, thread: Thread) -> None:
        """Remember it, in place of an older one."""
        values = {
            "project": project,
            "receiver": receiver,
            "group_hash": _hash(group_key),
            "place": thread.place,
            "anchor": thread.anchor,
            "made_ns": time.time_ns(),
        }

        def job(connection: Connection) -> None:
            connection.execute(delete(t).where(_mine(project, receiver, group_key)))
            connection.execute(insert(t).values(values))

        self._database.write(job, Priority.ALERT).result()

    def forget(self, project: str, receiver: str, group_key: str) -> None:
        """The group is over; what comes next begins anew."""
        gone = delete(t).where(_mine(project, receiver, group_key))
        self._database.write(lambda connection: connection.execute(gone), Priority.ALERT).result()


def _mine(project: str, receiver: str, group_key: str) -> ColumnElement[bool]:
    return and_(
        t.c.project == project, t.c.receiver == receiver, t.c.group_hash == _hash(group_key)
    )


def _hash(group_key: str) -> str:
    # A group's key may be longer than what an index takes.
    return hashlib.sha256(group_key.encode()).hexdigest()
