"""Tokens, and the exchange of one for a session in the browser."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api import bodies, schemas
from gradwarden_server.api.access import COOKIE, Principal
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Somebody
from gradwarden_server.api.problems import Problem
from gradwarden_server.telemetry import package_version

router = APIRouter(prefix="/v1", dependencies=CREDENTIALS)

_DAY_NS = 86_400 * 1_000_000_000
_HOUR_NS = 3_600 * 1_000_000_000


@router.get("/tokens", tags=["tokens"], summary="Tokens of the project")
def list_tokens(who: Admin, parts: PartsDep) -> schemas.TokenList:
    """Revoked and expired ones too; never a secret."""
    tokens = parts.tokens.list(who.project)
    return schemas.TokenList(items=[schemas.token_face(t) for t in tokens])


@router.post("/tokens", tags=["tokens"], status_code=201, summary="Make a token")
async def create_token(body: bodies.TokenBody, who: Admin, parts: PartsDep) -> schemas.TokenCreated:
    """The secret is in this answer and nowhere else."""
    now_ns = time.time_ns()
    days = body.expires_in_days
    try:
        creation = parts.tokens.create(
            who.project,
            body.name,
            body.scope,
            now_ns=now_ns,
            expires_ns=None if days is None else now_ns + int(days * _DAY_NS),
            actor=who.actor,
        )
    except ValueError as error:
        raise Problem("malformed", str(error), field="name") from None
    issued = await parts.written(creation)
    return schemas.TokenCreated(
        **schemas.token_face(issued.token).model_dump(), secret=issued.secret
    )


@router.delete("/tokens/{token}", tags=["tokens"], status_code=204, summary="Revoke a token")
async def revoke_token(
    token: Annotated[int, Path(ge=1, le=2**62)], who: Admin, parts: PartsDep
) -> Response:
    """Its sessions end with it."""
    closed = await parts.written(parts.tokens.revoke(who.project, token, time.time_ns(), who.actor))
    parts.doorman.forget()
    if not closed:
        raise Problem("not-found", f"token: {token}; this project has no such live token")
    return Response(status_code=204)


@router.get("/session", tags=["session"], summary="Who am I")
async def get_session(who: Somebody, parts: PartsDep) -> schemas.SessionFace:
    """Never refuses: a stranger is told that a login is needed."""
    return await _session(who, parts)


@router.post("/session", tags=["session"], summary="Log in with a token")
async def login(
    body: bodies.LoginBody, request: Request, response: Response, parts: PartsDep
) -> schemas.SessionFace:
    """Sets an HttpOnly, SameSite=Strict cookie."""
    now_ns = time.time_ns()
    secret = body.token.strip()
    token = await run_in_threadpool(parts.tokens.authenticate, secret, now_ns)
    if token is None or token.is_session:
        raise Problem("unauthenticated", "token: it is not known, has expired or was revoked")
    if token.scope == "ingest":
        raise Problem(
            "forbidden", "a token of scope ingest is for trainers; log in with read or admin"
        )
    hours = parts.settings.session_hours
    issued = await parts.written(
        parts.tokens.login(token.project, token, now_ns, now_ns + int(hours * _HOUR_NS))
    )
    response.set_cookie(
        COOKIE,
        issued.secret,
        max_age=int(hours * 3600),
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    who = Principal(token.project, token.scope, token.prefix, issued.token)
    return await _session(who, parts)


@router.delete("/session", tags=["session"], status_code=204, summary="Log out")
async def logout(who: Somebody, parts: PartsDep) -> Response:
    """Ends the session on the server too."""
    if who is not None and who.token is not None and who.token.is_session:
        ended = parts.tokens.revoke(who.project, who.token.id, time.time_ns(), who.actor)
        await parts.written(ended)
        parts.doorman.forget()
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


async def _session(who: Principal | None, parts: Parts) -> schemas.SessionFace:
    if who is None:
        projects: list[str] = []
    elif who.token is not None:
        projects = [who.project]
    else:  # the open door of a laptop sees every project
        known = await run_in_threadpool(parts.runs.projects)
        projects = sorted({who.project, *known})
    return schemas.SessionFace(
        authenticated=who is not None,
        project=who.project if who else None,
        scope=who.scope if who else None,
        login_required=parts.doorman.login_required,
        projects=projects,
        version=package_version(),
    )
