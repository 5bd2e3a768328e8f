"""Who may do what: tokens, sessions, and the open door of a laptop.

Bound to loopback the service needs no token, and an anonymous request is an admin of the
project it names. Three things could smuggle a stranger through that door: a proxy in front,
a foreign page that rebinds its name to 127.0.0.1, and a form that such a page sends. So the
open door asks for a loopback ``Host``, no forwarding header, and no foreign ``Origin``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from gradwarden import wire
from gradwarden_server.api.problems import Problem
from gradwarden_server.model import DEFAULT_PROJECT
from gradwarden_server.settings import Settings
from gradwarden_server.store.tokens import Scope, TokenRecord, TokenStore, digest

ANONYMOUS = "loopback"
"""The actor where no token exists: anybody on this machine."""
COOKIE = "gradwarden_session"
PROJECT_HEADER = "Gradwarden-Project"
Need = Literal["ingest", "read", "admin", "any"]

_OPENS: dict[Scope, frozenset[Need]] = {
    "ingest": frozenset({"ingest", "any"}),
    "read": frozenset({"read", "any"}),
    "admin": frozenset({"ingest", "read", "admin", "any"}),
}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_REMEMBER_SECONDS = 5.0
_TOUCH_SECONDS = 60.0
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a project, a scope, and a name for the audit."""

    project: str
    scope: Scope
    actor: str
    token: TokenRecord | None


@dataclass(slots=True)
class _Known:
    token: TokenRecord
    until: float
    touched: float


class Doorman:
    """Finds the principal of a request. Live tokens are remembered for five seconds."""

    def __init__(self, tokens: TokenStore, settings: Settings) -> None:
        self._tokens = tokens
        self._open = settings.on_loopback
        self._known: dict[str, _Known] = {}

    @property
    def login_required(self) -> bool:
        """Whether nobody gets in without a token."""
        return not self._open

    async def admit(self, request: Request, need: Need) -> Principal:
        """The principal of a request that may do what ``need`` names.

        Raises:
            Problem: unauthenticated, forbidden, forbidden-project or forbidden-origin.
        """
        principal = await self.identify(request)
        if principal is None:
            raise Problem(
                "unauthenticated",
                "send Authorization: Bearer gw_...; make one with: gradwarden token create",
                {"WWW-Authenticate": 'Bearer realm="gradwarden"'},
            )
        if need not in _OPENS[principal.scope]:
            raise Problem(
                "forbidden",
                f"a token of scope {principal.scope} may not do this; it needs scope {need}",
                needed=need,
            )
        return principal

    async def identify(self, request: Request) -> Principal | None:
        """The principal, or None for a stranger.

        Raises:
            Problem: a token that is not live, another project than the token's, or a
                foreign page.
        """
        secret, from_browser = _credential(request)
        if secret is None:
            return self._anonymous(request)
        if from_browser:
            _refuse_foreign_page(request)
        token = await self._authenticate(secret)
        if token is None:
            if from_browser:
                return self._anonymous(request)  # a session that ended is a stranger, no error
            raise Problem(
                "unauthenticated",
                "the token is not known, has expired or was revoked; ask for a new one",
                {"WWW-Authenticate": 'Bearer realm="gradwarden", error="invalid_token"'},
            )
        asked = _asked_project(request)
        if asked is not None and asked != token.project:
            raise Problem(
                "forbidden-project",
                f"project: {asked!r}; this token belongs to {token.project!r}",
                project=token.project,
            )
        return Principal(token.project, token.scope, token.prefix, token)

    def forget(self) -> None:
        """Ask the database again: a token was revoked."""
        self._known.clear()

    def _anonymous(self, request: Request) -> Principal | None:
        if not self._open or any(name in request.headers for name in _FORWARDED):
            return None
        if _host_name(request.headers.get("host", "")) not in _LOOPBACK_NAMES:
            return None
        _refuse_foreign_page(request)
        project = _asked_project(request) or DEFAULT_PROJECT
        return Principal(project, "admin", ANONYMOUS, None)

    async def _authenticate(self, secret: str) -> TokenRecord | None:
        key, now, now_ns = digest(secret), time.monotonic(), time.time_ns()
        known = self._known.get(key)
        if known is None or known.until < now:
            token = await run_in_threadpool(self._tokens.authenticate, secret, now_ns)
            if token is None:
                self._known.pop(key, None)
                return None
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            touched = known.touched if known else float("-inf")
            known = self._known[key] = _Known(token, now + _REMEMBER_SECONDS, touched)
        if not known.token.live(now_ns):
            return None
        if now - known.touched > _TOUCH_SECONDS:
            known.touched = now
            self._tokens.touch(known.token.project, known.token.id, now_ns)
        return known.token


def _credential(request: Request) -> tuple[str | None, bool]:
    """The secret, and whether a browser sent it by itself."""
    header = request.headers.get("authorization")
    if header is not None:
        kind, _, secret = header.partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Problem("unauthenticated", "Authorization: expected Bearer and a token")
        return secret.strip(), False
    return request.cookies.get(COOKIE), True


def _asked_project(request: Request) -> str | None:
    asked = request.headers.get(PROJECT_HEADER)
    if not asked and request.scope["query_string"]:
        asked = request.query_params.get("project")
    if asked is not None and not wire.is_identifier(asked):
        raise Problem(
            "malformed",
            f"project: {asked[:120]!r}; letters, digits and . _ : + - only, at most 128",
            field="project",
        )
    return asked


def _refuse_foreign_page(request: Request) -> None:
    origin = request.headers.get("origin")
    if request.method in _SAFE or origin is None:
        return
    if urlsplit(origin).netloc != request.headers.get("host"):
        raise Problem(
            "forbidden-origin",
            f"Origin: {origin[:120]!r}; open the dashboard under its own address and try again",
        )


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
