"""A spool's run as a diagnosis reads it: its case, and its series straight from the batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwarden import wire
from gradwarden.spool import read_segment, segments
from gradwarden.sync import find
from gradwarden_server.cli import spooled
from gradwarden_server.cli.spooled import Spooled
from gradwarden_server.diagnosis.case import (
    KINDS,
    Case,
    Happening,
    Place,
    Points,
    Span,
    Watched,
    alerts_of,
)
from gradwarden_server.diagnosis.diagnose import diagnose
from gradwarden_server.diagnosis.words import Diagnosis
from gradwarden_server.model import DEFAULT_PROJECT, run_path
from gradwarden_server.rules.spec import RuleSet

_BLOCK = 512
_SCALARS = 100  # names that are kept of a run; a loop may log thousands
_Who = tuple[int, int]


@dataclass(slots=True)
class _Heard:
    """What is kept of a run's frames while they are judged: events and scalars, no matrices."""

    events: list[Happening] = field(default_factory=list)
    scalars: dict[str, dict[int, tuple[_Who, float]]] = field(default_factory=dict)
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    layout: str = ""

    def take(self, ordinal: int, batch: wire.Batch) -> None:
        rank = batch.stream.rank
        self.layout = batch.layout or self.layout
        for frame in batch.frames:
            low, high = self.steps.get(ordinal, (frame.step, frame.step))
            self.steps[ordinal] = min(low, frame.step), max(high, frame.step)
            for event in frame.events:
                if event["kind"] in KINDS:
                    self.events.append(
                        Happening(
                            ordinal, rank, frame.step, frame.time_ns, str(event["kind"]), event
                        )
                    )
            for name, value in frame.scalars.items():
                if name in self.scalars or len(self.scalars) < _SCALARS:
                    self._keep(self.scalars.setdefault(name, {}), frame.step, ordinal, rank, value)

    @staticmethod
    def _keep(
        held: dict[int, tuple[_Who, float]], step: int, ordinal: int, rank: int, value: float
    ) -> None:
        """Of the newest attempt, and there of the lowest rank."""
        who = ordinal, -rank
        known = held.get(step)
        if known is None or known[0] <= who:
            held[step] = who, value


