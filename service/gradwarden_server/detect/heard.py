"""One frame as received, with what its batch says of it; the unit that the assembler keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwarden import wire
from gradwarden_server.detect.steps import GroupStep
from gradwarden_server.joins import Matrix


@dataclass(slots=True)
class Heard:
    """One frame as received, with what its batch says of it."""

    rank: int
    group: int
    layout: str
    parameters: int
    quantities: tuple[str, ...]
    frame: wire.Frame
    received_ns: int
    late: bool = False
    wide: tuple[str, ...] = ()
    shard: int = 0
    shards: int = 1
    _alone: GroupStep | None = None

    @property
    def factual(self) -> bool:
        """Whether it reports a step, and does not just carry events."""
        f = self.frame
        facts = f.values or f.roots or f.scalars or f.capture or f.stepped is not None
        return bool(facts or not f.events)

    @property
    def stepped(self) -> bool | None:
        """As a flag; a message may have numbers in its place."""
        return None if self.frame.stepped is None else bool(self.frame.stepped)

    @property
    def ends(self) -> bool:
        return any(e.get("kind") == "finish" for e in self.frame.events)

    @property
    def matrix(self) -> Matrix | None:
        """The frame's own bytes, so not to be written to."""
        if not self.frame.values:
            return None
        shape = (self.parameters, len(self.quantities))
        rows = np.frombuffer(self.frame.values, "<f4").astype(np.float32, copy=False)
        return rows.reshape(shape)

    @property
    def alone(self) -> GroupStep | None:
        """Its matrix as that of a step of which it is all that its rank said."""
        if self._alone is None and (rows := self.matrix) is not None:
            said = self.frame.capture, self.stepped
            self._alone = GroupStep(rows, self.quantities, self.layout, self.rank, *said)
        return self._alone

    @property
    def checksums(self) -> dict[str, bytes]:
        """Full checksums by column, 64-bit words by row."""
        words = np.frombuffer(self.frame.wide, "<u8").reshape(-1, max(1, len(self.wide)))
        return {name: words[:, i].tobytes() for i, name in enumerate(self.wide) if len(words)}

    @property
    def alarming(self) -> bool:
        """Whether it holds a non-finite fact."""
        if not math.isfinite(self.frame.scalars.get("loss", 0.0)):
            return True
        held = self.alone
        return held is not None and bool(held.bad.any())


def freeze(heard: Heard) -> list[Any]:
    """A frame as a list that state can hold."""
    f = heard.frame
    frame = [f.seq, f.step, f.time_ns, f.scalars, [dict(e) for e in f.events]]
    frame += [f.capture, f.stepped, f.open, f.values, f.wide, f.roots]
    batch = [heard.rank, heard.group, heard.layout, heard.parameters, list(heard.quantities)]
    cell = [heard.shard, heard.shards]
    return [*batch, heard.received_ns, heard.late, list(heard.wide), frame, *cell]


def thaw(row: list[Any]) -> Heard:
    """The inverse of :func:`freeze`."""
    rank, group, layout, parameters, quantities, received_ns, late, wide, f, *cell = row
    frame = wire.Frame(f[0], f[1], f[2], f[3], tuple(f[4]), f[5], f[6], f[7], f[8], f[9], f[10])
    said = (layout, parameters, tuple(quantities), frame, received_ns, late, tuple(wide))
    return Heard(rank, group, *said, *cell)
