"""A whole run as one file, streamed as it is read; reading ends when the client leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from gradwarden import wire
from gradwarden_server.api import snapshot
from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader, RunId
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.ranges import First, Last
from gradwarden_server.api.runs import known_run
from gradwarden_server.store.reading.export import RunExport
from gradwarden_server.store.records import RunRecord
from gradwarden_server.transfer import formats, page
from gradwarden_server.transfer.faults import MissingExtra
from gradwarden_server.transfer.head import AttemptFacts, Head, RunFacts, StreamFacts

router = APIRouter(prefix="/v1/runs/{run}", tags=["export"], dependencies=CREDENTIALS)


@router.get(
    "/export",
    summary="A run as a file",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "application/x-ndjson": {"schema": {"type": "string"}},
                "text/csv": {"schema": {"type": "string"}},
                "application/vnd.apache.parquet": {
                    "schema": {"type": "string", "format": "binary"}
                },
                "application/vnd.gradwarden.frames-file": {
                    "schema": {"type": "string", "format": "binary"}
                },
                "text/html": {"schema": {"type": "string"}},
            }
        }
    },
)
def export(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    form: Annotated[formats.ExportName, Query(alias="format")] = "jsonl",
    first: First = None,
    last: Last = None,
) -> StreamingResponse:
    """Everything that ``gradwarden import`` needs to bring the run back; or, as html, a page that
    opens without a network.

    What arrives after the request is left out. A file that ends early breaks the connection.
    """
    record = known_run(parts, who.project, run)
    if form == "html":
        media_type, pieces = page.MEDIA_TYPE, snapshot.write(parts, who, record, first, last)
    else:
        try:
            module = formats.load(form)
        except MissingExtra as error:
            raise Problem("not-installed", f"format: {form}; {error}, or ask for csv") from None
        frames = _counted(parts, who.project, record, first, last)
        media_type = module.MEDIA_TYPE
        pieces = module.write(head_of(parts, who.project, record), frames)
    return StreamingResponse(
        _told(parts, form, pieces),
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{run}.{form}"'},
    )


def head_of(parts: Parts, project: str, record: RunRecord) -> Head:
    """Read after the record, whose position bounds the frames: nothing of theirs is missing."""
    attempts = parts.runs.attempts(project, record.run)
    names = {a.ordinal: a.attempt for a in attempts}
    layouts = (parts.runs.layout(project, h) for h in parts.log.layouts(project, record.run))
    return Head(
        RunFacts(**{n: getattr(record, n) for n in RunFacts.__dataclass_fields__}),
        [
            AttemptFacts(**{n: getattr(a, n) for n in AttemptFacts.__dataclass_fields__})
            for a in attempts
        ],
        [
            StreamFacts(
                names[s.ordinal], s.rank, s.group, s.shard, s.shards, s.host, s.pid, dict(s.place)
            )
            for s in parts.runs.streams(project, record.run)
            if s.ordinal in names
        ],
        {layout.hash: layout for layout in reversed([one for one in layouts if one])},
    )


def _counted(
    parts: Parts, project: str, record: RunRecord, first: int | None, last: int | None
) -> Iterator[wire.Batch]:
    reader = RunExport(parts.log)
    for batch in reader.batches(project, record.run, record.position, first, last):
        parts.telemetry.export_frames.inc(len(batch.frames))
        yield batch
    if parts.runs.get(project, record.run) is None:
        raise Problem("not-found", f"run: {record.run!r} was deleted while it was read")


async def _told(parts: Parts, form: str, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces that hold something; every piece is a moment at which the client may be gone."""
    result = "left"
    try:
        async for piece in iterate_in_threadpool(pieces):
            if piece:
                yield piece
        result = "done"
    except Exception:
        result = "failed"
        raise
    finally:
        parts.telemetry.exports.labels(form, result).inc()
