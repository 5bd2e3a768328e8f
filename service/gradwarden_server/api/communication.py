"""How long ranks wait for each other, and for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader, RunId
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.ranges import InTime, steps_asked
from gradwarden_server.api.runs import known_run
from gradwarden_server.detect import communication
from gradwarden_server.store.reading.history import RankValues

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["communication"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

_WINDOW = 200
_MOST_STEPS = 2000
_FIRST = "allreduce_seconds"
_MEASURES: dict[str, tuple[str, ...]] = {
    "all-reduce, from the last hand-over": ("allreduce_exposed_seconds",),
    "all-reduce of the first bucket": (_FIRST,),
    "all-reduce, from the first hand-over": ("allreduce_total_seconds",),
    "reduce-scatter and all-gather": ("reduce_scatter_seconds", "all_gather_seconds"),
}
"""What a rank's waiting can be read from, best first; several scalars are added."""
_NAMES = ("step_seconds", *dict.fromkeys(n for names in _MEASURES.values() for n in names))
Values = Mapping[int, Mapping[int, float]]


class RankCommunication(BaseModel):
    """One rank, as the median over the steps that all ranks measured."""

    rank: int
    seconds: float | None = Field(description="Its time in the collective, waiting included")
    wait_seconds: float | None = Field(description="Of it, waiting for the last rank")
    wait_share: float | None = Field(description="Waiting as a share of the step time")
    measured_steps: int = Field(description="Steps in the window that it measured")


class CauseFace(BaseModel):
    """A rank that the others wait for."""

    rank: int
    lost_seconds: float = Field(description="Median over the steps of what the others lose to it")
    lost_share: float = Field(description="The same as a share of the step time")


class CommunicationFace(BaseModel):
    """Waiting and transfer over a window of steps; no clocks are compared between hosts."""

    first_step: int | None
    last_step: int | None
    joined_steps: int = Field(description="Steps that every rank measured")
    measure: str | None = Field(description="What the seconds are of")
    step_seconds: float | None
    transfer_seconds: float | None = Field(
        description="The first bucket's all-reduce once everybody is there: the least over ranks"
    )
    ranks: list[RankCommunication]
    causes: list[CauseFace] = Field(description="Worst first; empty where nobody stands out")
    reason: str | None = Field(description="Why something is unknown, or no rank is named")


