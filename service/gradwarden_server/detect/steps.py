"""What detectors read: one joined step of one attempt, over all ranks that reported it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.joins import Flags, Matrix, observed


@dataclass(frozen=True, eq=False)
class GroupStep:
    """The matrix of one group: a row per parameter, a column per quantity.

    Not ``complete`` where a shard of it is missing: its sharded rows are then unobserved, unless
    what is there is non-finite, and no sum over rows is the model's.
    """

    values: Matrix
    quantities: tuple[str, ...]
    layout: str
    rank: int
    capture: wire.Capture = ""
    stepped: bool | None = None
    complete: bool = True

    def column(self, quantity: str) -> Matrix:
        """One quantity of every parameter; all NaN where the speaker did not send it."""
        if quantity in self.quantities:
            return self.values[:, self.quantities.index(quantity)]
        return np.full(len(self.values), np.nan, np.float32)

    @cached_property
    def updates(self) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Rows whose update ratio was measured now, and its log10; None where none was.

        Rows take turns, so that most steps have none. An update of nothing counts as 1e-30.
        """
        if "update_ratio" not in self.quantities or self.stepped is False:
            return None
        column = self.column("update_ratio")
        rows = np.flatnonzero(column == column)
        rows = rows[np.isfinite(column[rows])] if len(rows) else rows
        if not len(rows):
            return None
        return rows, np.log10(np.maximum(column[rows].astype(np.float64), 1e-30))

    @cached_property
    def observed(self) -> Flags:
        """Rows with a gradient: their counts are numbers."""
        return observed(self.values, self.quantities)

    @cached_property
    def bad(self) -> Flags:
        """Rows whose gradient holds a NaN or an Inf."""
        if "nan" in self.quantities or "inf" in self.quantities:
            return (self.column("nan") > 0) | (self.column("inf") > 0)
        return self.observed & ~np.isfinite(self.column("l2"))


@dataclass(frozen=True, slots=True)
class RankStep:
    """What one rank itself said of the step, before any reduction.

    Ranks of one ``group`` and ``shard`` hold the same values; the ``shards`` of a group make up
    the whole. ``spoke`` says that it sent a matrix; ``roots`` are the roots of its frames end to
    end, ``checksums`` its full checksums by column, 64-bit words by row.
    """

    group: int
    time_ns: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    stepped: bool | None = None
    capture: wire.Capture = ""
    bad_gradient: bool = False
    shard: int = 0
    shards: int = 1
    spoke: bool = False
    roots: bytes = b""
    checksums: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def bad_loss(self) -> bool:
        return not math.isfinite(self.scalars.get("loss", 0.0))

    @property
    def bad_alone(self) -> bool | None:
        """Whether its own gradients were non-finite before the ranks were summed, if it knows."""
        buckets = self.scalars.get("local_nonfinite_buckets")
        return None if buckets is None else buckets > 0


@dataclass(frozen=True, eq=False)
class Step:
    """One step of one attempt. Steps without groups and ranks carry events alone.

    ``partial`` marks an early look at a step that is still being joined.
    """

    attempt: int
    step: int
    time_ns: int
    first_received_ns: int
    groups: Mapping[int, GroupStep] = field(default_factory=dict)
    ranks: Mapping[int, RankStep] = field(default_factory=dict)
    events: tuple[tuple[int, wire.Event], ...] = ()
    missing: tuple[int, ...] = ()
    partial: bool = False

    @property
    def eventful(self) -> bool:
        """Whether this is a carrier of events, not a training step."""
        return not self.ranks

    @cached_property
    def stepped(self) -> bool | None:
        """True where any rank applied the step, False where all that know skipped it."""
        known = [r.stepped for r in self.ranks.values() if r.stepped is not None]
        return None if not known else any(known)

    def scalar(self, name: str) -> float | None:
        """The mean over the ranks that logged it, or None."""
        if name not in self._means:
            self._means[name] = self._mean(name)
        return self._means[name]

    @cached_property
    def _means(self) -> dict[str, float | None]:
        """What was asked already: several detectors ask the same of a thousand ranks."""
        return {}

    def _mean(self, name: str) -> float | None:
        values = [r.scalars[name] for r in self.ranks.values() if name in r.scalars]
        if not values:
            return None
        bad = next((v for v in values if not math.isfinite(v)), None)
        return sum(v / len(values) for v in values) if bad is None else bad
