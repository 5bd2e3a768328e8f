"""The spine of a segment: everything of its frames but their matrices, in one small body.

Steps, times, scalars, events and the batches that the frames came in, so that a segment can
be asked which steps it holds without touching a value, and can give its very batches back.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.store.columns.codec import Corrupt

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

_VERSION = 1
_LENGTH = struct.Struct("<I")
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Sent:
    """The batches of a segment, one entry each in every array.

    ``told`` is the index in :attr:`Spine.tellings`.
    """

    position: Ints
    first_seq: Ints
    frames: Ints
    received_ns: Ints
    shift_ns: Ints
    sent_ns: Ints
    told: Ints


@dataclass(frozen=True, slots=True)
class Telling:
    """What the batches of one sender had in common."""

    nonce: str
    group: int
    layout: str
    quantities: tuple[str, ...]
    wide: tuple[str, ...]
    parameters: int


@dataclass(frozen=True, slots=True)
class Spine:
    """Frames in the order of the log; ``layout`` is that of its matrices.

    ``capture`` indexes :data:`CAPTURES`; ``stepped`` is 1, 0, or -1 for unknown. ``matrix``,
    ``rooted`` and ``worded`` flag the frames that hold a matrix, roots, 64-bit columns.
    ``measured`` names, for each group of columns, which of the matrices (as indices into those)
    hold it. A column of ``constants`` has no chunks: all its values have these bits. ``rolled``
    is the narrowest width that a column is rolled up to; one that is left out is not at all.
    ``squares`` are the sums over observed rows of squared norms, one a matrix.
    """

    layout: str
    sent: Sent
    tellings: tuple[Telling, ...]
    steps: Ints
    times_ns: Ints
    capture: Ints
    stepped: Ints
    open: Ints
    matrix: Ints
    rooted: Ints
    worded: Ints
    squares: Doubles
    scalars: Mapping[str, tuple[Ints, Doubles]]
    events: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    measured: Mapping[str, Ints] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)
    rolled: Mapping[str, int] = field(default_factory=dict)

    @property
    def matrix_frames(self) -> Ints:
        """The indices of frames that hold a matrix."""
        return np.flatnonzero(self.matrix)

    @property
    def parameters(self) -> int:
        """Rows of its matrices."""
        return max((t.parameters for t in self.tellings), default=0)

    def series_times_ns(self) -> Ints:
        """[frames] times on this service's clock."""
        return self.times_ns + np.repeat(self.sent.shift_ns, self.sent.frames)

    def frames_of(self, column: str) -> Ints:
        """The indices of the frames in which this column was measured."""
        group = self.columns.get(column)
        if group is None:
            return np.zeros(0, np.int64)
        return self.matrix_frames[self.measured[group]]

    def width_of(self, column: str, width: int) -> int | None:
        """The narrowest width at or above ``width`` that a column is rolled up to."""
        if column in self.constants:  # known at every width
            return width
        narrowest = self.rolled.get(column)
        return None if narrowest is None else max(width, narrowest)

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        names = sum(200 + at.nbytes + values.nbytes for at, values in self.scalars.values())
        return 4000 + 80 * self.steps.size + 60 * self.sent.position.size + names


ROOTS = "roots"
"""The quantity under which a segment keeps the words that replicas are compared by."""

CAPTURES: tuple[wire.Capture, ...] = ("", "pre_clip", "post_clip", "unclipped")
_FRAMES = ("steps", "times_ns", "capture", "stepped", "open", "matrix", "rooted", "worded")


