"""The HTTP API of Prometheus: Grafana's data source, promtool and vmalert work with it as it is.

Parameters come from the URL and from a form, on GET and on POST, as its clients send them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader
from gradwarden_server.api.exposed import Json, told
from gradwarden_server.matchers import Matcher
from gradwarden_server.promql.engine import Engine
from gradwarden_server.promql.errors import ExecutionError, LimitExceeded, QueryError
from gradwarden_server.promql.parse import formatted, millis, parse, plain, selector, span
from gradwarden_server.promql.vector import NAME, Labels
from gradwarden_server.querying.series import LAYER, MEANINGS, SCALAR
from gradwarden_server.querying.storage import ProjectStorage
from gradwarden_server.store.reading.pieces import READABLE

router = APIRouter(prefix="/api/v1", tags=["prometheus"], dependencies=CREDENTIALS)

_TIMEOUT_SECONDS = 120.0
_RECENTLY_MS = 3_600_000
# What there is, with one statistic of each layer: the others have the same labels.
_ANYTHING = (
    (Matcher(NAME, LAYER), Matcher("quantity", "l2")),
    (Matcher(NAME, SCALAR),),
    (Matcher(NAME, f"{LAYER}|{SCALAR}", is_regex=True, is_equal=False),),
)
_LONGEST_BODY = 1 << 20
_MOST_SERIES = 100_000

Form = Sequence[tuple[str, str]]


class _Wrong(ValueError):
    """A parameter that cannot be read."""


async def _form(request: Request) -> Form:
    """Parameters of the URL and of a form; a body of any other type is not looked at."""
    found = list(request.query_params.multi_items())
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.method == "POST" and kind == "application/x-www-form-urlencoded":
        body = (await request.body())[:_LONGEST_BODY]
        found += parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    return found


FormDep = Annotated[Form, Depends(_form)]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The parameters of one request."""

    form: Form

    def one(self, name: str) -> str | None:
        return next((value for key, value in self.form if key == name), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.form if key == name]

    def needed(self, name: str) -> str:
        value = self.one(name)
        if value is None:
            raise _Wrong(f'invalid parameter "{name}": it is missing')
        return value

    def moment(self, name: str, otherwise: int | None = None) -> int:
        """Milliseconds of a Unix time or an RFC 3339 text."""
        value = self.one(name)
        if value is None or value == "":
            if otherwise is None:
                raise _Wrong(f'invalid parameter "{name}": it is missing')
            return otherwise
        try:
            seconds = float(value)
            if math.isfinite(seconds) and abs(seconds) < 1e13:
                return round(seconds * 1000)
        except ValueError:
            try:
                moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
                return round(moment.timestamp() * 1000)
            except ValueError:
                pass
        raise _Wrong(f'invalid parameter "{name}": cannot parse {value!r} to a valid timestamp')

    def duration(self, name: str, otherwise: float | None = None) -> float:
        """Seconds of a number or of ``5m``."""
        value = self.one(name)
        if value is None or value == "":
            if otherwise is None:
                raise _Wrong(f'invalid parameter "{name}": it is missing')
            return otherwise
        try:
            seconds = float(value)
        except ValueError:
            try:
                return millis(span(value)) / 1000
            except ValueError:
                seconds = math.nan
        if not math.isfinite(seconds):
            raise _Wrong(f'invalid parameter "{name}": cannot parse {value!r} to a valid duration')
        return seconds


@router.api_route("/query", methods=["GET", "POST"], summary="A query at one moment")
async def query(form: FormDep, who: Reader, parts: PartsDep) -> Response:
    """Parameters: query, time, timeout."""

    def answer(asked: _Asked) -> Any:
        at_ms = asked.moment("time", _now_ms())
        return told(_engine(parts, who.project, asked).instant(asked.needed("query"), at_ms))

    return await _answered(form, answer)


@router.api_route("/query_range", methods=["GET", "POST"], summary="A query over a time")
async def query_range(form: FormDep, who: Reader, parts: PartsDep) -> Response:
    """Parameters: query, start, end, step, timeout."""

    def answer(asked: _Asked) -> Any:
        start_ms, end_ms = asked.moment("start"), asked.moment("end")
        step_ms = round(asked.duration("step") * 1000)
        text = asked.needed("query")
        engine = _engine(parts, who.project, asked)
        return told(engine.range(text, start_ms, end_ms, step_ms))

    return await _answered(form, answer)


