"""A recording as arrays, and the many streams that are played from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import recorder

from gradwarden import wire
from gradwarden.spool import read_segment

WINDOW = 32
"""Frames of one batch."""
RANKS = 4
"""Streams of one run; each speaks for a group of its own, as shards do."""
_WIDTH = len(wire.COLUMNS)
_ALWAYS = len(wire.QUANTITIES)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive frames of a recording.

    ``values`` is [WINDOW, rows, quantities] float32, NaN where nothing was measured.
    """

    frames: tuple[wire.Frame, ...]
    values: Floats

    @property
    def columns(self) -> list[int]:
        """Quantities that travel: the statistics, and others that some row has a value of."""
        seen = ~np.isnan(self.values[:, :, _ALWAYS:]).all((0, 1))
        return [*range(_ALWAYS), *(np.flatnonzero(seen) + _ALWAYS).tolist()]

    @property
    def samples(self) -> int:
        """Values that were really measured."""
        return int(np.count_nonzero(~np.isnan(self.values)))


@dataclass(frozen=True)
class Network:
    """What one network sent, in whole windows of captured steps."""

    name: str
    layout: wire.Layout
    windows: tuple[Window, ...]
    gaps_ns: Integers
    """Time from the step before to each step, as it was; the first step has the median."""

    @property
    def values(self) -> Floats:
        """[steps, rows, quantities]."""
        return np.concatenate([window.values for window in self.windows])

    @property
    def steps(self) -> int:
        return len(self.windows) * WINDOW

    @property
    def samples(self) -> int:
        return sum(window.samples for window in self.windows)

    @property
    def samples_of(self) -> dict[str, int]:
        """Measured values by quantity."""
        found = np.count_nonzero(~np.isnan(self.values), axis=(0, 1))
        return dict(zip(wire.COLUMNS, found.tolist(), strict=True))

    @property
    def holes(self) -> float:
        """Share of a full matrix that was not measured, since its turn had not come."""
        return 1 - self.samples / (self.steps * len(self.layout.parameters) * _WIDTH)


@dataclass(frozen=True, slots=True)
class Stream:
    """One rank that plays a whole recording once, from another window on than its neighbours.

    No payload comes twice within a stream, and the store compresses each stream alone.
    """

    run: str
    rank: int
    network: Network
    shift: int
    base_ns: int

    @property
    def windows(self) -> list[Window]:
        """In the order in which they are sent."""
        windows = self.network.windows
        return [*windows[self.shift :], *windows[: self.shift]]

    @property
    def times_ns(self) -> Integers:
        """When each step was, [steps]."""
        gaps = np.roll(self.network.gaps_ns, -self.shift * WINDOW)
        return self.base_ns + np.cumsum(gaps)

    @property
    def times_ms(self) -> Integers:
        """The same in milliseconds, where no two steps share one: peers keep one value each."""
        times = self.times_ns // 1_000_000
        order = np.arange(len(times))
        return np.maximum.accumulate(times - order) + order

    @property
    def samples(self) -> int:
        return self.network.samples


def load(folder: Path) -> list[Network]:
    """The networks of a recording that ``recorder.recorded`` made."""
    return [_network(name, paths) for name, paths in recorder.spools(folder)]


def streams(networks: Sequence[Network], count: int, end_ns: int) -> list[Stream]:
    """``count`` ranks of ``count / RANKS`` runs; runs take the networks in turn.

    All of them train at the same time, and the last to end does so at ``end_ns``.
    """
    length = max(int(network.gaps_ns.sum()) for network in networks)
    made = []
    for number in range(count):
        run, rank = divmod(number, RANKS)
        network = networks[run % len(networks)]
        shift = number * len(network.windows) // count
        made.append(Stream(f"bench-{run}", rank, network, shift, end_ns - length))
    return made


def _network(name: str, paths: Sequence[Path]) -> Network:
    layouts: dict[str, wire.Layout] = {}
    frames: dict[int, wire.Frame] = {}
    matrices: dict[int, Floats] = {}
    for record in (record for path in paths for record in read_segment(path)):
        if record.kind == "layout":
            layout = wire.Layout.from_json(json.loads(record.body))
            layouts[layout.hash] = layout
        elif record.kind == "batch":
            batch = wire.decode(record.body)
            places = [wire.COLUMNS.index(name) for name in batch.quantities]
            for frame in batch.frames:
                if frame.values:
                    whole = np.full((batch.parameters, _WIDTH), np.nan, np.float32)
                    sent = np.frombuffer(frame.values, "<f4")
                    whole[:, places] = sent.reshape(batch.parameters, -1)
                    matrices[frame.step] = whole
                    frames[frame.step] = replace(frame, values=b"", wide=b"", roots=b"")
    if len(layouts) != 1:
        raise SystemExit(f"{name}: {len(layouts)} layouts recorded, expected one; record it anew")
    steps = sorted(frames)
    steps = steps[: len(steps) // WINDOW * WINDOW]
    times = np.array([frames[step].time_ns for step in steps])
    gaps = np.diff(times, prepend=times[0] - int(np.median(np.diff(times))))
    windows = tuple(
        Window(
            tuple(frames[step] for step in steps[at : at + WINDOW]),
            np.stack([matrices[step] for step in steps[at : at + WINDOW]]),
        )
        for at in range(0, len(steps), WINDOW)
    )
    return Network(name, next(iter(layouts.values())), windows, gaps)
