"""Every refusal as an RFC 9457 problem document. The table is the whole vocabulary.

A foreign error becomes a problem in :func:`translate` and nowhere else. Clients decide by
``type``; people read ``detail``, which names the field, what was found, and the remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from gradwarden import wire
from gradwarden_server.store import errors

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
BASE = "https://gradwarden.dev/problems/"

PROBLEMS: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The request could not be read"),
    "unauthenticated": (401, "A token is needed"),
    "forbidden": (403, "The token's scope does not allow this"),
    "forbidden-project": (403, "The token belongs to another project"),
    "forbidden-origin": (403, "The request came from a foreign page"),
    "not-found": (404, "There is no such thing here"),
    "method-not-allowed": (405, "The method is not known here"),
    "timeout": (408, "The request took too long to arrive"),
    "not-online": (409, "This cannot be done while the service runs"),
    "run-already-live": (409, "Another live process reports this rank"),
    "unknown-layout": (409, "The layout is not known here"),
    "unknown-stream": (409, "The stream was not started here"),
    "backtest-busy": (409, "One backtest runs at a time"),
    "not-dead": (409, "The message is not one to send again"),
    "run-deleted": (410, "The run was deleted"),
    "too-large": (413, "The request is too large"),
    "unsupported-media-type": (415, "The media type is not known here"),
    "invalid-arguments": (422, "The command cannot be given with these arguments"),
    "unsupported-version": (422, "The wire version is not known here"),
    "rate-limited": (429, "Too many requests"),
    "backlogged": (429, "Too many frames wait for compaction"),
    "damaged": (500, "Stored data is damaged"),
    "internal": (500, "The service met an error of its own"),
    "not-installed": (501, "The service was installed without this"),
    "unavailable": (503, "The service cannot take this now"),
    "disk-full": (507, "No room is left to store this"),
}
_BY_STATUS = {404: "not-found", 405: "method-not-allowed"}


class ProblemDocument(BaseModel):
    """The body of every refusal; some kinds carry more members."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


OPENAPI_RESPONSE: dict[str, Any] = {
    "description": "A refusal, as a problem document",
    "content": {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
}


class Problem(HTTPException):
    """A refusal, named by its slug in :data:`PROBLEMS`."""

    def __init__(
        self, slug: str, detail: str, headers: Mapping[str, str] | None = None, **extras: Any
    ) -> None:
        super().__init__(PROBLEMS[slug][0], detail, dict(headers or {}))
        self.slug = slug
        self.extras = extras

    def document(self, request_id: str) -> dict[str, Any]:
        """The JSON body."""
        return {
            "type": BASE + self.slug,
            "title": PROBLEMS[self.slug][1],
            "status": self.status_code,
            "detail": self.detail,
            "request_id": request_id,
            **self.extras,
        }

    def response(self, request_id: str) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(
            self.document(request_id), self.status_code, self.headers, media_type=MEDIA_TYPE
        )


def translate(error: Exception) -> Problem | None:
    """The problem that stands for an error of ours, or None for a fault of the service."""
    match error:
        case Problem():
            return error
        case wire.TooLarge():
            return Problem("too-large", str(error), field=error.field)
        case wire.UnsupportedVersion():
            return Problem("unsupported-version", str(error), field=error.field)
        case wire.WireError():
            return Problem("malformed", str(error), field=error.field)
        case errors.UnknownStream():
            return Problem("unknown-stream", f"{error}; POST /v1/start, then send this again")
        case errors.UnknownLayout():
            return Problem(
                "unknown-layout",
                f"{error}; POST it to /v1/layouts, then send this again",
                layout=error.layout,
            )
        case errors.RunAlreadyLive():
            return Problem(
                "run-already-live",
                f"{error}; end it, or start under another run id",
                held_by={"host": error.host, "pid": error.pid, "nonce": error.nonce},
                live_seconds=round(error.live_seconds, 3),
            )
        case errors.RunDeleted():
            return Problem("run-deleted", f"{error}; start under another run id")
        case errors.DiskFull():
            return Problem("disk-full", str(error), {"Retry-After": "5"})
        case errors.DatabaseDamaged():
            return Problem("damaged", str(error))
        case errors.Damaged():
            return Problem("damaged", str(error), place=error.place, what=error.what)
        case errors.Unavailable():
            return Problem("unavailable", str(error), {"Retry-After": "1"})
        case RequestValidationError():
            return invalid("malformed", error.errors())
        case HTTPException():
            slug = _BY_STATUS.get(error.status_code, "malformed")
            return Problem(slug, str(error.detail), error.headers)
    return None


def install(app: FastAPI) -> None:
    """Answer every error that a route raises with its problem document."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        problem = translate(error)
        if problem is None:  # pragma: no cover - only classes that translate are registered
            raise error
        return problem.response(request_id(request.scope))

    for kind in (HTTPException, RequestValidationError, wire.WireError, errors.StoreError):
        app.add_exception_handler(kind, refuse)


def request_id(scope: Mapping[str, Any]) -> str:
    """The id of a request, as the outermost middleware chose it."""
    return str(scope.get("state", {}).get("request_id", ""))


def invalid(slug: str, mistakes: Sequence[Any], within: Sequence[str] = ()) -> Problem:
    """Every mistake at once, each with its field, what was found, and what is expected.

    Args:
        slug: What kind of refusal it is.
        mistakes: As pydantic lists them.
        within: Where the checked part lies in the body.
    """
    found = []
    for mistake in mistakes[:20]:
        own = [str(part) for part in mistake["loc"] if part not in ("body", "query", "path")]
        place = [*within, *own]
        value = mistake.get("input")
        shown = value if isinstance(value, (int, bool)) or value is None else str(value)[:120]
        found.append(
            {
                "field": ".".join(place) or "body",
                "value": shown if not isinstance(shown, str) else _printable(shown),
                "remedy": mistake["msg"],
            }
        )
    detail = "; ".join(f"{m['field']}: {m['value']!r}; {m['remedy']}" for m in found)
    return Problem(slug, detail, errors=found, field=found[0]["field"] if found else "body")


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
