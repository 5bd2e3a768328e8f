"""What a diagnosis reads of a run, put together from the store."""

from __future__ import annotations

from gradwarden_server.api.deps import Parts
from gradwarden_server.diagnosis.case import KINDS, Case, Happening, Place, Span, Watched
from gradwarden_server.model import Alert, run_path
from gradwarden_server.store.records import RunRecord

_MOST_ALERTS = 1000
_PAGE = 500


def case_of(parts: Parts, record: RunRecord) -> Case:
    """Everything but the series."""
    project, run = record.project, record.run
    layout = parts.history.layers(project, run)
    streams = parts.runs.streams(project, run)
    attempts = parts.runs.attempts(project, run)
    newest = max((s.ordinal for s in streams), default=1)
    return Case(
        run=run,
        name=record.name,
        status=record.status,
        path=run_path(project, run),
        last_step=record.last_step,
        newest=newest,
        world_size=record.world_size,
        alerts=_alerts(parts, project, run),
        events=[
            Happening(e.ordinal, e.rank, e.step, e.time_ns, e.kind, e.data)
            for e in parts.runs.events(project, run, kinds=KINDS)
        ],
        coverage=[
            Watched(c.alert, c.state, c.detail) for c in parts.judge.coverage(project, run) or ()
        ],
        attempts=[Span(a.ordinal, a.first_step, a.last_step, a.superseded_after) for a in attempts],
        places=[Place(s.rank, s.host, s.place) for s in streams if s.ordinal == newest],
        parameters=[p.name for p in layout.parameters] if layout else [],
    )


def _alerts(parts: Parts, project: str, run: str) -> list[Alert]:
    """The newest alerts of a run, open and closed."""
    found: list[Alert] = []
    cursor: str | None = None
    while len(found) < _MOST_ALERTS:
        page = parts.ledger.list(project, run_name=run, limit=_PAGE, cursor=cursor)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    return found