@router.api_route("/series", methods=["GET", "POST"], summary="Label sets that selectors match")
async def list_series(form: FormDep, who: Reader, parts: PartsDep) -> Response:
    """Parameters: match[], start, end, limit."""

    def answer(asked: _Asked) -> Any:
        if not asked.all("match[]"):
            raise _Wrong("no match[] parameter provided")
        return list(_label_sets(parts, who.project, asked))

    return await _answered(form, answer)


@router.api_route("/labels", methods=["GET", "POST"], summary="Names of labels")
async def label_names(form: FormDep, who: Reader, parts: PartsDep) -> Response:
    """Parameters: match[], start, end, limit."""

    def answer(asked: _Asked) -> Any:
        names = {name for labels in _label_sets(parts, who.project, asked) for name in labels}
        return sorted(names)

    return await _answered(form, answer)


@router.get("/label/{name}/values", summary="Values of a label")
async def label_values(
    name: Annotated[str, Path(max_length=1024)], form: FormDep, who: Reader, parts: PartsDep
) -> Response:
    """Parameters: match[], start, end, limit."""

    def answer(asked: _Asked) -> Any:
        if name == NAME and not asked.all("match[]"):
            return sorted({*MEANINGS, *parts.sources.samples.names(who.project)})
        found = [labels.get(name) for labels in _label_sets(parts, who.project, asked)]
        if name == "quantity" and not asked.all("match[]"):
            found += READABLE
        return sorted({value for value in found if value})

    return await _answered(form, answer)


@router.get("/metadata", summary="What series mean")
async def metadata(form: FormDep, who: Reader) -> Response:
    """Parameters: metric, limit."""

    def answer(asked: _Asked) -> Any:
        wanted = asked.one("metric")
        return {
            name: [{"type": meaning.kind, "help": meaning.help, "unit": ""}]
            for name, meaning in MEANINGS.items()
            if wanted in (None, "", name)
        }

    return await _answered(form, answer)


@router.api_route("/format_query", methods=["GET", "POST"], summary="A query, laid out")
async def format_query(form: FormDep, who: Reader) -> Response:
    """Parameters: query."""
    return await _answered(form, lambda asked: formatted(asked.needed("query")))


def _engine(parts: Parts, project: str, asked: _Asked) -> Engine:
    seconds = min(asked.duration("timeout", _TIMEOUT_SECONDS), _TIMEOUT_SECONDS)
    until = time.monotonic() + seconds
    storage = ProjectStorage(parts.sources, project, time.time_ns())
    return Engine(storage, expired=lambda: time.monotonic() > until)


def _label_sets(parts: Parts, project: str, asked: _Asked) -> Iterator[Labels]:
    end_ms = asked.moment("end", _now_ms())
    start_ms = asked.moment("start", end_ms - _RECENTLY_MS)
    limit = int(asked.duration("limit", 0)) or _MOST_SERIES
    selectors = [selector_of(text) for text in asked.all("match[]")]
    storage = ProjectStorage(parts.sources, project, time.time_ns())
    seen: set[tuple[tuple[str, str], ...]] = set()
    for matchers in selectors or _ANYTHING:
        for block in storage.select(matchers, start_ms, end_ms):
            for labels in block.labels:
                identity = tuple(sorted(labels.items()))
                if identity not in seen and len(seen) < limit:
                    seen.add(identity)
                    yield dict(identity)


def selector_of(text: str) -> Sequence[Matcher]:
    """The matchers of one ``match[]``.

    Raises:
        QueryError: it is no selector.
    """
    node = plain(parse(text))
    if not hasattr(node, "matchers"):
        raise QueryError(f"match[]: {text!r} is no selector of series")
    return selector(node)


async def _answered(form: Form, of: Callable[[_Asked], Any]) -> Response:
    try:
        return success(await run_in_threadpool(of, _Asked(form)))
    except (_Wrong, QueryError) as error:
        return _failed(400, "bad_data", str(error))
    except LimitExceeded as error:
        timed_out = "timed out" in str(error)
        return _failed(503 if timed_out else 422, "timeout" if timed_out else "execution", error)
    except ExecutionError as error:
        return _failed(422, "execution", error)


def success(data: Any) -> Response:
    """An answer as its clients read it."""
    text = data if isinstance(data, Json) else json.dumps(data, ensure_ascii=False)
    body = f'{{"status":"success","data":{text}}}'
    return Response(body.encode(errors="replace"), media_type="application/json")


def _failed(status: int, kind: str, error: object) -> Response:
    """A refusal as its clients read it."""
    body = {"status": "error", "errorType": kind, "error": str(error)}
    return JSONResponse(body, status_code=status)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
