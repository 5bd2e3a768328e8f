"""A run's numbers: layers x steps as a byte matrix, and single series."""

from __future__ import annotations

import json
import struct
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field, TypeAdapter

from gradwarden import wire
from gradwarden_server.api.deps import CREDENTIALS, PartsDep, Reader, RunId
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.ranges import First, InTime, Last, steps_asked
from gradwarden_server.api.runs import known_run
from gradwarden_server.store.reading.curves import SeriesTable, empty
from gradwarden_server.store.reading.pieces import READABLE

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["series"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

Metric = Annotated[str, Query(max_length=64, json_schema_extra={"enum": list(READABLE)})]
Row = Annotated[int, Query(ge=0, le=2**31)]
Step = Annotated[int | None, Query(ge=0, le=2**62, description="The newest where left out")]
Columns = Annotated[int, Query(ge=1, le=10_000)]


_TABLE = TypeAdapter(SeriesTable)
"""Writes a table as it was read; to validate its thousands of numbers would take longer."""


class SeriesColumns(BaseModel):
    """One series: per bucket of steps the finite extremes and last, and the non-finite count."""

    min: list[float | None]
    max: list[float | None]
    last: list[float | None]
    nonfinite: list[int]


class SeriesFace(BaseModel):
    """Series over the same buckets of steps."""

    step: list[int]
    time_ns: list[int]
    keys: dict[str, SeriesColumns]
    reported: list[str] = Field(
        description="Every series within these steps that is no layer's, asked for or not"
    )


class HistogramFace(BaseModel):
    """How large the finite non-zero gradient values of one row were at ``step``."""

    row: int
    name: str
    step: int
    time_ns: int
    edges: list[float] = Field(description="15 inner edges of the bins, rising")
    counts: list[int] = Field(description="16 bins: below the first edge, ..., from the last up")


@router.get(
    "/heatmap",
    summary="Layers x steps as bytes",
    response_class=Response,
    responses={
        200: {
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            }
        }
    },
)
def heatmap(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    metric: Metric = "l2",
    first: First = None,
    last: Last = None,
    cols: Columns = 2000,
    agg: Annotated[
        Literal["max"],
        Query(description="How steps of a column join; weight_l2, update_ratio: the newest"),
    ] = "max",
) -> Response:
    """u32 little-endian header length, JSON header, then rows x cols bytes, row by row.

    A cell is 0 for no data, 1 to 254 linear in log10 between ``lo`` and ``hi``, 255 for
    non-finite. What was not measured at any step of a column is no data.
    """
    known_run(parts, who.project, run)
    if metric not in READABLE:
        detail = f"metric: {metric!r}; one of {', '.join(READABLE)}"
        raise Problem("malformed", detail, field="metric")
    steps = steps_asked(parts, who.project, run, {"from": first, "to": last}, times)
    picture = None
    if steps is not None:
        picture = parts.history.heatmap(who.project, run, metric, *steps, cols)
    if picture is None:
        empty = {"rows": 0, "cols": 0, "layers": [], "step": [], "step_last": [], "time_ns": []}
        rest = {"lo": 0.0, "hi": 0.0, "bucket": 1, "nonfinite": [], "metric": metric, "agg": agg}
        header, cells = {**empty, **rest}, b""
    else:
        header, cells = picture.header, picture.cells
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    body = struct.pack("<I", len(text)) + text + cells
    return Response(body, media_type="application/octet-stream")


@router.get("/series", summary="Scalars and single layers over steps", response_model=SeriesFace)
def series(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    keys: Annotated[
        str, Query(max_length=8000, description="loss,lr,grad_norm,layer:3:l2 and the like")
    ] = "loss,grad_norm",
    first: First = None,
    last: Last = None,
    points: Columns = 2000,
    attempt: Annotated[
        int | None,
        Query(ge=1, le=2**31, description="One attempt by its number, redone steps among it"),
    ] = None,
) -> Response:
    """At most ``points`` buckets; each keeps its extremes, so no spike is lost.

    ``layer:<row>:<quantity>`` is any quantity of the heatmap.
    """
    known_run(parts, who.project, run)
    wanted = keys_of(keys)
    steps = steps_asked(parts, who.project, run, {"from": first, "to": last}, times)
    try:
        if steps is None:
            table = SeriesTable([], [], {key: empty() for key in wanted}, [])
        else:
            table = parts.history.series(who.project, run, wanted, *steps, points, attempt)
    except ValueError as error:
        detail = f"{error}; layer keys are layer:<row>:<quantity>"
        raise Problem("malformed", detail, field="keys") from None
    return Response(_TABLE.dump_json(table), media_type="application/json")


@router.get("/histogram", summary="How large one row's gradient values were")
def histogram(
    run: RunId, who: Reader, parts: PartsDep, row: Row, step: Step = None
) -> HistogramFace:
    """The newest histogram that was captured at or before ``step``."""
    known_run(parts, who.project, run)
    try:
        found = parts.history.histogram(who.project, run, row, step)
    except ValueError as error:
        raise Problem("not-found", str(error)) from None
    if found is None:
        until = "" if step is None else f" at or before step {step}"
        detail = (
            f"no histogram of row {row} was captured{until}; "
            "the standard preset sends one with every tenth capture, the light one none"
        )
        raise Problem("not-found", detail)
    return HistogramFace(
        row=row,
        name=found.name,
        step=found.step,
        time_ns=found.time_ns,
        edges=list(wire.histogram_edges()),
        counts=found.counts,
    )


def keys_of(text: str, most: int = 64) -> list[str]:
    """The keys of a comma-separated list, each once, or the problem with their number."""
    wanted = list(dict.fromkeys(filter(None, text.split(","))))
    if not 0 < len(wanted) <= most:
        raise Problem("malformed", f"keys: {len(wanted)}; name 1 to {most}", field="keys")
    return wanted