def pack(spine: Spine) -> bytes:
    """A spine as bytes."""
    arrays: list[NDArray[Any]] = []
    names = sorted(spine.scalars)
    groups = sorted(spine.measured)
    arrays += [getattr(spine.sent, f.name) for f in fields(Sent)]
    arrays += [getattr(spine, name) for name in _FRAMES]
    arrays.append(spine.squares)
    arrays += [array for name in names for array in spine.scalars[name]]
    arrays += [spine.measured[group] for group in groups]
    coded = [_coded(array) for array in arrays]
    header = {
        "version": _VERSION,
        "layout": spine.layout,
        "tellings": [
            [t.nonce, t.group, t.layout, list(t.quantities), list(t.wide), t.parameters]
            for t in spine.tellings
        ],
        "scalars": names,
        "groups": groups,
        "columns": dict(spine.columns),
        "constants": dict(spine.constants),
        "rolled": dict(spine.rolled),
        "events": [[at, dict(event)] for at, event in spine.events],
        "arrays": [
            [kind, array.size, _base(array)] for (kind, _), array in zip(coded, arrays, strict=True)
        ],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    raw = b"".join((_LENGTH.pack(len(text)), text, *(planes for _, planes in coded)))
    return zstandard.ZstdCompressor(level=3).compress(raw)


def unpack(body: bytes) -> Spine:
    """The spine that was packed.

    Raises:
        Corrupt: the bytes are not whole, or of a newer version.
    """
    try:
        raw = zstandard.ZstdDecompressor().decompress(body, max_output_size=_MOST_BYTES)
        (length,) = _LENGTH.unpack_from(raw)
        header = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
        if header["version"] != _VERSION:
            raise Corrupt(f"spine version {header['version']}; upgrade this service")
        at = _LENGTH.size + length
        found: list[NDArray[Any]] = []
        for kind, size, base in header["arrays"]:
            width = int(kind[1:])
            found.append(_decoded(kind, raw[at : at + width * size], size, base))
            at += width * size
        return _spine(header, found)
    except (zstandard.ZstdError, struct.error, ValueError, LookupError, TypeError) as error:
        raise Corrupt(str(error)) from None


def _spine(header: Mapping[str, Any], arrays: list[NDArray[Any]]) -> Spine:
    rest = iter(arrays)
    sent = Sent(*(next(rest) for _ in fields(Sent)))
    frames = {name: next(rest) for name in _FRAMES}
    squares = next(rest)
    scalars = {name: (next(rest), next(rest)) for name in header["scalars"]}
    return Spine(
        layout=header["layout"],
        sent=sent,
        tellings=tuple(
            Telling(nonce, group, layout, tuple(quantities), tuple(wide), parameters)
            for nonce, group, layout, quantities, wide, parameters in header["tellings"]
        ),
        squares=squares,
        scalars=scalars,
        events=tuple((at, event) for at, event in header["events"]),
        measured={group: next(rest) for group in header["groups"]},
        columns=header["columns"],
        constants=header["constants"],
        rolled=header["rolled"],
        **frames,
    )


def _coded(array: NDArray[Any]) -> tuple[str, bytes]:
    """Integers as differences, floats as they are; the narrowest type that is exact; planes."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = array.astype("<f4")
        exact = np.array_equal(narrow.astype(np.float64).view(np.int64), array.view(np.int64))
        kept: NDArray[Any] = narrow if exact else array.astype("<f8")
    else:
        steps = np.diff(array.astype(np.int64), prepend=np.int64(_base(array)))
        low, high = (int(steps.min()), int(steps.max())) if steps.size else (0, 0)
        fits = next(w for w in (1, 2, 4, 8) if -(1 << 8 * w - 1) <= low and high < 1 << 8 * w - 1)
        kept = steps.astype(f"<i{fits}")
    width = kept.dtype.itemsize
    planes = np.ascontiguousarray(kept.view(np.uint8).reshape(-1, width).T).tobytes()
    return f"{kept.dtype.kind}{width}", planes


def _base(array: NDArray[Any]) -> int:
    """What the differences begin from."""
    return int(array[0]) if array.dtype.kind != "f" and array.size else 0


def _decoded(kind: str, planes: bytes, size: int, base: int) -> NDArray[Any]:
    width = int(kind[1:])
    if len(planes) != width * size:
        raise Corrupt(f"{len(planes)} of {width * size} bytes")
    flat = np.frombuffer(planes, np.uint8).reshape(width, size)
    values = np.ascontiguousarray(flat.T).view(f"<{kind}").reshape(size)
    if kind[0] == "f":
        return values.astype(np.float64)
    return np.cumsum(values.astype(np.int64)) + base
