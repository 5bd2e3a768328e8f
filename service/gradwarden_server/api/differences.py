"""What differs in some steps from those around them: layers, numbers of the loop, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from gradwarden_server.api.contrast import Contrast, Doubles, around, contrast, ranked
from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader, RunId
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.runs import known_run

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["series"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

_QUANTITIES = ("l2", "update_ratio", "zero")
_MOST_STEPS = 20_000
_COLUMNS = 2048
_MOST_SCALARS = 64
_MOST_TOLD = 30
_OF_RANKS = ("loss", "step_seconds", "allreduce_seconds", "data_seconds")
_MOST_RANK_STEPS = 512
_BAD = 255

Kind = Literal["layer", "number", "rank"]


class Difference(BaseModel):
    """One series that moved; ``name`` is a parameter, a number of the loop, or a rank."""

    kind: Kind
    name: str
    quantity: str
    row: int | None = Field(description="Of a parameter: its row in the heatmap")
    inside: float | None = Field(description="Median of the finite values; null where none is")
    outside: float | None
    spreads: float | None = Field(
        description="How far apart, in scaled median absolute deviations of the outside; null "
        "where values inside are not finite and those outside are"
    )
    nonfinite: int = Field(description="Columns, or steps, inside that are not finite")


class DifferencesFace(BaseModel):
    """What sets steps ``first`` to ``last`` apart, the furthest first."""

    first: int
    last: int
    outside: tuple[int, int] = Field(description="Compared with these steps, without the inside")
    compared: int = Field(description="Series that were compared")
    items: list[Difference]


@router.get("/differences", summary="What differs in some steps from those around them")
def get_differences(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    first: Annotated[int, Query(alias="from", ge=0, le=2**62, description="First step inside")],
    last: Annotated[int, Query(alias="to", ge=0, le=2**62, description="Last step inside")],
    layers: Annotated[
        str, Query(max_length=200, description="Only parameters whose name has this in it")
    ] = "",
) -> DifferencesFace:
    """Layers by gradient norm, update ratio and share of zeros; every number of the loop; ranks
    against the median of all ranks. Told is what lies more than 3.5 spreads apart.
    """
    known_run(parts, who.project, run)
    if last < first or last - first >= _MOST_STEPS:
        detail = f"to: {last}; give a step from {first} to {first + _MOST_STEPS - 1}"
        raise Problem("malformed", detail, field="to")
    span = parts.log.span(who.project, run)
    if span is None or first > span[1] or last < span[0]:
        raise Problem("malformed", f"from: {first}; the run has steps {span}", field="from")
    low, high = around(first, last, span)
    inside = (max(first, span[0]), min(last, span[1]))
    compared: list[tuple[Kind, str, str, int | None, Contrast | None]] = [
        *_layers(parts, who.project, run, inside, (low, high), layers),
        *_numbers(parts, who.project, run, inside, (low, high)),
        *_ranks(parts, who.project, run, inside, (low, high)),
    ]
    told = ranked(((str(k), c[4]) for k, c in enumerate(compared)), _MOST_TOLD)
    items = [_face(*compared[int(k)][:4], found) for k, found in told]
    return DifferencesFace(
        first=inside[0], last=inside[1], outside=(low, high), compared=len(compared), items=items
    )


_Found = Iterator[tuple[Kind, str, str, int | None, Contrast | None]]


def _layers(
    parts: Parts, project: str, run: str, inside: tuple[int, int], all_: tuple[int, int], like: str
) -> _Found:
    layout = parts.history.layers(project, run)
    names = [p.name for p in layout.parameters] if layout else []
    for quantity in _QUANTITIES:
        picture = parts.history.heatmap(project, run, quantity, *all_, _COLUMNS)
        if picture is None:
            return
        head = picture.header
        cells = np.frombuffer(picture.cells, np.uint8).reshape(head["rows"], head["cols"])
        within = _within(head["step"], inside)
        values = _values(cells, head["lo"], head["hi"])
        for row, name in enumerate(names):
            if like in name:
                seen = cells[row] > 0
                if quantity != "l2":  # a gradient that is not finite marks the cell of each
                    seen &= cells[row] != _BAD
                found = contrast(values[row][seen & within], values[row][seen & ~within])
                yield "layer", name, quantity, row, found


def _values(cells: np.typing.NDArray[np.uint8], low: float, high: float) -> Doubles:
    """What the bytes of a picture stand for; what is not finite is NaN."""
    table = 10 ** (low + (np.arange(256) - 1) / 253 * (high - low))
    table[_BAD] = math.nan
    found: Doubles = table[cells]
    return found


def _numbers(
    parts: Parts, project: str, run: str, inside: tuple[int, int], all_: tuple[int, int]
) -> _Found:
    known = parts.history.series(project, run, ["loss"], *all_, _COLUMNS).reported
    table = parts.history.series(project, run, known[:_MOST_SCALARS], *all_, _COLUMNS)
    within = _within(table.step, inside)
    for name, columns in table.keys.items():
        values = np.array([math.nan if v is None else v for v in columns["last"]], np.float64)
        bad = np.array(columns["nonfinite"], np.int64) > 0
        told = ~np.isnan(values) | bad
        values[bad] = math.nan
        yield "number", name, name, None, contrast(values[told & within], values[told & ~within])


def _ranks(
    parts: Parts, project: str, run: str, inside: tuple[int, int], all_: tuple[int, int]
) -> _Found:
    """Each rank's share of the median over ranks, so that what all did together is no news."""
    low = max(all_[0], inside[0] - _MOST_RANK_STEPS)
    high = min(all_[1], inside[0] + _MOST_RANK_STEPS)
    found = parts.history.of_ranks(project, run, _OF_RANKS, low, high)
    for name, by_step in found.scalars.items():
        shares: dict[int, list[tuple[int, float]]] = {}
        for step, by_rank in by_step.items():
            middle = float(np.median(list(by_rank.values())))
            if len(by_rank) < 2 or not math.isfinite(middle) or middle == 0:
                continue
            for rank, value in by_rank.items():
                shares.setdefault(rank, []).append((step, value / middle))
        for rank, points in sorted(shares.items()):
            steps = np.array([step for step, _ in points])
            values = np.array([value for _, value in points], np.float64)
            within = (steps >= inside[0]) & (steps <= inside[1])
            yield "rank", f"rank {rank}", name, None, contrast(values[within], values[~within])


def _within(starts: list[int], inside: tuple[int, int]) -> np.typing.NDArray[np.bool_]:
    steps = np.array(starts, np.int64)
    return (steps >= inside[0]) & (steps <= inside[1])


def _face(kind: Kind, name: str, quantity: str, row: int | None, found: Contrast) -> Difference:
    return Difference(
        kind=kind,
        name=name,
        quantity=quantity,
        row=row,
        inside=found.inside,
        outside=found.outside,
        spreads=found.spreads if math.isfinite(found.spreads) else None,
        nonfinite=found.nonfinite,
    )
