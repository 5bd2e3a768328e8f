"""Tokens: hashed, scoped, per project, expiring, revocable, audited.

A login in the browser is a token too, named ``session:<id of the token that was shown>``:
so a session survives a restart, is known to every server process, and ends with its token.
"""

from __future__ import annotations

import hashlib
import secrets
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.streams import ensure_project, insert_or_ignore

Scope = Literal["ingest", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "gw_"
_SHOWN = len(PREFIX) + 6
_SESSION = "session:"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as listed: everything but the secret, which nobody holds but its owner."""

    id: int
    project: str
    name: str
    prefix: str
    scope: Scope
    created_ns: int
    expires_ns: int | None
    last_used_ns: int | None
    revoked_ns: int | None

    @property
    def is_session(self) -> bool:
        """Whether this is a login in a browser."""
        return self.name.startswith(_SESSION)

    def live(self, now_ns: int) -> bool:
        """Whether it opens anything now."""
        return self.revoked_ns is None and (self.expires_ns is None or self.expires_ns > now_ns)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token with its secret: the only moment at which the secret is known."""

    token: TokenRecord
    secret: str


def digest(secret: str) -> str:
    """What is stored of a secret; 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


class TokenStore:
    """Tokens of each project; a secret alone finds its project, everything else names it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        project: str,
        name: str,
        scope: Scope,
        *,
        now_ns: int,
        expires_ns: int | None = None,
        actor: str = "command line",
    ) -> Future[Issued]:
        """Make a token; its secret is in the answer and nowhere else.

        Raises:
            ValueError: the name is reserved for sessions.
        """
        if name.startswith(_SESSION):
            raise ValueError(f"name: {name!r}; names that begin with {_SESSION!r} are reserved")
        return self._issue(project, name, scope, now_ns, expires_ns, actor, "token.create")

    def login(
        self, project: str, token: TokenRecord, now_ns: int, expires_ns: int
    ) -> Future[Issued]:
        """Exchange a token for a session that ends no later than the token does."""
        if token.expires_ns is not None:
            expires_ns = min(expires_ns, token.expires_ns)
        name = f"{_SESSION}{token.id}"
        return self._issue(
            project, name, token.scope, now_ns, expires_ns, token.prefix, "session.create"
        )

    def register(self, project: str, name: str, secret: str, now_ns: int) -> Future[None]:
        """Make ``secret``, which someone else chose, an admin token unless it is known."""

        def job(connection: Connection) -> None:
            ensure_project(connection, project)
            row = _row(project, name, secret, "admin", now_ns, None)
            made = connection.execute(insert_or_ignore(connection, t.token).values(row))
            if made.rowcount == 1:
                audit.record(
                    project, connection, now_ns, "settings", "token.register", row["prefix"], {}
                )

        return self._database.write(job, Priority.ALERT)

    def list(self, project: str) -> list[TokenRecord]:
        """Every token of a project, newest first, revoked and expired ones too."""
        statement = (
            select(t.token)
            .where(t.token.c.project == project, t.token.c.name.not_like(f"{_SESSION}%"))
            .order_by(t.token.c.id.desc())
        )
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(statement)]

    def revoke(self, project: str, token_id: int, now_ns: int, actor: str) -> Future[bool]:
        """Close a token and the sessions it opened; False if there is none to close."""

        def job(connection: Connection) -> bool:
            closed = connection.execute(
                update(t.token)
                .where(
                    t.token.c.project == project,
                    or_(t.token.c.id == token_id, t.token.c.name == f"{_SESSION}{token_id}"),
                    t.token.c.revoked_ns.is_(None),
                )
                .values(revoked_ns=now_ns)
            )
            if closed.rowcount:
                audit.record(project, connection, now_ns, actor, "token.revoke", str(token_id), {})
            return bool(closed.rowcount)

        return self._database.write(job, Priority.ALERT)

    def authenticate(self, secret: str, now_ns: int) -> TokenRecord | None:
        """The live token with this secret, or None. The one question that names no project."""
        statement = select(t.token).where(t.token.c.hash == digest(secret))
        with self._database.read() as connection:
            row = connection.execute(statement).one_or_none()
        token = None if row is None else _record(row)
        return token if token is not None and token.live(now_ns) else None

    def touch(self, project: str, token_id: int, now_ns: int) -> Future[None]:
        """Note that a token was used; the caller does so at most once a minute."""

        def job(connection: Connection) -> None:
            connection.execute(
                update(t.token)
                .where(t.token.c.project == project, t.token.c.id == token_id)
                .values(last_used_ns=now_ns)
            )

        return self._database.write(job, Priority.COMPACTION)

    def any_live(self, now_ns: int) -> bool:
        """Whether anybody could log in: what a bind beyond loopback asks for."""
        statement = (
            select(func.count())
            .select_from(t.token)
            .where(
                t.token.c.revoked_ns.is_(None),
                t.token.c.name.not_like(f"{_SESSION}%"),
                or_(t.token.c.expires_ns.is_(None), t.token.c.expires_ns > now_ns),
            )
        )
        with self._database.read() as connection:
            return bool(connection.execute(statement).scalar_one())

    def _issue(
        self,
        project: str,
        name: str,
        scope: Scope,
        now_ns: int,
        expires_ns: int | None,
        actor: str,
        action: str,
    ) -> Future[Issued]:
        secret = PREFIX + secrets.token_urlsafe(32)

        def job(connection: Connection) -> Issued:
            ensure_project(connection, project)
            connection.execute(  # sessions that ended leave no trace but their audit rows
                delete(t.token).where(
                    t.token.c.project == project,
                    t.token.c.name.like(f"{_SESSION}%"),
                    t.token.c.expires_ns < now_ns,
                )
            )
            row = _row(project, name, secret, scope, now_ns, expires_ns)
            made = connection.execute(insert(t.token).values(row).returning(t.token)).one()
            data = {"name": name, "scope": scope, "expires_ns": expires_ns}
            audit.record(project, connection, now_ns, actor, action, row["prefix"], data)
            return Issued(_record(made), secret)

        return self._database.write(job, Priority.ALERT)


def _row(
    project: str, name: str, secret: str, scope: Scope, now_ns: int, expires_ns: int | None
) -> dict[str, Any]:
    return {
        "project": project,
        "name": name,
        "prefix": secret[:_SHOWN],
        "hash": digest(secret),
        "scope": scope,
        "created_ns": now_ns,
        "expires_ns": expires_ns,
    }


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(**{n: getattr(row, n) for n in TokenRecord.__dataclass_fields__})
