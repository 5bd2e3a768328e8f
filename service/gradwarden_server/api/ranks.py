"""Ranks side by side: which report, lag or are silent, which was sick first, which drifted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from gradwarden_server.api.beside import Beside
from gradwarden_server.api.deps import CREDENTIALS, PartsDep, Reader, RunId
from gradwarden_server.api.drift import DRIFTS, drifted
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.ranges import First, InTime, Last, steps_asked
from gradwarden_server.api.runs import known_run
from gradwarden_server.store.reading.curves import Doubles
from gradwarden_server.store.reading.strip import RankStrip
from gradwarden_server.store.records import LIVE_NS, RunRecord, StreamRecord

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["ranks"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

State = Literal["reporting", "behind", "silent", "ended", "missing"]
_MOST = 64
"""Ranks that are told one by one; of more the oddest ones come first."""
_STEP = "step_seconds"
_WAITING: dict[str, tuple[str, ...]] = {
    "step time less waiting in all-reduce": ("allreduce_exposed_seconds",),
    "step time less reduce-scatter and all-gather": (
        "reduce_scatter_seconds",
        "all_gather_seconds",
    ),
}
"""What of a step is spent on other ranks, best measure first."""
_WORK: dict[str, tuple[str, ...]] = {
    "data and forward time": ("data_seconds", "forward_seconds"),
    "step time": (_STEP,),
}
_NAMES = tuple(dict.fromkeys(n for names in (*_WAITING.values(), *_WORK.values()) for n in names))
_CALM = 4
_NEVER = math.inf
_SLOW = 1.1
"""So many times the median of all ranks, on average over the columns."""


class RankLine(BaseModel):
    """One rank, and its steps by column."""

    rank: int
    state: State
    host: str | None
    last_step: int | None
    lag_steps: int | None = Field(description="Steps behind the rank that is furthest")
    last_seen_ns: int | None
    first_bad_step: int | None = Field(
        description="Of the whole run, at which its own loss or gradients were not finite, "
        "before any averaging"
    )
    drift_step: int | None = Field(description="From which its replica differs from the others")
    told: list[int] = Field(description="Steps told, by column")
    bad: list[int] = Field(description="Of them those that were not finite, by column")
    seconds: list[float | None] = Field(description="Mean of the measure, by column")


class RankStrips(BaseModel):
    """All ranks over the same buckets of steps; of too many the oddest: those that are not finite
    or drifted, then the slow, the silent or behind, and the missing."""

    world_size: int
    counts: dict[State, int]
    measure: str | None = Field(description="What the seconds are of")
    step: list[int]
    step_last: list[int]
    usual: list[float | None] = Field(description="The median of all ranks' seconds, by column")
    slowest: list[int | None] = Field(description="Of all ranks the one that took longest")
    longest: list[float | None] = Field(description="And its seconds")
    first_bad: list[int] = Field(description="The ranks sick at the earliest step of the run")
    first_bad_step: int | None
    drifted: list[int]
    ranks: list[RankLine]
    left_out: int
    left_out_odd: int = Field(description="Of them those that something is odd about")


@router.get("/ranks", summary="Which ranks report, lag, are silent, were sick first, or drifted")
def ranks_of_run(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    first: First = None,
    last: Last = None,
    cols: Annotated[int, Query(ge=1, le=500)] = 240,
) -> RankStrips:
    """Ranks of the newest attempt over at most ``cols`` buckets of steps.

    A rank is silent where nothing was heard of it for 30 s while the run goes on, and behind
    where it is heard and its newest step is 30 s older than the newest of all.
    """
    record = known_run(parts, who.project, run)
    steps = steps_asked(parts, who.project, run, {"from": first, "to": last}, times)
    streams = parts.runs.streams(who.project, run)
    newest = max((s.ordinal for s in streams), default=0)
    living = {s.rank: s for s in streams if s.ordinal == newest}
    found = parts.history.rank_strips(who.project, run, _NAMES, *(steps or (None, None)), cols)
    grid = found.grid if found and steps else None
    strips = found.ranks if found and steps else {}
    bad = found.onsets if found else {}
    states = _states(record, living)
    alerts = (parts.ledger.list(who.project, run_name=run, alertname=name) for name in DRIFTS)
    named = drifted((alert for page in alerts for alert in page.items), newest)
    drift = {rank: step for rank, step in named.items() if rank in states}
    signs = {r: min(bad.get(r, _NEVER), drift.get(r, _NEVER)) for r in states}
    onset = min(bad.values(), default=None)
    measure, seconds = _measured(strips)
    beside = Beside.of(seconds, grid.count if grid else 0)
    pace = {r: beside.pace.get(r, 0.0) for r in states}
    odd = {r: _oddness(state, signs[r], pace[r]) for r, state in states.items()}
    # Of ranks that are as odd those that were sick first, then those that are slowest.
    order = sorted(states, key=lambda r: (odd[r], signs[r], -pace[r], r))
    furthest = max((s.last_step for s in living.values() if s.last_step is not None), default=None)
    starts = grid.starts() if grid else []
    width = grid.width if grid else 1
    return RankStrips(
        world_size=max(record.world_size, len(states)),
        counts={s: n for s in get_args(State) if (n := list(states.values()).count(s))},
        measure=measure,
        step=starts,
        step_last=[min(s + width - 1, grid.last) for s in starts] if grid else [],
        usual=_rounded(beside.usual),
        slowest=beside.slowest,
        longest=_rounded(beside.longest),
        first_bad=sorted(r for r, step in bad.items() if step == onset),
        first_bad_step=onset,
        drifted=sorted(drift),
        ranks=[
            _line(
                r,
                states[r],
                living.get(r),
                furthest,
                bad.get(r),
                drift.get(r),
                strips.get(r),
                seconds.get(r),
            )
            for r in sorted(order[:_MOST])
        ],
        left_out=max(0, len(order) - _MOST),
        left_out_odd=sum(odd[r] < _CALM for r in order[_MOST:]),
    )


def _line(
    rank: int,
    state: State,
    stream: StreamRecord | None,
    furthest: int | None,
    bad: int | None,
    drift: int | None,
    strip: RankStrip | None,
    seconds: Doubles | None,
) -> RankLine:
    reached = stream.last_step if stream else None
    return RankLine(
        rank=rank,
        state=state,
        host=stream.host if stream else None,
        last_step=reached,
        lag_steps=None if reached is None or furthest is None else furthest - reached,
        last_seen_ns=_heard(stream) if stream else None,
        first_bad_step=bad,
        drift_step=drift,
        told=strip.told.tolist() if strip else [],
        bad=strip.bad.tolist() if strip else [],
        seconds=_rounded(seconds) if seconds is not None else [],
    )


def _rounded(seconds: Doubles) -> list[float | None]:
    return [None if np.isnan(v) else float(f"{v:.4g}") for v in seconds.tolist()]


def _heard(stream: StreamRecord) -> int:
    return max(stream.last_seen_ns, stream.heartbeat_ns or 0)


def _states(record: RunRecord, living: Mapping[int, StreamRecord]) -> dict[int, State]:
    """How each rank of the world stands; ranks that never came are missing."""
    now = time.time_ns()
    told = [s.last_step_ns for s in living.values() if s.last_step_ns is not None]
    newest = max(told, default=0)
    found: dict[int, State] = {}
    for rank in sorted({*range(record.world_size), *living}):
        stream = living.get(rank)
        if stream is None:
            found[rank] = "missing"
        elif stream.ended or record.status != "running":
            found[rank] = "ended"
        elif now - _heard(stream) > LIVE_NS:
            found[rank] = "silent"
        elif newest - (stream.last_step_ns or 0) > LIVE_NS:
            found[rank] = "behind"
        else:
            found[rank] = "reporting"
    return found


def _oddness(state: State, sign: float, pace: float) -> int:
    """Whom to see first; :data:`_CALM` for a rank that nothing is odd about."""
    if sign < _NEVER:
        return 0
    if pace > _SLOW:
        return 1
    return {"silent": 2, "behind": 2, "missing": 3}.get(state, _CALM)


def _measured(strips: Mapping[int, RankStrip]) -> tuple[str | None, dict[int, Doubles]]:
    """The first measure that more than half of the ranks know, and what they say of it."""

    def known(found: Mapping[int, Doubles]) -> bool:
        return 2 * sum(bool(np.isfinite(v).any()) for v in found.values()) > len(found) > 0

    for measure, names in _WAITING.items():
        found = {r: s.mean((_STEP,)) - s.mean(names) for r, s in strips.items()}
        if known(found):
            return measure, found
    for measure, names in _WORK.items():
        found = {r: s.mean(names) for r, s in strips.items()}
        if known(found):
            return measure, found
    return None, {}
