"""What is remembered of one cell's comparisons, and what of the next one is a sign.

Each of 16 gradient words and 256 weight words is armed by itself, once it was equal for long
enough: a parameter that differs by design blinds no more than the words it is part of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwarden.wire.quantity import SLICES
from gradwarden_server.detect.replicas import (
    Compared,
    Flags,
    Rows,
    gradient_words,
    weight_words,
)


@dataclass(frozen=True, slots=True)
class Sign:
    """What differs at one step: weights or gradients; the last step at which it was equal; the
    ranks that the others contradict, None without a majority; and the rows it lies in, ``exact``
    or under suspicion."""

    what: str
    since: int
    odd: tuple[int, ...] | None
    rows: tuple[int, ...]
    exact: bool


@dataclass(slots=True)
class Track:
    """One kind of words: which were ever present, how often in a row they were equal and when
    last, and which are armed."""

    seen: Flags
    row: Rows
    last: Rows
    armed: Flags

    @classmethod
    def of(cls, count: int) -> Track:
        """So many words of which nothing is known."""
        flags, numbers = np.zeros(count, np.bool_), np.zeros(count, np.int64)
        return cls(flags, numbers, numbers.copy(), flags.copy())

    def learn(self, at: slice, step: int, present: Flags, unequal: Flags, enough: int) -> Flags:
        """Take one comparison of the words ``at``; those that were armed and differ."""
        differ = unequal & self.armed[at]
        same = present & ~unequal
        self.seen[at] |= present
        self.row[at] = np.where(same, self.row[at] + 1, np.where(unequal, 0, self.row[at]))
        self.last[at] = np.where(same, step, self.last[at])
        self.armed[at] |= self.row[at] >= enough
        return differ


@dataclass(slots=True)
class Memory:
    """One cell. The signs are numbers of comparisons, ``asked`` is that of the last request;
    ``missed`` counts captured steps since all that reported one had captured it."""

    layout: str = ""
    compared: int = 0
    missed: int = 0
    asked: int | None = None
    gradient_signs: list[int] = field(default_factory=list)
    weight_signs: list[int] = field(default_factory=list)
    gradients: Track = field(default_factory=lambda: Track.of(SLICES))
    weights: Track = field(default_factory=lambda: Track.of(SLICES * SLICES))

    def look(self, one: Compared, step: int, rows: int, armed_steps: int) -> Sign | None:
        """Learn from one comparison; the sign in it, weights before gradients."""
        self.compared += 1
        weights = self._weights(one, step, rows, armed_steps)
        gradients = self._gradients(one, step, rows, armed_steps)
        if weights is not None:
            self.weight_signs.append(self.compared)
        if gradients is not None:
            self.gradient_signs.append(self.compared)
        return weights or gradients

    def recent(self, weight_window: int, gradient_window: int) -> tuple[int, int]:
        """Signs in the weights and in the gradients among the last so many comparisons."""
        weight, gradient = self.compared - weight_window, self.compared - gradient_window
        self.weight_signs = [at for at in self.weight_signs if at > weight]
        self.gradient_signs = [at for at in self.gradient_signs if at > gradient]
        return len(self.weight_signs), len(self.gradient_signs)

    def _weights(self, one: Compared, step: int, rows: int, armed_steps: int) -> Sign | None:
        track, words = self.weights, weight_words(rows)
        full = one.full.get("weight_checksum")
        sign = None
        if full is not None and full.table.shape[1] == rows:
            differ = full.unequal & track.armed[words]
            if differ.any():
                since = int(track.last[words[differ]].max())
                sign = Sign("weights", since, full.odd(differ), _rows(differ), True)
        if one.slice is None:
            return sign
        at = slice(one.slice * SLICES, (one.slice + 1) * SLICES)
        before = track.last[at].copy()
        # One look at a slice stands for the sixteen steps until it comes round again.
        enough = -(-armed_steps // SLICES)
        differ = track.learn(at, step, one.weights.present, one.weights.unequal, enough)
        if sign is not None or not differ.any():
            return sign
        hit = np.zeros(SLICES * SLICES, np.bool_)
        hit[at] = differ
        suspects = _rows(hit[words])
        odd = one.weights.odd(differ)
        return Sign("weights", int(before[differ].max()), odd, suspects, len(suspects) == 1)

    def _gradients(self, one: Compared, step: int, rows: int, armed_steps: int) -> Sign | None:
        track, words = self.gradients, gradient_words(rows)
        before, armed = track.last.copy(), track.armed.copy()
        compared = one.gradients
        differ = track.learn(slice(None), step, compared.present, compared.unequal, armed_steps)
        if not differ.any():
            return None
        found, exact = differ[words], False
        full = one.full.get("checksum")
        if full is not None and full.table.shape[1] == rows:
            known = full.unequal & armed[words]
            found, exact = (known, True) if known.any() else (found, False)
        suspects = _rows(found)
        odd = compared.odd(differ)
        exact = exact or len(suspects) == 1
        return Sign("gradients", int(before[differ].max()), odd, suspects, exact)

    def state(self) -> list[Any]:
        """All that :meth:`restored` needs."""
        tracks = [[t.seen, t.row, t.last, t.armed] for t in (self.gradients, self.weights)]
        signs = [self.gradient_signs, self.weight_signs]
        return [self.layout, self.compared, self.missed, self.asked, *signs, *tracks]

    @classmethod
    def restored(cls, state: list[Any]) -> Memory:
        """The memory that :meth:`state` was taken of."""
        layout, compared, missed, asked, *signs, gradients, weights = state
        tracks = Track(*gradients), Track(*weights)
        return cls(layout, compared, missed, asked, signs[0], signs[1], *tracks)


def _rows(flags: Flags) -> tuple[int, ...]:
    return tuple(int(row) for row in np.flatnonzero(flags))
