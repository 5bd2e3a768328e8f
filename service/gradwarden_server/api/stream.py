"""News as they happen, as server-sent events: what changed, never what was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader
from gradwarden_server.api.hub import Full, Listener
from gradwarden_server.api.news import AlertNews, RunNews, is_topic
from gradwarden_server.api.problems import Problem

router = APIRouter(prefix="/v1", tags=["stream"], dependencies=CREDENTIALS)

_MOST_TOPICS = 32
_BEAT_SECONDS = 15.0
_BEAT = b": beat\n\n"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would gather messages before it passes them on
}


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


@router.get(
    "/stream",
    summary="What changes, as it changes",
    response_class=EventStream,
    responses={200: {"model": RunNews | AlertNews}},
)
async def stream(
    request: Request,
    who: Reader,
    parts: PartsDep,
    topics: Annotated[
        str, Query(max_length=8000, description="fleet, alerts, run:<name>; comma-separated")
    ],
    last_event_id: Annotated[
        str | None, Header(max_length=64, description="The last id seen: go on after it")
    ] = None,
) -> EventStream:
    """Server-sent events, at most four a second of a topic, a comment every 15 s.

    ``run.update`` and ``alert.update`` have the items that changed and the keys that are gone;
    ``resync`` says that what was missed is not known: read what is shown anew.
    """
    wanted = list(dict.fromkeys(filter(None, topics.split(","))))
    if not 0 < len(wanted) <= _MOST_TOPICS:
        raise Problem(
            "malformed", f"topics: {len(wanted)}; name 1 to {_MOST_TOPICS}", field="topics"
        )
    for topic in wanted:
        if not is_topic(topic):
            detail = f"topics: {topic[:100]!r}; any of fleet, alerts, run:<name>"
            raise Problem("malformed", detail, field="topics")
    try:
        listener = await parts.hub.join(who.project, wanted, last_event_id)
    except Full:
        detail = f"{parts.settings.max_streams} streams are open here; ask again, or poll"
        raise Problem("unavailable", detail, {"Retry-After": "15"}) from None
    return EventStream(_messages(request, parts, listener), headers=_HEADERS)


async def _messages(request: Request, parts: Parts, listener: Listener) -> AsyncIterator[bytes]:
    try:
        while True:
            try:
                message = await asyncio.wait_for(listener.queue.get(), _BEAT_SECONDS)
            except TimeoutError:
                if not await _still_admitted(request, parts):
                    return
                message = _BEAT
            if message is None:
                return
            yield message
    finally:
        parts.hub.leave(listener)


async def _still_admitted(request: Request, parts: Parts) -> bool:
    """Whether the session or token still lives; one that was revoked hears no more."""
    try:
        await parts.doorman.admit(request, "read")
    except Problem:
        return False
    return True
