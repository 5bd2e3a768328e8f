"""What a run's page shows, read for one HTML file; in the order in which it would be missed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, TypeAdapter

from gradwarden_server import assets
from gradwarden_server.api.access import Principal
from gradwarden_server.api.alert_schemas import AlertDetail
from gradwarden_server.api.alerts import get_alert, list_alerts
from gradwarden_server.api.deps import Parts
from gradwarden_server.api.diagnosis import get_diagnosis
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.ranges import Times
from gradwarden_server.api.runs import get_run, list_events
from gradwarden_server.api.series import heatmap, series
from gradwarden_server.store.records import RunRecord
from gradwarden_server.telemetry import package_version
from gradwarden_server.transfer import page

_TEMPLATE = assets.WEB / "export.html"
_METRICS = ("l2", "update_ratio", "absmax", "nan", "zero", "rms", "weight_l2", "tiny")
_SCALARS = ("loss", "lr", "grad_norm", "clip_norm")
_PHASES = ("data", "forward", "backward", "optimizer", "step")
_COLUMNS = (2000, 1000, 500, 250, 100)
_ALERTS = 50
_LAYERS = 12
_ALWAYS = Times(None, None)


class Stories(BaseModel):
    """Alerts with all that happened to them."""

    items: list[AlertDetail]


def write(
    parts: Parts, who: Principal, record: RunRecord, first: int | None, last: int | None
) -> Iterator[bytes]:
    """The file, as it is read.

    Raises:
        Problem: the dashboard was not built into this installation; or no step of the run is asked
            for.
    """
    if not _TEMPLATE.is_file():
        detail = "format: html needs the dashboard; build it: python dashboards/build_web.py"
        raise Problem("not-installed", detail, field="format")
    _clipped(parts.log.span(who.project, record.run), first, last)
    facts = {
        "run": record.run,
        "project": record.project,
        "exported_at": rfc3339(time.time_ns()),
        "service": parts.settings.url,
        "version": package_version(),
        "from": first,
        "to": last,
        "meta": _meta(record),
    }
    title = f"{record.name or record.run} · gradwarden"
    read = _Reader(parts, who, record.run, first, last)
    return page.write(_TEMPLATE.read_text(encoding="utf-8"), title, facts, read.parts())


class _Reader:
    """Asks the very routes that the page of the dashboard asks."""

    def __init__(
        self, parts: Parts, who: Principal, run: str, first: int | None, last: int | None
    ) -> None:
        self._parts, self._who, self._run = parts, who, run
        self._first, self._last = first, last

    def parts(self) -> Iterator[page.Part]:
        """The run and what ails it, its lines, the heatmap of norms, then the rest."""
        run = get_run(self._run, self._who, self._parts)
        run.steps = _clipped(run.steps, self._first, self._last)
        alerts = list_alerts(
            self._who, self._parts, "pending,firing,resolved", self._run, limit=_ALERTS
        )
        yield _one("run", run)
        yield _one("alerts", alerts)
        yield _one("diagnosis", get_diagnosis(self._run, self._who, self._parts))
        named = {run.worst_layer, *(a.annotations.get("layer") for a in alerts.items)}
        rows = [layer.i for layer in run.layers if {layer.name, layer.layer} & named][:_LAYERS]
        yield page.Part("series", [partial(self._series, rows, n) for n in _COLUMNS[1:]])
        yield page.Part("heatmap l2", [partial(self._heatmap, "l2", n) for n in _COLUMNS])
        ids = [alert.id for alert in alerts.items]
        yield page.Part("stories", [partial(self._stories, ids[:n]) for n in (_ALERTS, 10, 1)])
        yield page.Part("events", [self._events])
        for metric in _METRICS[1:]:
            name = f"heatmap {metric}"
            yield page.Part(name, [partial(self._heatmap, metric, n) for n in _COLUMNS])

    def _series(self, rows: Sequence[int], points: int) -> bytes:
        keys = [*_SCALARS, *(f"{phase}_seconds" for phase in _PHASES)]
        keys += [f"layer:{row}:{quantity}" for row in rows for quantity in ("l2", "absmax")]
        answer = series(
            self._run,
            self._who,
            self._parts,
            _ALWAYS,
            ",".join(keys),
            self._first,
            self._last,
            points,
        )
        return bytes(answer.body)

    def _heatmap(self, metric: str, columns: int) -> bytes:
        answer = heatmap(
            self._run, self._who, self._parts, _ALWAYS, metric, self._first, self._last, columns
        )
        return bytes(answer.body)

    def _events(self) -> bytes:
        found = list_events(self._run, self._who, self._parts, _ALWAYS, self._first, self._last)
        return _bytes(found)

    def _stories(self, ids: Sequence[int]) -> bytes:
        return _bytes(Stories(items=[get_alert(one, self._who, self._parts) for one in ids]))


def _clipped(
    steps: tuple[int, int] | None, first: int | None, last: int | None
) -> tuple[int, int] | None:
    """Of the steps of a run those that are asked for."""
    if steps is None:
        return None
    low, high = steps
    start = low if first is None else max(low, first)
    end = high if last is None else min(high, last)
    if start > end:
        field, asked = ("to", last) if last is not None and last < low else ("from", first)
        until = "" if last is None else f" up to {last}"
        detail = f"{field}: {asked}; no step{until} is left, the run has steps {low} to {high}"
        raise Problem("malformed", detail, field=field)
    return start, end


def _one(name: str, answer: object) -> page.Part:
    return page.Part(name, [partial(_bytes, answer)])


def _bytes(answer: object) -> bytes:
    """As the route would have sent it."""
    return TypeAdapter(type(answer)).dump_json(answer, by_alias=True)


def _meta(record: RunRecord) -> dict[str, Any]:
    """What its owner said of the run; what nobody said is left out."""
    said: dict[str, Any] = {
        "run": record.run,
        "name": record.name,
        "project": record.project,
        "status": record.status,
        "job": record.training_job,
        "model": record.model,
        "data set": record.dataset,
        "owner": record.owner,
        "team": record.team,
        "environment": record.environment,
        "cluster": record.cluster,
        "queue": record.queue,
        "commit": record.git_commit,
        "ranks": record.world_size,
        "started": _moment(record.started_ns),
        "ended": _moment(record.ended_ns),
    }
    return {key: value for key, value in said.items() if value not in (None, "")}


def _moment(ns: int | None) -> str | None:
    text = rfc3339(ns)
    return None if text is None else f"{text[:10]} {text[11:19]} UTC"
