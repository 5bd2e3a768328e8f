"""What ails a run, put together when it is asked for: alerts, events, coverage and series."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Query

from gradwarden_server.api.cases import case_of
from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader, RunId
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.runs import known_run
from gradwarden_server.diagnosis.case import Case, Points
from gradwarden_server.diagnosis.diagnose import diagnose
from gradwarden_server.diagnosis.words import Diagnosis

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["diagnosis"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

_BLOCK = 512  # steps; read whole, since findings lie close together


@router.get("/diagnosis", summary="What ails a run, why, and what to do first")
def get_diagnosis(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    at: Annotated[
        int | None, Query(ge=0, le=2**62, description="Only what began up to this step")
    ] = None,
) -> Diagnosis:
    """Findings in the order of their onset, joined into stories, the worst story first.

    The first finding of a story is its likely origin. Each has its evidence with the page's
    address that shows it, what else was looked for, and actions, the first safe one first; a
    command is given only where it is known to be right. It is made anew from what is stored.
    """
    record = known_run(parts, who.project, run)
    case = case_of(parts, record)
    return diagnose(case, _Stored(parts, who.project, case), at)


class _Stored:
    """The run's series, read in blocks of steps and kept for one diagnosis."""

    def __init__(self, parts: Parts, project: str, case: Case) -> None:
        self._history, self._project, self._run = parts.history, project, case.run
        self._rows = {name: row for row, name in enumerate(case.parameters)}
        self._blocks: dict[tuple[str, int], list[tuple[int, float]]] = {}

    def scalar(self, name: str, first: int, last: int) -> Points:
        """A scalar, or ``grad_norm``."""
        return self._read(name, first, last)

    def layer(self, parameter: str, quantity: str, first: int, last: int) -> Points:
        """One quantity of one parameter."""
        row = self._rows.get(parameter)
        return () if row is None else self._read(f"layer:{row}:{quantity}", first, last)

    def _read(self, key: str, first: int, last: int) -> Points:
        found = [
            point
            for block in range(first // _BLOCK, last // _BLOCK + 1)
            for point in self._block(key, block)
        ]
        return [(step, value) for step, value in found if first <= step <= last]

    def _block(self, key: str, block: int) -> list[tuple[int, float]]:
        held = self._blocks.get((key, block))
        if held is None:
            low = block * _BLOCK
            table = self._history.series(
                self._project, self._run, [key], low, low + _BLOCK - 1, _BLOCK
            )
            columns = table.keys[key]
            held = self._blocks[key, block] = [
                (step, math.nan if bad else float(value or 0.0))
                for step, value, bad in zip(
                    table.step, columns["last"], columns["nonfinite"], strict=True
                )
                if low <= step < low + _BLOCK and (bad or value is not None)
            ]
        return held
