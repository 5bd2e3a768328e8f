"""Is the service up, is it ready, and what do its own numbers say."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from gradwarden_server.api.deps import PartsDep
from gradwarden_server.api.problems import Problem

router = APIRouter(tags=["health"])


class Healthy(BaseModel):
    """The process answers."""

    status: str = "ok"


@router.get("/-/healthy", summary="The process answers")
async def healthy() -> Healthy:
    """A probe that fails here should restart the process."""
    return Healthy()


@router.get("/-/ready", summary="The service can take frames and judge them")
def ready(parts: PartsDep) -> Healthy:
    """503 while the database does not answer or the evaluator is not running."""
    parts.database.ping()
    if not parts.judge.alive:
        raise Problem(
            "unavailable", "the evaluator is not running; see the log", {"Retry-After": "5"}
        )
    return Healthy()


@router.get("/metrics", summary="Our own numbers, for Prometheus", response_class=Response)
def metrics(request: Request, parts: PartsDep) -> Response:
    """Bounded: at most fifty live runs have series of their own here."""
    body, media_type = parts.telemetry.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type})
