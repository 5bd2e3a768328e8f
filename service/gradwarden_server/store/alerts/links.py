"""The secret that signs a project's links."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import Future

from sqlalchemy import Connection, select, update

from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.streams import ensure_project, insert_or_ignore

_BYTES = 32


class LinkSecrets:
    """Every method takes the project first. All processes on one database share the secret."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self, project: str) -> bytes | None:
        """The secret, or None where the project never needed one."""
        query = select(t.link_secret.c.secret).where(t.link_secret.c.project == project)
        with self._database.read() as connection:
            secret: bytes | None = connection.execute(query).scalar_one_or_none()
        return secret

    def made(self, project: str) -> bytes:
        """The secret; made at the first time."""
        known = self.known(project)
        if known is not None:
            return known
        made_ns = time.time_ns()

        def job(connection: Connection) -> None:
            ensure_project(connection, project)
            values = {"project": project, "secret": secrets.token_bytes(_BYTES), "made_ns": made_ns}
            connection.execute(insert_or_ignore(connection, t.link_secret).values(values))

        self._database.write(job, Priority.ALERT).result()
        made = self.known(project)
        assert made is not None
        return made

    def rotate(self, project: str, actor: str, now_ns: int) -> Future[None]:
        """Make all links that were sent worthless. Audited."""

        def job(connection: Connection) -> None:
            ensure_project(connection, project)
            values = {"secret": secrets.token_bytes(_BYTES), "made_ns": now_ns}
            mine = t.link_secret.c.project == project
            if connection.execute(update(t.link_secret).where(mine).values(values)).rowcount == 0:
                connection.execute(
                    insert_or_ignore(connection, t.link_secret).values(project=project, **values)
                )
            audit.record(project, connection, now_ns, actor, "links.rotate", project, {})

        return self._database.write(job, Priority.ALERT)
