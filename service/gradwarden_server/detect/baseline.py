"""The baseline: a robust, per-series picture of what is normal, for all at once.

On y = log10(x), x > 0, over the last observed steps of this attempt: median m, spread
s = max(1.4826 MAD, floor), z = (y - m) / s. Steps far away are flagged and kept out, until
they have been the rule for so long that they are the new level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
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


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One step of all series against their baselines, as they were before it.

    ``ratio`` is x over the median; it and ``z`` are NaN where a series is not armed or was
    not observed. ``releveled`` marks series whose new level became the baseline just now.
    """

    z: Floats
    ratio: Floats
    armed: Flags
    releveled: Flags

    def high(self, z: float, ratio: float) -> Flags:
        """Series above both limits."""
        return (self.z > z) & (self.ratio > ratio)


class Baseline:
    """Baselines of a fixed number of series."""

    def __init__(self, size: int, settings: BaselineSettings) -> None:
        self.size = size
        self._settings = settings
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

    @property
    def known(self) -> int:
        """How many positive values the best known series holds."""
        return int(self._positive.max(initial=0))

    @property
    def sparse(self) -> Flags:
        """Series that are positive too seldom to be judged by themselves."""
        return (self._held > 0) & (self._positive < self._settings.sparse_share * self._held)

    def judge(self, x: ArrayLike, open_: bool) -> Judged:
        """Judge one step, then learn from it.

        Args:
            x: One value per series; NaN or Inf where none was observed.
            open_: Whether the run is past its warm-up, so that series may be armed.
        """
        values = np.asarray(x, np.float64)
        seen = np.isfinite(values)
        y = np.full(self.size, np.nan)
        positive = seen & (values > 0)
        y[positive] = np.log10(values[positive])
        enough = (self._positive >= self._settings.armed_after) & ~self.sparse
        armed = enough & open_
        if (enough & np.isnan(self._median)).any() or (
            self._steps % self._settings.refresh_steps == 0 and enough.any()
        ):
            self._refresh()
        distance = np.where(armed, y - self._median, np.nan)
        z = distance / self._spread
        far = np.abs(distance) > np.log10(self._settings.flag_ratio)
        flagged = far & (np.abs(z) > self._settings.flag_z)
        releveled = self._learn(y, seen, flagged)
        self._steps += 1
        return Judged(z, np.power(10.0, np.minimum(distance, 300.0)), armed, releveled)

    def _learn(self, y: Floats, seen: Flags, flagged: Flags) -> Flags:
        out = np.flatnonzero(flagged)
        if len(out):
            self._excluded[out, self._outside[out]] = y[out]
            self._outside[out] += 1
        keep = np.flatnonzero(seen & ~flagged)
        at = self._at[keep]
        self._positive[keep] -= ~np.isnan(self._ring[keep, at])
        self._positive[keep] += ~np.isnan(y[keep])
        self._ring[keep, at] = y[keep]
        self._at[keep] = (at + 1) % self._ring.shape[1]
        self._held[keep] = np.minimum(self._held[keep] + 1, self._ring.shape[1])
        self._outside[keep] = 0
        releveled = self._outside >= self._settings.excluded_steps
        if releveled.any():
            self._relevel(np.flatnonzero(releveled))
        return np.asarray(releveled, np.bool_)

    def _relevel(self, rows: NDArray[np.int64]) -> None:
        count = min(self._excluded.shape[1], self._ring.shape[1])
        self._ring[rows] = np.nan
        self._ring[rows, :count] = self._excluded[rows, -count:]
        self._at[rows] = count % self._ring.shape[1]
        self._held[rows] = self._positive[rows] = count
        self._outside[rows] = 0
        self._median[rows] = np.nan

    def _refresh(self) -> None:
        self._median = row_medians(self._ring, self._positive)
        deviation = np.abs(self._ring - self._median[:, None].astype(np.float32))
        spread = _NORMAL * row_medians(deviation, self._positive)
        self._spread = np.maximum(spread, self._settings.spread_floor)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _STATE} | {"steps": self._steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in _STATE:
            setattr(self, f"_{name}", state[name])
        self._steps = state["steps"]


_STATE = ("ring", "excluded", "at", "held", "positive", "outside", "median", "spread")


def row_medians(values: NDArray[np.floating], counts: NDArray[np.int64]) -> Floats:
    """Row medians of the values that are numbers, of which each row has so many."""
    ordered = np.sort(values, axis=1)  # puts the NaNs last
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
