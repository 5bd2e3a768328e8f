"""One optimizer's gradients at one capture, on their way from the device to a frame."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradwarden import wire
from gradwarden.collect import Pending, Reading, reading
from gradwarden.updates import Move

STATISTICS = len(wire.QUANTITIES) + len(wire.HISTOGRAM)
_COLUMN = {name: i for i, name in enumerate(wire.COLUMNS)}
_NAN, _INF = _COLUMN["nan"], _COLUMN["inf"]
_WEIGHT, _UPDATE = _COLUMN["weight_l2"], _COLUMN["update_ratio"]
_SCALED = [_COLUMN["l2"], _COLUMN["absmax"]]
_BINNED = [_COLUMN["tiny"], *(_COLUMN[h] for h in wire.HISTOGRAM)]
_MASK = (1 << 64) - 1

Rows = tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _index(rows: Rows) -> slice | Tensor:
    """The rows as torch likes to be told them: even steps, as nearly always, as a slice."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if rows and step > 0 and rows == tuple(range(rows[0], rows[-1] + 1, step)):
        return slice(rows[0], rows[-1] + 1, step)
    return torch.tensor(rows, dtype=torch.long, device="cpu")


@dataclass(eq=False, slots=True)
class Part:
    """What was taken of the gradients (and some weights) of one optimizer's parameters.

    ``hosts`` holds the rows of each device with the words of :func:`gradwarden.stats.measure`;
    it is empty where the schedule wanted no matrix and ``sentinel`` alone tells whether all
    values were finite. A Pending that is None was dropped, the ring being full.
    """

    layout: wire.Layout
    hosts: list[tuple[Rows, Pending | None]] = field(default_factory=list)
    weights: list[tuple[Rows, Pending | None]] = field(default_factory=list)
    updates: list[tuple[Rows, Move | Pending | None]] = field(default_factory=list)
    compares: int | None = None
    moves: int | None = None
    checksums: bool = False
    sentinel: Pending | None = None
    scale: Pending | None = None
    """What the gradients were still multiplied by."""
    moving: bool = False
    """Whether the optimizer is about to move the weights that were sampled."""
    stepped: bool | None = None
    found_inf: Pending | None = None
    finite: bool | None = None
    size: int = 0
    """How many gradients there were."""

    @property
    def sees(self) -> bool:
        """Whether a matrix was taken."""
        return bool(self.hosts)

    def examine(self) -> bool | None:
        """Whether all values are finite; None while they are still on the device."""
        if self.finite is not None:
            return self.finite
        if self.sentinel is not None:
            if self.sentinel.ready:
                self.finite = float(self.sentinel.take().reshape(())) == 0.0
        elif all(h is None or h.ready for _, h in self.hosts):
            found = [reading(h.peek()).matrix for _, h in self.hosts if h is not None]
            self.finite = not any(float(m[:, _NAN : _INF + 1].sum()) for m in found)
        return self.finite

    @property
    def ready(self) -> bool:
        waits = [h for _, h in (*self.hosts, *self.weights, *self.updates)]
        waits += [self.scale, self.found_inf, self.sentinel]
        return all(not isinstance(w, Pending) or w.ready for w in waits)

    def verdict(self) -> bool | None:
        """Whether the optimizer applied these gradients; None if nobody said."""
        if self.found_inf is not None and self.found_inf.ready:
            self.stepped = float(self.found_inf.take().sum()) == 0.0
            self.found_inf = None
        return self.stepped

    def fill(self, matrix: Tensor, checksums: Tensor | None) -> bool:
        """Write what is known into [L, columns] float32 (NaN throughout) and [L, 2] int64.

        False where no matrix arrived. Once only: the pinned memory goes back to the ring.
        """
        found = False
        for rows, words in self.hosts:
            if words is None:
                continue
            found = True
            read = reading(words.take())
            values, index = read.matrix, _index(rows)
            if self.scale is not None:
                values = values.clone()
                values[:, _SCALED] /= self.scale.peek().reshape(()).to(values.dtype)
                values[:, _BINNED] = torch.nan  # bins are told of the true values or not at all
            matrix[index, :STATISTICS] = values.to(torch.float32)
            if checksums is not None and read.checksums is not None:
                checksums[index, 0] = read.checksums
        for rows, words in self.weights if found else ():
            if words is not None:
                read, index = reading(words.take()), _index(rows)
                matrix[index, _WEIGHT] = read.matrix[:, 0].to(torch.float32)
                if checksums is not None and read.checksums is not None:
                    checksums[index, 1] = read.checksums
        for rows, moved in self.updates if found else ():
            if moved is not None:
                ratios = moved.ratios() if isinstance(moved, Move) else moved.take()
                matrix[_index(rows), _UPDATE] = ratios
        return found

    def add_roots(self, roots: list[int]) -> bool:
        """Add our checksums to the subtotals; False where some are not to be had."""
        if self.compares is None or not self.hosts:
            return False
        pairs = [(1, 1, rows, host) for rows, host in self.hosts]
        pairs += [(1 + wire.SLICES, wire.SLICES, rows, host) for rows, host in self.weights]
        for first, step, rows, host in pairs:
            read: Reading | None = reading(host.peek()) if host is not None else None
            if read is None or read.checksums is None:
                return False
            for row, checksum in zip(rows, read.checksums.tolist(), strict=True):
                if step == 1 or row % wire.SLICES == self.compares:
                    at = first + row // step % wire.SLICES
                    roots[at] = (roots[at] + checksum) & _MASK
        roots[0] = self.compares
        return True
