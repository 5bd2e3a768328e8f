"""Runs of other tools, made of series: one frame for each step at which anything was logged.

Such a run has one attempt and one rank. Of several values of one series at one step the last
stands. Layers are known by the norms of their gradients alone: their shapes are unknown, and a
norm that is not finite counts as one NaN or Inf, since how many there were was not kept.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.transfer import tags
from gradwarden_server.transfer.frames import MOST_NAMES, one_frame
from gradwarden_server.transfer.head import AttemptFacts, Head, RunFacts, StreamFacts
from gradwarden_server.transfer.source import Source

_ATTEMPT = "a1"
_BLOCK = re.compile(r"(?:^|[./])(\d+)(?:[./]|$)")
_KINDS = (
    ("bias", re.compile(r"bias\Z", re.I)),
    ("norm", re.compile(r"norm|(?:^|[._/])(?:ln|bn)[_\d]*[._/]", re.I)),
    ("embedding", re.compile(r"embed|(?:^|[._/])wte|(?:^|[._/])wpe", re.I)),
    ("head", re.compile(r"(?:^|[._/])(?:lm_head|head|classifier|fc_out)(?:[._/]|$)", re.I)),
)
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(slots=True)
class Series:
    """Points in the order in which they were logged; ``largest`` where it is known too."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times_ns: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    largest: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: int, time_ns: int, value: float, largest: float | None = None) -> None:
        """One more point."""
        self.steps.append(step)
        self.times_ns.append(time_ns)
        self.values.append(value)
        if largest is not None:
            self.largest.append(largest)


def source(
    label: str,
    run: RunFacts,
    scalars: Mapping[str, Series],
    histograms: Mapping[str, Series],
    ending: wire.Event | None,
    identity: str,
) -> Source:
    """A run of series; ``ending`` is the event that closes it, None while it goes on."""
    everything = (*scalars.values(), *histograms.values())
    dropped = sum(int((_ints(series.steps) < 0).sum()) for series in everything)
    remarks = [f"{dropped} values at steps below 0 are left out"] if dropped else []
    roles = tags.roles(scalars, histograms)
    known = [histograms[tag] for tag in roles.layers if tag in histograms]
    steps, times = _when([*scalars.values(), *known])
    layout = wire.Layout(tuple(map(_parameter, roles.layers.values())))
    layers = [histograms.get(tag) or scalars[tag] for tag in roles.layers]
    table = _Table(steps, layers)
    points = _Points(steps, [(name, scalars[tag]) for tag, name in roles.scalars.items()])
    if layers:
        remarks.append(f"{len(layers)} layers by their gradient norms; their shapes are unknown")
    started = int(times[0]) if steps.size else run.started_ns
    facts = replace(run, started_ns=run.started_ns or started)
    attempt = AttemptFacts(_ATTEMPT, started_ns=facts.started_ns)
    head = Head(
        facts,
        [replace(attempt, first_step=int(steps[0]) if steps.size else 0)],
        [StreamFacts(_ATTEMPT, 0, host="unknown")],
        {layout.hash: layout} if layers else {},
    )
    key = wire.StreamKey(run.run, _ATTEMPT, 0, "import", 0)

    def frames() -> Iterator[wire.Batch]:
        seq = 0
        for at, (step, time_ns) in enumerate(zip(steps.tolist(), times.tolist(), strict=True)):
            found = points.at(at)
            values = table.row(at)
            for first in range(0, max(1, len(found)), MOST_NAMES):
                seq += 1
                rest = first + MOST_NAMES < len(found)
                last = at + 1 == steps.size and not rest
                frame = wire.Frame(
                    seq,
                    step,
                    time_ns,
                    dict(found[first : first + MOST_NAMES]),
                    (ending,) if last and ending is not None else (),
                    "unclipped" if values and not first else "",
                    open=rest,
                    values=b"" if first else values,
                )
                digest = layout.hash if frame.values else ""
                rows = len(layers) if digest else 0
                yield one_frame(label, key, frame, digest, rows, table.quantities)

    return Source(label, head, frames, identity, tuple(remarks))


class _Table:
    """The norms of layers, [steps, layers], and what can be said of them beside."""

    def __init__(self, steps: Ints, layers: list[Series]) -> None:
        most = any(layer.largest for layer in layers)
        self.quantities = ("l2", *(("absmax",) if most else ()), "nan", "inf")
        self._values = np.full((steps.size, len(layers), len(self.quantities)), np.nan, np.float32)
        for i, layer in enumerate(layers):
            at, last = _last(steps, layer)
            norms = np.frombuffer(layer.values, np.float64)[last]
            columns = [norms, np.isnan(norms), np.isinf(norms)]
            if most:
                largest = np.frombuffer(layer.largest, np.float64)
                found = largest[last] if layer.largest else np.full(norms.shape, np.nan)
                columns.insert(1, found)
            with np.errstate(over="ignore"):
                self._values[at, i] = np.stack(columns, axis=1).astype(np.float32)

    def row(self, at: int) -> bytes:
        """One step's matrix, or nothing where no layer was logged."""
        values = self._values[at]
        seen = values.size and not np.isnan(values[:, -1]).all()
        return values.astype("<f4").tobytes() if seen else b""


class _Points:
    """Every scalar's points, sorted by step."""

    def __init__(self, steps: Ints, named: list[tuple[str, Series]]) -> None:
        self._names = [name for name, _ in named]
        places, owners, values = [], [], []
        for i, (_, series) in enumerate(named):
            at, last = _last(steps, series)
            places.append(at)
            owners.append(np.full(at.size, i, np.int64))
            values.append(np.frombuffer(series.values, np.float64)[last])
        if not named:
            places, owners, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        place = np.concatenate(places)
        order = np.argsort(place, kind="stable")
        self._owners, self._values = np.concatenate(owners)[order], np.concatenate(values)[order]
        self._edges = np.searchsorted(place[order], np.arange(steps.size + 1))

    def at(self, step: int) -> list[tuple[str, float]]:
        """The scalars of the step of that index."""
        part = slice(self._edges[step], self._edges[step + 1])
        pairs = zip(self._owners[part].tolist(), self._values[part].tolist(), strict=True)
        return [(self._names[owner], value) for owner, value in pairs]


def _when(series: list[Series]) -> tuple[Ints, Ints]:
    """The steps of all series, rising, and when each was logged first; times never go back."""
    if not series:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    steps = np.concatenate([_ints(s.steps) for s in series])
    times = np.concatenate([_ints(s.times_ns) for s in series])
    order = np.lexsort((times, steps))
    order = order[steps[order] >= 0]
    found, first = np.unique(steps[order], return_index=True)
    return found, np.maximum.accumulate(times[order][first]) if found.size else found


def _last(steps: Ints, series: Series) -> tuple[Ints, Ints]:
    """Where among ``steps`` a series has points, and which of its points stands at each."""
    mine = _ints(series.steps)
    found, backwards = np.unique(mine[::-1], return_index=True)
    kept = found >= 0
    last = mine.size - 1 - backwards
    return np.searchsorted(steps, found[kept]), last[kept]


def _parameter(name: str) -> wire.Parameter:
    found = _BLOCK.search(name)
    block = name[: found.end(1)] if found else re.split(r"[./]", name)[0] or name
    kind = next((kind for kind, shape in _KINDS if shape.search(name)), "matrix")
    return wire.Parameter(name, (), "unknown", block, kind)


def _ints(values: array[int]) -> Ints:
    return np.frombuffer(values, np.int64)
