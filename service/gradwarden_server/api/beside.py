"""Ranks beside each other: the median of all, who took longest, and how slow each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradwarden_server.store.reading.curves import Doubles


@dataclass(frozen=True, slots=True)
class Beside:
    """By column over all ranks; None or NaN where nobody told how long it took.

    ``pace`` is how many times the median a rank took, on average over its columns.
    """

    usual: Doubles
    slowest: list[int | None]
    longest: Doubles
    pace: dict[int, float]

    @classmethod
    def of(cls, seconds: Mapping[int, Doubles], columns: int) -> Beside:
        """``seconds`` of each rank by column; what is not above zero is not known."""
        ranks = list(seconds)
        table = np.array([seconds[rank] for rank in ranks]).reshape(len(ranks), columns)
        table = np.where(np.isfinite(table) & (table > 0), table, np.nan)
        known = np.isfinite(table).any(axis=0)
        usual, longest = np.full(columns, np.nan), np.full(columns, np.nan)
        slowest: list[int | None] = [None] * columns
        if known.any():
            usual[known] = np.nanmedian(table[:, known], axis=0)
            longest[known] = np.nanmax(table[:, known], axis=0)
            for column in np.flatnonzero(known).tolist():
                slowest[column] = ranks[int(np.nanargmax(table[:, column]))]
        times = table / usual
        told = np.isfinite(times).any(axis=1)
        paces = np.nanmean(times[told], axis=1).tolist()
        pace = dict(zip([r for r, t in zip(ranks, told, strict=True) if t], paces, strict=True))
        return cls(usual, slowest, longest, pace)
