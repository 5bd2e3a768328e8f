"""Is the service up, is it ready, and what do its own numbers say."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api.access import Principal
from gradwarden_server.api.deps import PartsDep, Somebody
from gradwarden_server.api.problems import Problem

router = APIRouter(tags=["health"])


class Healthy(BaseModel):
    """The process answers."""

    status: str = "ok"


@router.head("/-/healthy", include_in_schema=False)
@router.get("/-/healthy", summary="The process answers")
async def healthy() -> Healthy:
    """A probe that fails here should restart the process."""
    return Healthy()


@router.get("/-/ready", summary="The service can take frames and judge them")
def ready(parts: PartsDep) -> Healthy:
    """503 while the database does not answer or the evaluator is not running."""
    parts.database.ping()
    if parts.settings.evaluate and not parts.judge.alive:
        raise Problem(
            "unavailable", "the evaluator is not running; see the log", {"Retry-After": "5"}
        )
    return Healthy()


@router.get("/metrics", summary="Our own numbers, for Prometheus", response_class=Response)
async def metrics(request: Request, who: Somebody, parts: PartsDep) -> Response:
    """The service's sums for anybody; series of runs for those who may read their project.

    Bounded: at most fifty live runs have series of their own here.
    """
    accept = request.headers.get("accept", "")
    body, media_type = await run_in_threadpool(parts.telemetry.exposition, accept, _sees(who))
    return Response(body, headers={"Content-Type": media_type})


def _sees(who: Principal | None) -> str | None:
    """The project whose runs a scraper may see: None for all, no name for none."""
    if who is None or who.scope == "ingest":
        return ""
    return None if who.token is None else who.project
