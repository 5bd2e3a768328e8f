"""All ranks at one step, side by side, and those that differ from the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from gradwarden_server.api.deps import CREDENTIALS, PartsDep, Reader, RunId
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.plain import Number, number
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.ranges import InTime, steps_asked
from gradwarden_server.api.runs import known_run
from gradwarden_server.api.series import keys_of
from gradwarden_server.store.reading.compare import Told

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["series"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

_MOST_KEYS = 16
_NORMAL = 1.4826
"""Makes the MAD of normally distributed data equal their standard deviation."""
_FAR = 3.5
"""Scaled deviations beyond which a value is an outlier (Iglewicz and Hoaglin, 1993)."""
_EQUAL = 1e-6
"""Of the median: replicas that add in another order differ by less, and are equal here."""
_LEAST_RANKS = 3


class RankPlace(BaseModel):
    """One rank of the newest attempt, and where it runs."""

    rank: int
    group: int
    shard: int
    shards: int
    host: str
    place: dict[str, Any] = Field(description="Node, gpu, pod and the like, as the rank told them")


class RankValue(BaseModel):
    """What one rank told."""

    rank: int
    step: int | None = Field(description="Where it told it: the step asked for, or one before")
    value: Number | None = Field(description="Null: it told none; norms come from speakers only")
    outlier: bool


class KeyCompared(BaseModel):
    """One key over the ranks."""

    median: float | None = Field(description="Of the finite values")
    mad: float | None = Field(description="The median absolute deviation from it")
    told_by: list[int] = Field(description="The ranks that told a value")
    values: list[RankValue]


class CompareFace(BaseModel):
    """All ranks at a step."""

    step: int | None = Field(description="The step asked for; null where there is none")
    ranks: list[RankPlace]
    keys: dict[str, KeyCompared]


@router.get("/compare", summary="All ranks at a step, outliers marked")
def compare_ranks(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    step: Annotated[
        int | None, Query(ge=0, le=2**62, description="The newest where left out")
    ] = None,
    keys: Annotated[
        str, Query(max_length=8000, description="loss,step_seconds,grad_norm,layer:3:l2")
    ] = "loss,step_seconds,grad_norm",
) -> CompareFace:
    """Per rank the newest value at or before the step, or before the end of a time.

    A value is an outlier where at least three ranks told one and it lies more than 3.5 scaled
    median absolute deviations from the median, or is not finite where that of most is. Of a
    rank that holds a shard, norms are its shard's.
    """
    known_run(parts, who.project, run)
    wanted = keys_of(keys, _MOST_KEYS)
    asked = steps_asked(parts, who.project, run, {"step": step, "to": None}, times)
    found = None
    try:
        if asked is not None:
            at = asked[1] if times.asked else asked[0]
            found = parts.comparison.at(who.project, run, wanted, at)
    except ValueError as error:
        detail = f"{error}; layer keys are layer:<row>:<quantity>"
        raise Problem("malformed", detail, field="keys") from None
    streams = parts.runs.streams(who.project, run)
    newest = max((s.ordinal for s in streams), default=0)
    ranks = [
        RankPlace(
            rank=s.rank,
            group=s.group,
            shard=s.shard,
            shards=s.shards,
            host=s.host,
            place=dict(s.place),
        )
        for s in streams
        if s.ordinal == newest
    ]
    told = {} if found is None else found[1]
    return CompareFace(
        step=None if found is None else found[0],
        ranks=ranks,
        keys={key: compared(told.get(key, {}), [r.rank for r in ranks]) for key in wanted},
    )


def compared(told: Mapping[int, Told], ranks: list[int]) -> KeyCompared:
    """One key over these ranks and all others that told it."""
    finite = [x.value for x in told.values() if math.isfinite(x.value)]
    middle = median(finite) if finite else None
    mad = None if middle is None else median(abs(v - middle) for v in finite)
    return KeyCompared(
        median=middle,
        mad=mad,
        told_by=sorted(told),
        values=[
            RankValue(
                rank=rank,
                step=told[rank].step if rank in told else None,
                value=number(told[rank].value) if rank in told else None,
                outlier=rank in told and _is_outlier(told[rank].value, told, middle, mad),
            )
            for rank in sorted({*ranks, *told})
        ],
    )


def _is_outlier(
    value: float, told: Mapping[int, Told], middle: float | None, mad: float | None
) -> bool:
    if len(told) < _LEAST_RANKS or middle is None or mad is None:
        return False
    if not math.isfinite(value):
        return 2 * sum(math.isfinite(x.value) for x in told.values()) > len(told)
    return abs(value - middle) > max(_FAR * _NORMAL * mad, _EQUAL * abs(middle))
