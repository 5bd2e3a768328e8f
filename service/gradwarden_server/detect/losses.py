"""The loss of a run, smoothed: what the detectors of spikes, divergence and plateaus share. Pure.

Steps are counted by the losses that were logged: a loop that logs every tenth step is judged over
ten times as many steps. What a mean is made of are running medians, so a spike of a few steps
does not reach it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step

FAR = 6.0
"""Spreads from the mean beyond which a loss teaches nothing about the usual noise ..."""
_EXCLUDED = 100
"""... unless so many in a row are: then they are the level."""
_MEDIAN_OF = 15
_REFRESH, _SPREADS = 25, 8
_LEAST = 50
"""Losses before anything is said of their noise."""
_MAD, _P95 = 1.4826, 1.645
"""Make the median of deviations, and their 95th percentile, equal a normal standard deviation."""


class LossTrack:
    """Mean, noise and present level of one loss, over those that were logged.

    ``mean`` is exponential over ``smoothing`` losses. ``spread`` is robust and never below
    ``floor`` times the mean: the median deviation about the mean, or what the 95th percentile
    above it says, if that is more (noise of losses is skewed). ``level`` is what the mean and
    the newest median both reach. ``z`` is how many spreads the newest loss was above the mean
    before it. All are NaN until they are known.
    """

    def __init__(self, smoothing: int, spread: int, floor: float) -> None:
        self._share = 2 / (smoothing + 1)
        self._kept, self._floor = spread, floor
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self.count = 0
        self.mean = self.level = self.spread = self.z = self.excess = math.nan
        self._since = 0
        self._outside = 0
        self._recent: list[float] = []
        self._residuals: list[float] = []
        self._spreads: list[float] = []

    @property
    def armed(self) -> bool:
        """Whether the noise is known."""
        return self.count >= _LEAST and not math.isnan(self.spread)

    @property
    def quiet(self) -> float:
        """The least spread of late: a rise that begins is no noise, though it widens the spread."""
        return min(self._spreads, default=math.nan)

    @property
    def median(self) -> float:
        """Of the newest losses."""
        ordered = sorted(self._recent)
        return ordered[len(ordered) // 2] if ordered else math.nan

    def observe(self, loss: float) -> None:
        """Take one finite loss."""
        self.count += 1
        recent = self._recent
        recent.append(loss)
        if len(recent) > _MEDIAN_OF:
            del recent[0]
        ordered = sorted(recent)
        median = ordered[len(ordered) // 2]
        self._since += 1
        if self._since == 1:
            self.mean = self.level = median
            return
        self.excess = loss - self.mean
        self.z = self.excess / self.spread if self.spread > 0 else math.nan
        if abs(self.z) > FAR:
            self._outside += 1
        else:
            self._outside = 0
        if self._outside == 0 or self._outside >= _EXCLUDED:
            self._residuals.append(self.excess)
            if len(self._residuals) > self._kept:
                del self._residuals[0]
        if self.count % _REFRESH == 0:
            self._refresh()
        if self._outside >= _EXCLUDED:
            self.mean = median
        else:
            self.mean += max(self._share, 1 / self._since) * (median - self.mean)
        self.level = min(self.mean, median)

    def _refresh(self) -> None:
        count = len(self._residuals)
        ordered = sorted(self._residuals)
        middle = ordered[count // 2]  # not zero where the loss falls and the mean lags behind
        around = sorted(abs(value - middle) for value in ordered)[count // 2]
        above = ordered[min(count - 1, round(0.95 * count))] - middle
        self.spread = max(_MAD * around, above / _P95, self._floor * abs(self.mean), 1e-12)
        self._spreads = [*self._spreads, self.spread][-_SPREADS:]

    def relevel(self) -> None:
        """The newest losses are where it begins anew; what is known of the noise stays."""
        self._since = self._outside = 0
        self._recent = self._recent[-1:]

    def state(self) -> list[Any]:
        return [getattr(self, name) for name in _TRACKED]

    def restore(self, state: Sequence[Any]) -> None:
        for name, value in zip(_TRACKED, state, strict=True):
            setattr(self, name, list(value) if isinstance(value, list) else value)


_TRACKED = (
    "count", "mean", "level", "spread", "z", "excess", "_since", "_outside", "_recent",
    "_residuals", "_spreads",
)  # fmt: skip

_GAMES = re.compile(
    r"(?:^|[/._-])(?:rewards?|returns?|advantages?|policy|actor|critic|(?<!cross.)entropy|td_error"
    r"|value_loss|(?:gen(?:erator)?|disc(?:riminator)?|adv(?:ersarial)?|[dg])[/._-]loss"
    r"|loss[/._-](?:gen(?:erator)?|disc(?:riminator)?|adv(?:ersarial)?|[dg]))(?:$|[/._-])",
    re.IGNORECASE,
)


class Aim:
    """Whether the loss is one that training brings down, as far as anything tells.

    A negative one need not have a floor; where two networks play against each other, or a policy
    is rewarded, a loss that rises may be progress. It shows by the names that are logged, or by
    optimizers that take turns with backward passes between them.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._names = 0

    def observe(self, step: Step, ctx: RunContext, track: LossTrack) -> None:
        """Take a step; ``reason`` then says why a rising loss is no sickness here, or nothing."""
        if self.reason:
            return
        if track.count > _MEDIAN_OF and track.level < 0:
            self.reason = f"the loss went below zero by step {step.step}"
        elif len(ctx.logged) != self._names:
            self._names = len(ctx.logged)
            found = sorted(name for name in ctx.logged if _GAMES.search(name))
            if found:
                self.reason = f"{found[0]} is logged beside the loss, as where a game is played"

    def hear(self, step: Step) -> None:
        """Take the events of a step, or of a carrier between steps."""
        for _, event in step.events:
            if event.get("kind") == "manner" and event.get("alternating") is True:
                self.reason = "optimizers take turns, as where two networks play a game"

    def state(self) -> list[Any]:
        return [self.reason, self._names]

    def restore(self, state: Sequence[Any]) -> None:
        self.reason, self._names = state[0], state[1]


def told(step: Step, name: str) -> float | None:
    """What the first rank said, for scalars that are the same on all of them."""
    for said in step.ranks.values():
        return said.scalars.get(name)
    return None


def marked(events: Iterable[tuple[int, Mapping[str, Any]]]) -> bool:
    """Whether somebody said that data or configuration changes here."""
    return any(event.get("kind") == "mark" for _, event in events)
