"""The short way in for frames: past the framework's layers, which cost more than the frames do.

It leads to the same function as the route, and answers as the route would.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gradwarden_server import logs
from gradwarden_server.api import ingest, problems
from gradwarden_server.api.deps import Parts

PATH = "/v1/ingest"


class Lane:
    """POST /v1/ingest in pure ASGI."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, parts = Request(scope, receive), self._parts
        try:
            who = await parts.doorman.admit(request, "ingest")
            with parts.throttle.slot(who):
                logs.bind(project=who.project)
                answer = await ingest.take_in(request, who, parts)
        except Exception as error:
            problem = problems.translate(error)
            if problem is None:
                raise
            refusal = problem.response(problems.request_id(scope))
            await refusal(scope, receive, send)
            return
        taken = Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
        await taken(scope, receive, send)


class Service(FastAPI):
    """The app; ``lane`` is asked before the framework is, once there is one."""

    lane: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lane = self.lane
        if (
            lane is not None
            and scope["type"] == "http"
            and scope["path"] == PATH
            and scope["method"] == "POST"
        ):
            await lane(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
