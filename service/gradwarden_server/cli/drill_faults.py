"""The faults that a drill can inject: what a small synthetic run tells before and while it is ill.

Pure. Steps are numbered from 0; ``before`` of them are healthy, so that baselines are armed by the
shipped rules.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from gradwarden import wire

BLOCKS = 6
LAYOUT = wire.Layout(
    (
        *(
            wire.Parameter(f"blocks.{i}.fc.{name}", shape, "float32", f"blocks.{i}", kind)
            for i in range(BLOCKS)
            for name, shape, kind in (("weight", (64, 64), "matrix"), ("bias", (64,), "bias"))
        ),
        wire.Parameter("head.weight", (10, 64), "float32", "head", "head"),
    ),
    tuple(reversed(range(2 * BLOCKS + 1))),
)
ROWS = len(LAYOUT.parameters)
SICK_ROW = 4
"""blocks.2.fc.weight: what an alert of a drill should name where it names a layer."""
Silence = Literal["", "steps", "last_rank"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fall ill.

    ``alert`` at ``severity`` is what should come of it, some ``seconds`` later. ``silence`` says
    who stops: no further steps while heartbeats go on, or the last rank altogether.
    """

    name: str
    about: str
    alert: str
    severity: str
    seconds: int
    before: int
    sick: int
    ranks: int = 1
    silence: Silence = ""
    fails: bool = False

    def frame(self, rank: int, step: int, time_ns: int) -> wire.Frame:
        """What a rank tells of a step."""
        frame = _healthy(rank, step, time_ns)
        if self.ranks > 1:
            frame = replace(frame, roots=_roots(step), values=frame.values if rank == 0 else b"")
        illness = _ILLNESSES.get(self.name)
        if illness is None or step < self.before:
            return frame
        return illness(frame, rank, step - self.before)


FAULTS = (
    Fault(
        "nan",
        "a NaN gradient, applied by the optimizer",
        "NonFiniteGradient",
        "page",
        seconds=1,
        before=20,
        sick=1,
    ),
    Fault(
        "nan_loss",
        "a NaN loss, and the run goes on",
        "NonFiniteLoss",
        "page",
        seconds=1,
        before=20,
        sick=2,
    ),
    Fault(
        "exploding",
        "gradients 5000 times the usual, applied unclipped",
        "ExplodingGradient",
        "page",
        seconds=1,
        before=160,
        sick=8,
    ),
    Fault(
        "loss_divergence",
        "a loss that rises above where it began",
        "LossDivergence",
        "page",
        seconds=2,
        before=600,
        sick=160,
    ),
    Fault(
        "replica_mismatch",
        "a bit flips in the weights of one of four ranks",
        "ReplicaMismatch",
        "page",
        seconds=1,
        before=160,
        sick=64,
        ranks=4,
    ),
    Fault(
        "rank_silent",
        "one of two ranks says nothing more, and the run stands",
        "RankSilent",
        "page",
        seconds=125,
        before=20,
        sick=0,
        ranks=2,
        silence="last_rank",
    ),
    Fault(
        "stalled",
        "heartbeats come, steps do not",
        "RunStalled",
        "page",
        seconds=605,
        before=20,
        sick=0,
        silence="steps",
    ),
    Fault(
        "failed",
        "the process says that it failed, and no new attempt begins",
        "RunFailed",
        "page",
        seconds=605,
        before=20,
        sick=0,
        fails=True,
    ),
)


def _healthy(rank: int, step: int, time_ns: int) -> wire.Frame:
    dice = random.Random(step)  # all ranks see the same reduced gradients
    together = math.exp(0.1 * dice.gauss(0, 1))
    norms = [together * math.exp(0.1 * dice.gauss(0, 1)) for _ in range(ROWS)]
    loss = 1.0 + 4.0 * math.exp(-step / 150) + 0.02 * dice.gauss(0, 1)
    return wire.Frame(
        seq=step + 1,
        step=step,
        time_ns=time_ns,
        scalars={"loss": loss, "lr": 1e-3},
        capture="unclipped",
        stepped=True,
        values=_matrix(norms),
    )


def _matrix(norms: list[float], sick_row: int = -1) -> bytes:
    rows = []
    for row, norm in enumerate(norms):
        if row == sick_row:
            rows.append(struct.pack("<6f", math.nan, math.nan, 64.0, 0.0, 0.0, 0.0))
        else:
            rows.append(struct.pack("<6f", norm, norm / 8, 0.0, 0.0, 0.0, 0.0))
    return b"".join(rows)


def _norms(values: bytes) -> list[float]:
    return [row[0] for row in struct.iter_unpack("<6f", values)]


def _roots(step: int, flipped: bool = False) -> bytes:
    """Checksums that all ranks share; ``flipped`` has one bit of one weight's word turned."""
    part = step % wire.SLICES
    words = [0] * (2 * wire.SLICES)
    for row in range(ROWS):
        words[row % wire.SLICES] += (row + 1) * 2654435761 + 7 * step
        if row % wire.SLICES == part:
            word = (row + 1) * 2654435761 + 3 * step
            flip = flipped and row == SICK_ROW
            words[wire.SLICES + row // wire.SLICES] += word ^ (1 << 40 if flip else 0)
    return struct.pack(f"<{wire.ROOT_WORDS}Q", part, *(word % 2**64 for word in words))


def _nan(frame: wire.Frame, rank: int, sick: int) -> wire.Frame:
    return replace(frame, values=_matrix(_norms(frame.values), SICK_ROW))


def _nan_loss(frame: wire.Frame, rank: int, sick: int) -> wire.Frame:
    return replace(frame, scalars={**frame.scalars, "loss": math.nan})


def _exploding(frame: wire.Frame, rank: int, sick: int) -> wire.Frame:
    return replace(frame, values=_matrix([5000 * norm for norm in _norms(frame.values)]))


def _loss_divergence(frame: wire.Frame, rank: int, sick: int) -> wire.Frame:
    loss = frame.scalars["loss"] + 12.0 * (1 - math.exp(-sick / 20))
    return replace(frame, scalars={**frame.scalars, "loss": loss})


def _replica_mismatch(frame: wire.Frame, rank: int, sick: int) -> wire.Frame:
    return replace(frame, roots=_roots(frame.step, flipped=rank == 2))


_ILLNESSES: dict[str, Callable[[wire.Frame, int, int], wire.Frame]] = {
    "nan": _nan,
    "nan_loss": _nan_loss,
    "exploding": _exploding,
    "loss_divergence": _loss_divergence,
    "replica_mismatch": _replica_mismatch,
}