@router.get("/communication", summary="Who waits for whom")
def communication_of_run(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    from_step: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    to_step: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> CommunicationFace:
    """The last 200 steps, or those asked for, at most 2000."""
    known_run(parts, who.project, run)
    span = parts.log.span(who.project, run)
    asked = {"from_step": from_step, "to_step": to_step}
    steps = steps_asked(parts, who.project, run, asked, times)
    ranks = _ranks(parts, who.project, run)
    if steps is None:
        return face(ranks, RankValues({}, {name: {} for name in _NAMES}))
    last = steps[1] if steps[1] is not None else span[1] if span else 0
    first = max(0, last - _WINDOW + 1) if steps[0] is None else steps[0]
    if first > last or last - first >= _MOST_STEPS:
        field = "from_time" if times.asked else "from_step"
        detail = f"{field}: steps {first} to {last}; at least one step, at most {_MOST_STEPS}"
        raise Problem("malformed", detail, field=field)
    return face(ranks, parts.history.of_ranks(who.project, run, _NAMES, first, last))


def _ranks(parts: Parts, project: str, run: str) -> list[int]:
    """The ranks of the newest attempt."""
    streams = parts.runs.streams(project, run)
    newest = max((s.ordinal for s in streams), default=0)
    return sorted({s.rank for s in streams if s.ordinal == newest})


def face(ranks: Sequence[int], said: RankValues) -> CommunicationFace:
    """The answer from what ranks said; unknown stays unknown, with its reason."""
    steps = sorted(said.times_ns)
    step_seconds = _step_seconds(said)
    measure, values = _best(said.scalars, ranks)
    joined = _joined(values, ranks)
    table = np.array([[values[s][r] for r in ranks] for s in joined], np.float64)
    table = table.reshape(len(joined), len(ranks))
    causes = communication.causes(ranks, table, step_seconds or 0.0)
    middle = np.median(table, axis=0).tolist() if joined else [None] * len(ranks)
    waited = communication.waits(table) if joined else table
    wait = np.median(waited, axis=0).tolist() if joined else [None] * len(ranks)
    first = _joined(said.scalars[_FIRST], ranks)
    least = [min(said.scalars[_FIRST][s][r] for r in ranks) for s in first]
    return CommunicationFace(
        first_step=steps[0] if steps else None,
        last_step=steps[-1] if steps else None,
        joined_steps=len(joined),
        measure=measure,
        step_seconds=step_seconds,
        transfer_seconds=median(least) if least else None,
        ranks=[
            RankCommunication(
                rank=rank,
                seconds=took,
                wait_seconds=idle,
                wait_share=idle / step_seconds if idle is not None and step_seconds else None,
                measured_steps=sum(_is_known(by_rank, rank) for by_rank in values.values()),
            )
            for rank, took, idle in zip(ranks, middle, wait, strict=True)
        ],
        causes=[
            CauseFace(rank=c.rank, lost_seconds=c.lost_seconds, lost_share=c.lost_share)
            for c in causes
        ],
        reason=None if causes else _reason(ranks, values, len(joined), step_seconds),
    )


def _best(
    scalars: Mapping[str, Values], ranks: Sequence[int]
) -> tuple[str | None, dict[int, dict[int, float]]]:
    """The measure that most ranks share: the first that joins enough steps, else the fullest."""
    fullest: tuple[str | None, dict[int, dict[int, float]]] = (None, {})
    score = (0, 0)
    for measure, names in _MEASURES.items():
        values = _added([scalars[name] for name in names])
        known = len(_joined(values, ranks)), len(values)
        if known > score and score[0] < communication.LEAST_STEPS:
            fullest, score = (measure, values), known
    return fullest


def _added(several: Sequence[Values]) -> dict[int, dict[int, float]]:
    """The sums where a rank has every summand."""
    found: dict[int, dict[int, float]] = {}
    for step, by_rank in several[0].items():
        for rank, value in by_rank.items():
            rest = [more.get(step, {}).get(rank) for more in several[1:]]
            if math.isfinite(value) and None not in rest:
                found.setdefault(step, {})[rank] = value + sum(filter(None, rest))
    return found


def _joined(values: Values, ranks: Sequence[int]) -> list[int]:
    """Steps that every rank measured: a rank that is missing may be the slow one."""
    return [s for s in sorted(values) if ranks and all(_is_known(values[s], r) for r in ranks)]


def _is_known(by_rank: Mapping[int, float], rank: int) -> bool:
    return math.isfinite(by_rank.get(rank, math.nan))


def _step_seconds(said: RankValues) -> float | None:
    """The median step, as ranks measured it, else between one rank's own frames."""
    told = [v for by in said.scalars["step_seconds"].values() for v in by.values()]
    if not told:
        last: dict[int, tuple[int, int]] = {}
        for step in sorted(said.times_ns):
            for rank, at in said.times_ns[step].items():
                before = last.get(rank)
                if before is not None and before[0] == step - 1:
                    told.append((at - before[1]) / 1e9)
                last[rank] = (step, at)
    told = [v for v in told if math.isfinite(v) and v > 0]
    return median(told) if told else None


def _reason(
    ranks: Sequence[int], values: Values, joined: int, step_seconds: float | None
) -> str | None:
    """Why no rank is named; None where all was measured and nobody stands out."""
    if len(ranks) < 2:
        return "one rank waits for nobody"
    silent = [r for r in ranks if not any(_is_known(by, r) for by in values.values())]
    if len(silent) == len(ranks):
        return "no rank measured a collective in these steps; monitor.health() on it says why"
    if silent:
        named = ", ".join(map(str, silent[:20]))
        return f"not measured on {len(silent)} of {len(ranks)} ranks: {named}"
    if joined < communication.LEAST_STEPS:
        return f"{joined} of {communication.LEAST_STEPS} steps that every rank measured"
    return None if step_seconds else "the step time is unknown"
