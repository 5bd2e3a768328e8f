"""The baseline: a robust, per-series picture of what is normal, for all at once.

On y = log10(x), x > 0, over the last observed steps of this attempt: median m, spread
s = max(1.4826 MAD, floor), z = (y - m) / s. Steps far away are flagged and kept out, until
they have been the rule for so long that they are the new level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_NORMAL = 1.4826
"""Makes the MAD of normally distributed data equal their standard deviation."""


@dataclass(frozen=True, slots=True)
class BaselineSettings:
    """The numbers of the baseline; their values and sources are in alert_rules/baseline.yaml."""

    window_steps: int
    spread_floor: float
    armed_after: int
    armed_by_step: int
    sparse_share: float
    flag_z: float
    flag_ratio: float
    excluded_steps: int
    lr_ratio: float
    lr_steps: int
    tokens_ratio: float
    loss_steps: int
    refresh_steps: int


@dataclass(frozen=True, eq=False)
class Judged:
    """One step of all series against their baselines, as they were before it.

    ``distance`` is log10 of x over the median; it, ``ratio`` and ``z`` are NaN where a series
    is not armed or was not observed. ``releveled`` marks series whose new level became the
    baseline just now.
    """

    z: Floats
    distance: Floats
    armed: Flags
    releveled: Flags

    @cached_property
    def ratio(self) -> Floats:
        """x over the median."""
        return np.asarray(np.power(10.0, np.minimum(self.distance, 300.0)), np.float64)

    def high(self, z: float, ratio: float) -> Flags:
        """Series above both limits."""
        over = np.asarray(self.z > z, np.bool_)
        return over & (self.distance > np.log10(ratio)) if over.any() else over


class Baseline:
    """Baselines of a fixed number of series."""

    def __init__(self, size: int, settings: BaselineSettings) -> None:
        self.size = size
        self._settings = settings
        self._far = np.log10(settings.flag_ratio)
        self._first = np.arange(size) * settings.window_steps
        self._nothing = np.full(size, np.nan)
        self._none = np.zeros(size, np.bool_)
        self.restart()

    def restart(self) -> None:
        """Forget everything: what was normal is no longer comparable."""
        n, window = self.size, self._settings.window_steps
        self._ring = np.full((n, window), np.nan, np.float32)
        self._excluded = np.full((n, self._settings.excluded_steps), np.nan, np.float32)
        self._at = np.zeros(n, np.int64)
        self._held = np.zeros(n, np.int64)
        self._positive = np.zeros(n, np.int64)
        self._outside = np.zeros(n, np.int64)
        self._median = np.full(n, np.nan)
        self._spread = np.full(n, np.nan)
        self._steps = 0
        self._derive()

    def _derive(self) -> None:
        """What follows from the rest and is kept because it seldom changes."""
        self._flat = self._ring.reshape(-1)
        self._full = bool((self._held == self._ring.shape[1]).all())
        self._away = bool(self._outside.any())
        self._enough: Flags | None = None
        self._some = self._every = self._lacking = self._solid = False

    @property
    def known(self) -> int:
        """How many positive values the best known series holds."""
        return int(self._positive.max(initial=0))

    @property
    def sparse(self) -> Flags:
        """Series that are positive too seldom to be judged by themselves."""
        self._ready()
        return self._sparse

    def judge(self, x: ArrayLike, open_: bool) -> Judged:
        """Judge one step, then learn from it.

        Args:
            x: One value per series; NaN or Inf where none was observed.
            open_: Whether the run is past its warm-up, so that series may be armed.

        Returns:
            Arrays that belong to the baseline: copy what you would change.
        """
        values = np.asarray(x, np.float64)
        seen = np.isfinite(values)
        positive = seen & (values > 0)
        whole = bool(positive.all())
        y = np.log10(values) if whole else np.full(self.size, np.nan)
        if not whole:
            np.log10(values, out=y, where=positive)
        enough = self._ready()
        if self._lacking or (self._some and self._steps % self._settings.refresh_steps == 0):
            self._refresh()
        z = distance = self._nothing
        armed, flagged = self._none, None
        if open_ and self._some:
            armed = enough
            distance = (
                y - self._median if self._every else np.where(armed, y - self._median, np.nan)
            )
            z = distance / self._spread
            flagged = np.abs(z) > self._settings.flag_z
            flagged = flagged & (np.abs(distance) > self._far) if flagged.any() else None
        releveled = self._learn(y, seen, whole, flagged)
        self._steps += 1
        return Judged(z, distance, armed, releveled)

    def _ready(self) -> Flags:
        """Series with enough values to be judged, of which some may lack their median still."""
        if self._enough is None:
            share = self._settings.sparse_share
            self._sparse = (self._held > 0) & (self._positive < share * self._held)
            self._enough = (self._positive >= self._settings.armed_after) & ~self._sparse
            self._some, self._every = bool(self._enough.any()), bool(self._enough.all())
            self._lacking = bool((self._enough & np.isnan(self._median)).any())
            self._solid = bool((self._positive == self._ring.shape[1]).all())
        return self._enough

    def _learn(self, y: Floats, seen: Flags, whole: bool, flagged: Flags | None) -> Flags:
        if flagged is None:
            self._keep(slice(None) if whole or seen.all() else np.flatnonzero(seen), y, whole)
            return self._none
        out = np.flatnonzero(flagged)
        self._keep(np.flatnonzero(seen & ~flagged), y, whole)
        if not len(out):
            return self._none
        self._excluded[out, self._outside[out]] = y[out]
        self._outside[out] += 1
        self._away = True
        releveled = self._outside >= self._settings.excluded_steps
        if releveled.any():
            self._relevel(np.flatnonzero(releveled))
        return np.asarray(releveled, np.bool_)

    def _keep(self, rows: slice | NDArray[np.int64], y: Floats, whole: bool) -> None:
        """Put the values of some series into their windows; ``whole`` says that none is NaN."""
        at, window = self._at[rows], self._ring.shape[1]
        index = self._first[rows] + at
        if not (whole and self._solid):
            old, new = np.isnan(self._flat[index]), np.isnan(y[rows])
            if (old != new).any():
                self._positive[rows] += old
                self._positive[rows] -= new
                self._enough = None
        self._flat[index] = y[rows]
        at = at + 1
        at[at == window] = 0
        self._at[rows] = at
        if not self._full:
            self._held[rows] = np.minimum(self._held[rows] + 1, window)
            self._full = bool((self._held == window).all())
            self._enough = None
        if self._away:
            self._outside[rows] = 0
            self._away = bool(self._outside.any())

    def _relevel(self, rows: NDArray[np.int64]) -> None:
        count = min(self._excluded.shape[1], self._ring.shape[1])
        self._ring[rows] = np.nan
        self._ring[rows, :count] = self._excluded[rows, -count:]
        self._at[rows] = count % self._ring.shape[1]
        self._held[rows] = self._positive[rows] = count
        self._outside[rows] = 0
        self._median[rows] = np.nan
        self._derive()

    def _refresh(self) -> None:
        held = centre_and_spread(self._ring, self._positive, self._settings)
        self._median, self._spread = held
        self._lacking = False

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _STATE} | {"steps": self._steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in _STATE:
            setattr(self, f"_{name}", state[name])
        self._steps = state["steps"]
        self._derive()


_STATE = ("ring", "excluded", "at", "held", "positive", "outside", "median", "spread")


def centre_and_spread(
    ring: NDArray[np.float32], counts: NDArray[np.int64], settings: BaselineSettings
) -> tuple[Floats, Floats]:
    """Median and robust spread of each row of windows, of which each holds so many numbers."""
    median = row_medians(ring, counts)
    deviation = np.abs(ring - median[:, None].astype(np.float32))
    spread = _NORMAL * row_medians(deviation, counts)
    return median, np.maximum(spread, settings.spread_floor)


def row_medians(values: NDArray[np.floating], counts: NDArray[np.int64]) -> Floats:
    """Row medians of the values that are numbers, of which each row has so many."""
    ordered = np.sort(values, axis=1)  # puts the NaNs last
    width = ordered.shape[1]
    if width and (counts == width).all():
        middle = ordered[:, (width - 1) // 2 : width // 2 + 1].astype(np.float64)
        return np.asarray((middle[:, 0] + middle[:, -1]) / 2, np.float64)
    rows = np.arange(len(ordered))
    low = ordered[rows, np.maximum(counts - 1, 0) // 2].astype(np.float64)
    high = ordered[rows, np.minimum(counts // 2, ordered.shape[1] - 1)].astype(np.float64)
    return np.where(counts > 0, (low + high) / 2, np.nan)


class Restarts:
    """Says when the run changed so much that baselines must begin anew, and when they may arm.

    That is at a ``mark``, when the learning rate moves by more than a factor within a few
    steps, and when the tokens per step settle at another level.
    """

    def __init__(self, settings: BaselineSettings) -> None:
        self._settings = settings
        self.lr: float | None = None
        self.peak_lr = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin anew, knowing the present learning rate only."""
        self._steps = 0
        self._crested = False
        self._lrs: list[float] = [] if self.lr is None else [self.lr]
        self._tokens: list[float] = []
        self._level = 0.0
        self._counted = 0

    @property
    def open(self) -> bool:
        """The learning rate stopped rising, or enough steps passed."""
        return self._crested or self._steps >= self._settings.armed_by_step

    @property
    def steps(self) -> int:
        return self._steps

    def observe(self, lr: float | None, tokens: float | None, marked: bool) -> bool:
        """Take one step's facts; True if baselines restart before it."""
        again = marked or self._lr_jumped(lr) or self._tokens_moved(tokens)
        if lr is not None and np.isfinite(lr):
            if self.lr is not None and lr <= self.lr:
                self._crested = True
            self.lr = lr
            self.peak_lr = max(self.peak_lr, lr)
        if again:
            crested = self._crested
            self.restart()
            self._crested = crested  # a warm-up that is over stays over, until lr rises again
        self._steps += 1
        return again

    def _lr_jumped(self, lr: float | None) -> bool:
        if lr is None or not np.isfinite(lr):
            return False
        known = [v for v in self._lrs if v > 0]
        self._lrs = [*self._lrs, lr][-self._settings.lr_steps :]
        limit = self._settings.lr_ratio
        return lr > 0 and bool(known) and (lr > limit * min(known) or max(known) > limit * lr)

    def _tokens_moved(self, tokens: float | None) -> bool:
        if tokens is None or not np.isfinite(tokens) or tokens <= 0:
            return False
        limit, window = self._settings.tokens_ratio, self._settings.lr_steps
        self._tokens = [*self._tokens, tokens][-window:]
        if len(self._tokens) == window and self._another_level(limit):
            return True
        self._counted = min(self._counted + 1, self._settings.window_steps)
        self._level += (tokens - self._level) / self._counted
        return False

    def _another_level(self, limit: float) -> bool:
        """One short batch at the end of an epoch is none, nor are lengths that vary anyway."""
        steady, recent = self._tokens[:-2], self._tokens[-2:]
        if max(steady) <= limit**0.5 * min(steady):
            return min(recent) > limit * self._level or limit * max(recent) < self._level
        ordered = sorted(self._tokens)
        spare = len(ordered) // 5
        return ordered[spare] > limit * self._level or limit * ordered[-1 - spare] < self._level

    def state(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "peak_lr": self.peak_lr,
            "steps": self._steps,
            "crested": self._crested,
            "lrs": self._lrs,
            "tokens": self._tokens,
            "level": self._level,
            "counted": self._counted,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.lr, self.peak_lr = state["lr"], state["peak_lr"]
        self._steps, self._crested = state["steps"], state["crested"]
        self._lrs, self._tokens = state["lrs"], state["tokens"]
        self._level, self._counted = state["level"], state["counted"]


def settings_from(values: Mapping[str, Any]) -> BaselineSettings:
    """Settings from a rules file's ``baseline:`` values, all of which must be given."""
    return BaselineSettings(**values)


SETTING_TYPES: Mapping[str, str] = {f.name: str(f.type) for f in fields(BaselineSettings)}
"""Name and type of each setting, for the rules loader."""
