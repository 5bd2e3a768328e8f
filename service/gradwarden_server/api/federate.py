"""``/federate``: newest samples of chosen series in the text that a Prometheus scrapes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse

from gradwarden_server.api.deps import CREDENTIALS, PartsDep, Reader
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.prometheus import selector_of
from gradwarden_server.matchers import Matcher
from gradwarden_server.promql.errors import QueryError
from gradwarden_server.promql.histograms import number
from gradwarden_server.promql.scope import LOOKBACK_MS
from gradwarden_server.promql.storage import look
from gradwarden_server.promql.vector import NAME, Labels
from gradwarden_server.querying.storage import ProjectStorage

router = APIRouter(tags=["prometheus"], dependencies=CREDENTIALS)

MOST_SERIES = 10_000
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@router.get("/federate", summary="Newest samples, for a Prometheus to scrape")
def federate(
    who: Reader,
    parts: PartsDep,
    match: Annotated[list[str], Query(alias="match[]", min_length=1, max_length=64)],
) -> PlainTextResponse:
    """One line a series that any selector matches; at most 10,000, else it is refused."""
    try:
        selectors = [selector_of(text) for text in match]
    except QueryError as error:
        raise Problem("malformed", f"match[]: {error}", field="match[]") from None
    storage = ProjectStorage(parts.sources, who.project, time.time_ns())
    lines = sorted(_lines(storage, selectors, time.time_ns() // 1_000_000))
    if len(lines) > MOST_SERIES:
        what = f"match[]: {len(lines)} series match, at most {MOST_SERIES} are told; ask for fewer"
        raise Problem("too-large", what, field="match[]")
    named: dict[str, list[str]] = {}
    for name, line in lines:
        named.setdefault(name, []).append(line)
    text = "".join(f"# TYPE {name} untyped\n{''.join(held)}" for name, held in named.items())
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _lines(
    storage: ProjectStorage, selectors: Sequence[Sequence[Matcher]], now_ms: int
) -> Iterator[tuple[str, str]]:
    at = np.array([now_ms], np.int64)
    seen: set[str] = set()
    for matchers in selectors:
        found = look(storage.select(matchers, now_ms - LOOKBACK_MS, now_ms), at, LOOKBACK_MS)
        for row, labels in enumerate(found.vector.labels):
            series = _series(labels)
            if series not in seen:
                seen.add(series)
                value, taken = float(found.vector.values[row, 0]), int(found.taken[row, 0])
                yield labels[NAME], f"{series} {number(value)} {taken}\n"


def _series(labels: Labels) -> str:
    pairs = (
        f'{name}="{value.translate(_ESCAPES)}"'
        for name, value in sorted(labels.items())
        if name != NAME
    )
    return f"{labels[NAME]}{{{','.join(pairs)}}}"
