"""One batch of the log, decoded for reading: its scalars, and its matrices laid end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server import joins
from gradwarden_server.joins import Matrix
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.log.segments import Segment
from gradwarden_server.store.reading.curves import Doubles, Ints
from gradwarden_server.store.shelves.spine import Spine

NAN, INF = wire.QUANTITIES.index("nan"), wire.QUANTITIES.index("inf")  # neighbours

TOGETHER = (wire.QUANTITIES, wire.HISTOGRAM, wire.SLOW)
"""Columns measured at the same steps; they are decoded and kept together, and apart from the
others, so that reading norms costs no memory for what was not asked for."""
RMS = "rms"
"""The L2 norm over the root of the number of elements: derived when read, never sent."""
READABLE = (*wire.COLUMNS, RMS)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One quantity to read: column ``index`` of the matrices of ``columns``."""

    name: str
    columns: tuple[str, ...]
    index: int

    @classmethod
    def named(cls, name: str) -> Quantity:
        """Raises ValueError: not one of :data:`READABLE`."""
        column = "l2" if name == RMS else name
        for columns in TOGETHER:
            if column in columns:
                return cls(name, columns, columns.index(column))
        raise ValueError(f"the quantity is one of {', '.join(READABLE)}")

    def of(self, matrix: Matrix, scale: Doubles | None) -> tuple[Matrix, NDArray[np.bool_]]:
        """[m, L] values times the [L] of :meth:`scale`, and which of them were measured.

        A NaN norm or maximum of an observed row was; any other NaN means that the column was
        not asked for at this step.
        """
        values = matrix[..., self.index]
        if self.name not in ("l2", "absmax", RMS):
            return values, ~np.isnan(values)
        measured = ~np.isnan(matrix[..., NAN])
        if scale is None:
            return values, measured
        return (values * scale).astype(np.float32), measured & ~np.isnan(scale)

    def scale(self, layout: wire.Layout) -> Doubles | None:
        """[L], by which values are multiplied, NaN for rows without elements; None for 1."""
        if self.name != RMS:
            return None
        sizes = np.array([math.prod(p.shape) for p in layout.parameters], np.float64)
        return 1 / np.sqrt(np.where(sizes > 0, sizes, np.nan))


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank said in one batch; ``matrix`` is [m, L, K] over the frames that hold one.

    Its K ``columns`` are one of :data:`TOGETHER`; of other columns than the statistics only
    frames in which any row was measured are kept, and no scalars. ``squares`` is the sum of
    squared norms over the observed layers, [m], of all layers where ``complete``; ``scalars``
    are steps and values of each name. The rank holds one of ``shards`` parts of its group's
    parameters.
    """

    rank: int
    group: int
    shard: int
    shards: int
    layout: str
    columns: tuple[str, ...]
    steps: Ints
    times_ns: Ints
    scalars: dict[str, tuple[Ints, Doubles]]
    matrix_steps: Ints
    matrix_times_ns: Ints
    matrix: Matrix
    squares: Doubles
    complete: NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        names = sum(400 + 16 * steps.size for steps, _ in self.scalars.values())
        return int(self.matrix.nbytes) + names + 1000 + 40 * self.steps.size

    def chosen(self, kept: NDArray[np.bool_]) -> Piece:
        """The same with only these of its matrices."""
        return replace(
            self,
            matrix_steps=self.matrix_steps[kept],
            matrix_times_ns=self.matrix_times_ns[kept],
            matrix=self.matrix[kept],
            squares=self.squares[kept],
            complete=self.complete[kept],
        )

    @property
    def normed(self) -> NDArray[np.bool_]:
        """[m], whether the sum over layers is the group's: with a shard missing it is only
        where it is not finite, which no other shard can mend."""
        return self.complete | ~np.isfinite(self.squares)


def decode(entry: LogEntry, columns: tuple[str, ...]) -> Piece:
    """Decode these columns, one of :data:`TOGETHER`, of one entry of the log."""
    batch = entry.batch()
    whole = columns == wire.QUANTITIES
    held = whole or not set(columns).isdisjoint(batch.quantities)
    rows = [i for i, frame in enumerate(batch.frames) if frame.values and held]
    joined = b"".join(batch.frames[i].values for i in rows)
    shape = (len(rows), batch.parameters, len(batch.quantities))
    sent = np.frombuffer(joined, dtype="<f4").reshape(shape)
    matrix = joins.aligned(sent, batch.quantities, columns)
    if not whole:
        measured = np.flatnonzero(~np.isnan(matrix).all(axis=(1, 2)))
        matrix, rows = matrix[measured], [rows[i] for i in measured]
    scalars: dict[str, tuple[list[int], list[float]]] = {}
    for frame in batch.frames if whole else ():
        for name, value in frame.scalars.items():
            steps_of, values_of = scalars.setdefault(name, ([], []))
            steps_of.append(frame.step)
            values_of.append(value)
    steps = np.array([frame.step for frame in batch.frames], dtype=np.int64)
    times_ns = np.array([frame.time_ns + entry.shift_ns for frame in batch.frames], dtype=np.int64)
    return Piece(
        rank=entry.rank,
        group=batch.stream.group,
        shard=entry.shard,
        shards=entry.shards,
        layout=batch.layout,
        columns=columns,
        steps=steps,
        times_ns=times_ns,
        scalars={
            name: (np.array(at, dtype=np.int64), np.array(values, dtype=np.float64))
            for name, (at, values) in scalars.items()
        },
        matrix_steps=steps[rows],
        matrix_times_ns=times_ns[rows],
        matrix=matrix,
        squares=squares(matrix, columns),
        complete=np.ones(len(rows), np.bool_),
    )


def of_segment(
    segment: Segment, told: Spine, columns: tuple[str, ...], matrix: Matrix | None = None
) -> Piece:
    """A segment as one piece; ``matrix`` is [matrices, L, K], of none only scalars are told."""
    whole = columns == wire.QUANTITIES
    frames = told.matrix_frames
    found = np.zeros((frames.size, 0, len(columns)), np.float32) if matrix is None else matrix
    if not whole:
        measured = told.measured.get(_group(told, columns), np.zeros(0, np.int64))
        frames, found = frames[measured], found[measured]
    times_ns = told.series_times_ns()
    scalars = {name: (told.steps[at], values) for name, (at, values) in told.scalars.items()}
    return Piece(
        rank=segment.rank,
        group=segment.group,
        shard=segment.shard,
        shards=segment.shards,
        layout=segment.layout,
        columns=columns,
        steps=told.steps,
        times_ns=times_ns,
        scalars=scalars if whole else {},
        matrix_steps=told.steps[frames],
        matrix_times_ns=times_ns[frames],
        matrix=found,
        squares=told.squares if whole else np.full(frames.size, np.nan),
        complete=np.ones(frames.size, np.bool_),
    )


def end_to_end(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one stream as one; their matrices are left out."""
    if len(pieces) == 1:
        return pieces[0]
    names = sorted({name for piece in pieces for name in piece.scalars})
    told = {name: [p.scalars[name] for p in pieces if name in p.scalars] for name in names}
    return replace(
        pieces[0],
        steps=np.concatenate([p.steps for p in pieces]),
        times_ns=np.concatenate([p.times_ns for p in pieces]),
        scalars={
            name: (np.concatenate([s for s, _ in some]), np.concatenate([v for _, v in some]))
            for name, some in told.items()
        },
        matrix_steps=np.concatenate([p.matrix_steps for p in pieces]),
        matrix_times_ns=np.concatenate([p.matrix_times_ns for p in pieces]),
        matrix=np.zeros((sum(p.matrix_steps.size for p in pieces), 0, 0), np.float32),
        squares=np.concatenate([p.squares for p in pieces]),
        complete=np.concatenate([p.complete for p in pieces]),
    )


def _group(told: Spine, columns: tuple[str, ...]) -> str:
    return next((told.columns[c] for c in columns if c in told.columns), "")


def squares(matrix: Matrix, columns: tuple[str, ...]) -> Doubles:
    """[m] sums of squared norms over the observed rows of [m, L, K]; NaN without norms."""
    if columns != wire.QUANTITIES:
        return np.full(len(matrix), np.nan)
    norms = np.where(np.isnan(matrix[:, :, NAN]), 0, matrix[:, :, 0]).astype(np.float64)
    return np.asarray(np.sum(norms * norms, axis=1), np.float64)
