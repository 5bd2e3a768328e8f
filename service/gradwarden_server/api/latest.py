"""Newest values of all runs at once, as columns: what a wall of a fleet asks for."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from gradwarden_server.api.deps import CREDENTIALS, PartsDep, Reader
from gradwarden_server.api.plain import Number, kept_number
from gradwarden_server.api.runs import Status, one_of
from gradwarden_server.api.series import keys_of

router = APIRouter(prefix="/v1", tags=["runs"], dependencies=CREDENTIALS)

_MOST_RUNS = 10_000


class LatestFace(BaseModel):
    """Columns over runs, the newest run first; null where a run never told a value."""

    run: list[str]
    name: list[str]
    status: list[str]
    step: list[int | None]
    last_seen_ns: list[int]
    keys: dict[str, list[Number | None]]
    complete: bool = Field(description="False where only the newest 10,000 runs are told")


@router.get("/latest", summary="Newest values of all runs", response_model=LatestFace)
def latest_values(
    who: Reader,
    parts: PartsDep,
    keys: Annotated[
        str, Query(max_length=8000, description="loss, grad_norm and the like, comma-separated")
    ] = "loss,grad_norm",
    status: Annotated[str, Query(max_length=200, description="Statuses, comma-separated")] = "",
) -> Response:
    """One statement over the runs, whatever their number; no matrices are read."""
    wanted = keys_of(keys)
    states = one_of("status", status, get_args(Status))
    page = parts.fleet.page(who.project, status=states, limit=_MOST_RUNS)
    runs = page.items
    values = parts.fleet.newest_values(who.project, runs)
    told = [values.get(run.id, {}) for run in runs]
    answer = LatestFace(
        run=[run.run for run in runs],
        name=[run.name for run in runs],
        status=[run.status for run in runs],
        step=[run.last_step for run in runs],
        last_seen_ns=[run.last_seen_ns for run in runs],
        keys={key: [kept_number(of_run.get(key)) for of_run in told] for key in wanted},
        complete=page.next_cursor is None,
    )
    return Response(answer.model_dump_json(), media_type="application/json")
