"""Streams, frames and batches, and the header that every form of a batch is checked by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gradwarden.wire.checks import (
    HASH,
    Limits,
    Malformed,
    TooLarge,
    UnsupportedVersion,
    from_json_number,
    identifier,
    integer,
    integers,
    member,
    text,
)
from gradwarden.wire.quantity import QUANTITIES

VERSION = 2
READABLE = (1, 2)
"""Version 2 added the roots, which an older message simply lacks."""

Capture = Literal["pre_clip", "post_clip", "unclipped", ""]
Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Who speaks: frames are exactly once by (run, attempt, rank) and their seq.

    ``nonce`` tells two live processes on one key apart. ``group`` names the replica group
    by its lowest rank, so that a change of speaker does not split history.
    """

    run: str
    attempt: str
    rank: int
    nonce: str
    group: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What one rank saw of one step.

    ``values`` is the [L, K] float32 little-endian matrix, or empty where this rank does not
    speak for its group or nothing was captured; ``wide`` the [L, W] 64-bit words; ``roots``
    the 33 64-bit words that replicas are compared by, or empty. ``open`` says that more
    frames of this step follow (a frame with a non-finite value leaves before the step's
    scalars are logged).
    ``stepped`` is False for a step that the scaler or the loop skipped, None if unknown.
    """

    seq: int
    step: int
    time_ns: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    capture: Capture = ""
    stepped: bool | None = None
    open: bool = False
    values: bytes = b""
    wide: bytes = b""
    roots: bytes = b""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive frames of one stream, sealed once: a retry is the same bytes."""

    stream: StreamKey
    frames: tuple[Frame, ...]
    layout: str = ""
    parameters: int = 0
    quantities: tuple[str, ...] = QUANTITIES
    wide: tuple[str, ...] = ()
    sent_ns: int = 0

    @property
    def first_seq(self) -> int:
        return self.frames[0].seq

    @property
    def last_seq(self) -> int:
        return self.frames[-1].seq

    def select(self, first_seq: int, last_seq: int) -> Batch:
        """The same batch reduced to the frames of one inclusive seq interval."""
        frames = tuple(f for f in self.frames if first_seq <= f.seq <= last_seq)
        return replace(self, frames=frames)


class Header:
    """The header of a message, checked: every column has n entries of its type and range."""

    def __init__(self, header: Mapping[str, Any], limits: Limits) -> None:
        self.n = n = integer(member(header, "n", int), "n")
        if n == 0:
            raise Malformed("n", n, "a batch holds at least one frame")
        if n > limits.frames:
            raise TooLarge("n", n, f"send at most {limits.frames} frames a batch")
        self.parameters = integer(member(header, "L", int), "L")
        if self.parameters > limits.parameters:
            raise TooLarge("L", self.parameters, f"at most {limits.parameters} parameters")
        quantities = member(header, "quantities", list)
        if len(quantities) > limits.quantities:
            raise TooLarge("quantities", len(quantities), f"at most {limits.quantities}")
        self.quantities = tuple(text(q, "quantities", 64) for q in quantities)
        self.wide = tuple(text(w, "wide", 64) for w in member(header, "wide", list))
        if len(self.wide) > limits.quantities:
            raise TooLarge("wide", len(self.wide), f"at most {limits.quantities}")
        self.layout = member(header, "layout", str)
        if self.layout and not HASH.match(self.layout):
            raise Malformed("layout", self.layout, "32 hex digits, or empty")
        self.stream = StreamKey(
            run=identifier(header, "run"),
            attempt=identifier(header, "attempt"),
            rank=integer(member(header, "rank", int), "rank"),
            nonce=identifier(header, "nonce"),
            group=integer(member(header, "group", int), "group"),
        )
        self.first_seq = integer(member(header, "first_seq", int), "first_seq")
        self.sent_ns = integer(member(header, "sent_ns", int), "sent_ns")
        self.steps = integers(self._column(header, "steps"), "steps")
        self.times = integers(self._column(header, "times_ns"), "times_ns")
        self.matrix = [int(bool(m)) for m in self._column(header, "matrix")]
        if any(self.matrix) and not (self.layout and self.parameters and self.quantities):
            raise Malformed("matrix", sum(self.matrix), "matrices need a layout, L and quantities")
        rooted = self._column(header, "rooted") if header["version"] > 1 else [0] * n
        self.rooted = [int(bool(r)) for r in rooted]
        self.open = [bool(o) for o in self._column(header, "open")]
        self.capture = self._column(header, "capture")
        if any(c not in ("pre_clip", "post_clip", "unclipped", "") for c in self.capture):
            raise Malformed("capture", self.capture[:8], "pre_clip, post_clip, unclipped or empty")
        self.stepped = self._column(header, "stepped")
        if any(s not in (True, False, None) for s in self.stepped):
            raise Malformed("stepped", self.stepped[:8], "true, false or null")
        self.scalars = member(header, "scalars", dict)
        if len(self.scalars) > limits.scalars:
            raise TooLarge("scalars", len(self.scalars), f"at most {limits.scalars} names")
        for name, column in self.scalars.items():
            text(name, "scalars", 128)
            if not isinstance(column, list) or len(column) != n:
                raise Malformed(f"scalars.{name}", column, f"a list of {n} numbers or null")
            for value in column:
                if type(value) is not float and value is not None:
                    from_json_number(value, f"scalars.{name}")
        self.events: list[list[Event]] = [[] for _ in range(n)]
        pairs = member(header, "events", list)
        if len(pairs) > limits.events:
            raise TooLarge("events", len(pairs), f"at most {limits.events} a batch")
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)):
                raise Malformed("events", pair, "pairs of frame index and object")
            index = integer(pair[0], "events")
            if index >= n or not isinstance(pair[1].get("kind"), str):
                raise Malformed("events", pair, f"an index below {n} and an object with a kind")
            self.events[index].append(pair[1])

    def _column(self, header: Mapping[str, Any], name: str) -> list[Any]:
        column: list[Any] = member(header, name, list)
        if len(column) != self.n:
            raise Malformed(name, len(column), f"one entry per frame, {self.n}")
        return column

    @property
    def last_seq(self) -> int:
        """The seq of the last frame."""
        return self.first_seq + self.n - 1

    def frames(
        self, values: Sequence[bytes], wide: Sequence[bytes], roots: Sequence[bytes]
    ) -> tuple[Frame, ...]:
        """The frames, given what each of them carries."""
        return tuple(
            Frame(
                seq=self.first_seq + i,
                step=self.steps[i],
                time_ns=self.times[i],
                scalars={
                    name: from_json_number(column[i], f"scalars.{name}")
                    for name, column in self.scalars.items()
                    if column[i] is not None
                },
                events=tuple(self.events[i]),
                capture=self.capture[i],
                stepped=self.stepped[i],
                open=self.open[i],
                values=values[i],
                wide=wide[i],
                roots=roots[i],
            )
            for i in range(self.n)
        )

    def batch(self, frames: tuple[Frame, ...]) -> Batch:
        return Batch(
            stream=self.stream,
            frames=frames,
            layout=self.layout,
            parameters=self.parameters,
            quantities=self.quantities,
            wide=self.wide,
            sent_ns=self.sent_ns,
        )


def check_version(header: Mapping[str, Any]) -> None:
    version = header.get("version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise Malformed("version", version, "state the wire version as a number")
    if version not in READABLE:
        raise UnsupportedVersion(
            "version", version, f"this side reads up to {VERSION}; upgrade the older side"
        )
