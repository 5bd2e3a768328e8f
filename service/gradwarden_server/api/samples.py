"""Single series at full resolution, streamed: what a notebook reads, however long the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import chain, islice
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader, RunId
from gradwarden_server.api.leaving import WHILE_WANTED
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.ranges import First, InTime, Last, steps_asked
from gradwarden_server.api.runs import known_run
from gradwarden_server.api.series import keys_of
from gradwarden_server.store.reading.curves import SeriesTable

log = logging.getLogger(__name__)

router = APIRouter(
    prefix="/v1/runs/{run}", tags=["series"], dependencies=[*CREDENTIALS, WHILE_WANTED]
)

_PAGE = 4096
"""Steps read at a time; a reader that leaves costs no more than these."""
_LINES = 128


@router.get(
    "/samples",
    summary="Series at every step, streamed",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
def samples(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    keys: Annotated[
        str, Query(max_length=8000, description="loss,lr,grad_norm,layer:3:l2 and the like")
    ],
    first: First = None,
    last: Last = None,
) -> StreamingResponse:
    """One JSON object a line for each step with a frame: step, time_ns, and every key.

    null: not measured at that step; "nonfinite": NaN or infinite. Nothing is joined or left
    out, and what arrives meanwhile may or may not be told. A stream that meets an error ends
    without its last chunk, so that no client takes it for whole.
    """
    known_run(parts, who.project, run)
    wanted = keys_of(keys)
    steps = steps_asked(parts, who.project, run, {"from": first, "to": last}, times)
    pages = _pages(parts, who.project, run, wanted, steps)
    try:
        begun = next(pages, b"")  # so that a key that names nothing is refused, not streamed
    except ValueError as error:
        detail = f"{error}; layer keys are layer:<row>:<quantity>"
        raise Problem("malformed", detail, field="keys") from None
    return StreamingResponse(chain([begun], pages), media_type="application/x-ndjson")


def _pages(
    parts: Parts,
    project: str,
    run: str,
    keys: list[str],
    steps: tuple[int | None, int | None] | None,
) -> Iterator[bytes]:
    """Lines in blocks, page after page; the log tells how far the reading went."""
    span = parts.log.span(project, run)
    if span is None or steps is None:
        return
    first = span[0] if steps[0] is None else max(steps[0], span[0])
    last = span[1] if steps[1] is None else min(steps[1], span[1])
    told, whole = 0, False
    try:
        for low in range(first, last + 1, _PAGE):
            high = min(low + _PAGE - 1, last)
            table = parts.history.series(project, run, keys, low, high, _PAGE)
            told += len(table.step)
            yield from _blocks(table)
        whole = True
    finally:
        log.info("samples of run %s: %d steps read, %s", run, told, "all" if whole else "left")


def _blocks(table: SeriesTable) -> Iterator[bytes]:
    """A page whose buckets are single steps, as some lines at a time."""
    columns = [map(_text, c["last"], c["nonfinite"]) for c in table.keys.values()]
    names = [json.dumps(key) for key in ("step", "time_ns", *table.keys)]
    line = "{{" + ",".join(f"{_braced(name)}:{{}}" for name in names) + "}}"
    rows = zip(table.step, table.time_ns, *columns, strict=True)
    while some := [line.format(*row) for row in islice(rows, _LINES)]:
        yield ("\n".join(some) + "\n").encode()


def _text(value: float | None, bad: float | None) -> str:
    return '"nonfinite"' if bad else "null" if value is None else repr(value)


def _braced(text: str) -> str:
    """Text as ``format`` leaves it."""
    return text.replace("{", "{{").replace("}", "}}")
