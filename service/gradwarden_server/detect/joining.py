"""The frames of one step become that step: what each rank said, and one matrix per group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradwarden import wire
from gradwarden_server import joins
from gradwarden_server.detect.heard import Heard
from gradwarden_server.detect.steps import GroupStep, RankStep, Step
from gradwarden_server.joins import Flags, Matrix, observed

Layouts = Callable[[str], wire.Layout | None]

_STRICTEST: tuple[wire.Capture, ...] = ("post_clip", "pre_clip", "unclipped", "")


class Joiner:
    """Builds steps; remembers which rows of a layout are sharded."""

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._known: dict[str, tuple[tuple[wire.Parameter, ...], Flags]] = {}

    def step(
        self,
        attempt: int,
        number: int,
        first_received_ns: int,
        frames: Mapping[tuple[int, int], Heard],
        living: Iterable[int],
        partial: bool,
    ) -> Step:
        """The step of ``frames``, keyed by rank and seq; ``living`` ranks should be among them."""
        ranks: dict[int, RankStep] = {}
        cells: dict[int, dict[int, list[GroupStep]]] = {}
        shards: dict[int, int] = {}
        events: list[tuple[int, wire.Event]] = []
        by_rank: dict[int, list[Heard]] = {}
        for key in sorted(frames):
            by_rank.setdefault(key[0], []).append(frames[key])
        for rank, spoken in by_rank.items():
            said, matrix = _rank(rank, spoken)
            ranks[rank] = said
            events += [(rank, event) for heard in spoken for event in heard.frame.events]
            shards[said.group] = max(said.shards, shards.get(said.group, 1))
            if matrix is not None:
                cells.setdefault(said.group, {}).setdefault(said.shard, []).append(matrix)
        return Step(
            attempt=attempt,
            step=number,
            time_ns=min(r.time_ns for r in ranks.values()),
            first_received_ns=first_received_ns,
            groups={g: self._whole(cells[g], shards[g]) for g in sorted(cells)},
            ranks=ranks,
            events=tuple(events),
            missing=() if partial else tuple(sorted(set(living) - set(ranks))),
            partial=partial,
        )

    def _whole(self, cells: Mapping[int, Sequence[GroupStep]], shards: int) -> GroupStep:
        """One matrix out of those of a group, by shard.

        The fullest of a shard wins; between equals the lowest rank, for then the answer does
        not depend on who arrived first.
        """
        parts = [
            held[0] if len(held) == 1 else max(held, key=lambda p: (int(p.observed.sum()), -p.rank))
            for _, held in sorted(cells.items())
        ]
        first = parts[0]
        if shards == 1:
            return first
        parameters, sharded = self._rows(first)
        alike = [p for p in parts if p is first or self._rows(p)[0] == parameters]
        joined = joins.join(
            (joins.aligned(p.values, p.quantities, first.quantities) for p in alike),
            shards,
            first.quantities,
            sharded,
        )
        applied = [p.stepped for p in alike if p.stepped is not None]
        captured = {p.capture for p in alike}
        return replace(
            first,
            values=joined.values,
            complete=bool(joined.complete),
            capture=_strictest(captured),
            stepped=any(applied) if applied else None,
        )

    def _rows(self, part: GroupStep) -> tuple[tuple[wire.Parameter, ...], Flags]:
        """The parameters behind the rows of a matrix, and which of them are sharded.

        Without its layout each matrix counts as one of a kind, all sharded.
        """
        known = self._known.get(part.layout)
        if known is None:
            layout = self._layouts(part.layout)
            if layout is None or len(layout.parameters) != len(part.values):
                unknown = wire.Parameter(part.layout, (), "", "", "other", sharded=True)
                return (unknown,), np.ones(len(part.values), np.bool_)
            flags = np.array([p.sharded for p in layout.parameters], np.bool_)
            known = self._known[part.layout] = layout.parameters, flags
        return known


def _rank(rank: int, spoken: Sequence[Heard]) -> tuple[RankStep, GroupStep | None]:
    """What one rank said of a step in all its frames, and its matrix."""
    if len(spoken) == 1:
        return _said(spoken[0]), spoken[0].alone
    scalars: dict[str, float] = {}
    for heard in spoken:
        scalars.update(heard.frame.scalars)
    known = [h.frame.stepped for h in spoken if h.frame.stepped is not None]
    stepped = any(known) if known else None
    capture = _strictest({h.frame.capture for h in spoken})
    matrix = _overlay(spoken, rank, capture, stepped)
    said = RankStep(
        group=spoken[0].group,
        time_ns=min(h.frame.time_ns for h in spoken),
        scalars=scalars,
        stepped=stepped,
        capture=capture,
        bad_gradient=matrix is not None and bool(matrix.bad.any()),
        shard=spoken[0].shard,
        shards=spoken[0].shards,
        spoke=matrix is not None,
        roots=b"".join(h.frame.roots for h in spoken),
        checksums={name: words for h in spoken for name, words in h.checksums.items()},
    )
    return said, matrix


def _said(heard: Heard) -> RankStep:
    """What one rank said of a step in a single frame, as nearly all do."""
    frame, matrix = heard.frame, heard.alone
    return RankStep(
        group=heard.group,
        time_ns=frame.time_ns,
        scalars=frame.scalars,
        stepped=heard.stepped,
        capture=frame.capture,
        bad_gradient=matrix is not None and bool(matrix.bad.any()),
        shard=heard.shard,
        shards=heard.shards,
        spoke=matrix is not None,
        roots=frame.roots,
        checksums=heard.checksums if frame.wide else {},
    )


def _strictest(said: set[wire.Capture]) -> wire.Capture:
    return next(c for c in _STRICTEST if c in said or not c)


def _overlay(
    spoken: Iterable[Heard], rank: int, capture: wire.Capture, stepped: bool | None
) -> GroupStep | None:
    """One rank's matrices of a step laid over each other; unobserved rows cover nothing."""
    base: Matrix | None = None
    last: Heard | None = None
    for heard in spoken:
        rows = heard.matrix
        if rows is None:
            continue
        if base is None or last is None or base.shape != rows.shape or last.layout != heard.layout:
            base = rows
        else:
            seen = observed(rows, heard.quantities)
            base = np.where(seen[:, None], rows, base)
        last = heard
    if base is None or last is None:
        return None
    return GroupStep(base, last.quantities, last.layout, rank, capture, stepped)