def diagnoses(directory: Path, rules: RuleSet) -> Iterator[tuple[Spooled, Diagnosis]]:
    """Every run whose spools lie at or under a directory, judged and diagnosed.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    heard: dict[str, _Heard] = {}

    def hear(run: str, ordinal: int, batch: wire.Batch) -> None:
        heard.setdefault(run, _Heard()).take(ordinal, batch)

    for one in spooled.judge(directory, rules, hear):
        held = heard.get(one.facts.run, _Heard())
        layout = one.layouts.get(held.layout)
        case = _case(one, held, layout)
        yield one, diagnose(case, _Series(directory, one.facts.run, held, layout))


def _case(one: Spooled, held: _Heard, layout: wire.Layout | None) -> Case:
    newest = max((ordinal for ordinal, _ in one.starts), default=1)
    places = [
        Place(int(start.get("rank") or 0), str(start.get("host") or ""), start.get("place") or {})
        for ordinal, start in one.starts
        if ordinal == newest
    ]
    return Case(
        run=one.facts.run,
        name=one.facts.name,
        status=one.status,
        path=run_path(DEFAULT_PROJECT, one.facts.run),
        last_step=one.facts.last_step,
        newest=newest,
        world_size=one.facts.world_size,
        alerts=alerts_of(one.replay.changes),
        events=held.events,
        coverage=[Watched(c.alert, c.state, c.detail) for c in one.replay.coverage()],
        attempts=_spans(held.steps),
        places=sorted(places, key=lambda place: place.rank),
        parameters=[p.name for p in layout.parameters] if layout else [],
    )


def _spans(steps: Mapping[int, tuple[int, int]]) -> list[Span]:
    """The attempts, with what each later one did again."""
    found: list[Span] = []
    redone: int | None = None
    for ordinal in sorted(steps, reverse=True):
        first, last = steps[ordinal]
        dead = redone - 1 if redone is not None and last >= redone else None
        found.append(Span(ordinal, first, last, dead))
        redone = first if redone is None else min(redone, first)
    return found[::-1]


class _Series:
    """Scalars from memory; norms and layers from the spool, read in blocks where one is asked."""

    def __init__(self, directory: Path, run: str, held: _Heard, layout: wire.Layout | None) -> None:
        self._directory, self._run, self._held = directory, run, held
        self._layout = layout
        names = layout.parameters if layout else ()
        self._rows = {p.name: row for row, p in enumerate(names)}
        self._blocks: dict[int, dict[int, tuple[_Who, dict[str, list[float]]]]] = {}

    def scalar(self, name: str, first: int, last: int) -> Points:
        """A scalar, or ``grad_norm``."""
        if name == "grad_norm":
            return [(s, _norm(columns)) for s, columns in self._matrices(first, last)]
        values = self._held.scalars.get(name, {})
        return [(step, values[step][1]) for step in sorted(values) if first <= step <= last]

    def layer(self, parameter: str, quantity: str, first: int, last: int) -> Points:
        """One quantity of one parameter."""
        row = self._rows.get(parameter)
        if row is None:
            return ()
        found = []
        for step, columns in self._matrices(first, last):
            if quantity in columns and not math.isnan(columns["zero"][row]):
                value = columns[quantity][row]
                if quantity not in wire.SLOW or not math.isnan(value):  # they come in turn
                    found.append((step, value))
        return found

    def _matrices(self, first: int, last: int) -> Iterator[tuple[int, dict[str, list[float]]]]:
        for block in range(first // _BLOCK, last // _BLOCK + 1):
            if block not in self._blocks:
                self._blocks[block] = self._read(block * _BLOCK, block * _BLOCK + _BLOCK - 1)
            for step in sorted(self._blocks[block]):
                if first <= step <= last:
                    yield step, self._blocks[block][step][1]

    def _read(self, low: int, high: int) -> dict[int, tuple[_Who, dict[str, list[float]]]]:
        """The matrices of steps [low, high], of the newest attempt and the lowest rank."""
        found: dict[int, tuple[_Who, dict[str, list[float]]]] = {}
        attempts: dict[str, int] = {}
        for directory in find(self._directory):
            for path in segments(directory):
                for record in read_segment(path):
                    if record.kind != "batch":
                        continue
                    batch = _of(record.body, self._run, low, high)
                    if batch is None or self._layout is None or batch.layout != self._layout.hash:
                        continue
                    order = attempts.setdefault(batch.stream.attempt, len(attempts))
                    for frame in batch.frames:
                        who = order, -batch.stream.rank
                        known = found.get(frame.step)
                        if frame.values and (known is None or known[0] <= who):
                            found[frame.step] = who, _columns(frame.values, batch.quantities)
        return found


def _of(body: bytes, run: str, low: int, high: int) -> wire.Batch | None:
    """A batch of the run that has a step within [low, high]; None of any other."""
    try:
        header = wire.check(body).header
        wanted = header.stream.run == run and any(low <= step <= high for step in header.steps)
        return wire.decode(body) if wanted and any(header.matrix) else None
    except wire.WireError:
        return None


def _columns(values: bytes, quantities: tuple[str, ...]) -> dict[str, list[float]]:
    cells: Any = memoryview(values).cast("f")
    return {name: cells[i :: len(quantities)].tolist() for i, name in enumerate(quantities)}


def _norm(columns: dict[str, list[float]]) -> float:
    """The root of the sum of squares, of the rows that have a gradient; NaN if any is bad."""
    if any(n > 0 for name in ("nan", "inf") for n in columns[name]):
        return math.nan
    seen = [v for v in columns["l2"] if not math.isnan(v)]
    return math.sqrt(sum(min(v, 1e150) ** 2 for v in seen)) if seen else math.nan
