"""The wire contract between trainer and service, version 1. Standard library only.

A message is ``magic | u32 header length | JSON header | payload``. The header names the
stream, the layout and one column per frame field; the payload holds the [n, L, K] float32
statistics as byte planes (all first bytes, then all second bytes, ...), quantity by
quantity, because planes of exponents compress far better than interleaved floats; columns
that need 64 bits (sums of squares, checksums) follow as [n, L, W] words in the same way.
NaN and Inf survive bit for bit. Every length is bounded before anything is decompressed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

try:  # a host without zstandard still speaks the protocol, with deflate
    import zstandard as _zstandard
except ImportError:  # pragma: no cover - depends on the host
    _zstandard = None  # type: ignore[assignment]

VERSION = 1
MAGIC = b"GWRD"
MEDIA_TYPE = f"application/vnd.gradwarden.frames; version={VERSION}"
QUANTITIES = ("l2", "absmax", "nan", "inf", "zero")
"""Statistics of every gradient, in the order of a row: L2 norm, largest |g| (both NaN or Inf
where the gradient is), and the counts of NaN, Inf and exact zeros. A row whose counts are NaN
was not observed: that parameter had no gradient."""

Capture = Literal["pre_clip", "post_clip", "unclipped", ""]
Codec = Literal["deflate", "zstd"]
Event = Mapping[str, Any]

_PRELUDE = struct.Struct("<4sI")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}\Z")
_HASH = re.compile(r"[0-9a-f]{32}\Z")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_INT = 2**63 - 1


class WireError(ValueError):
    """A message that cannot be taken, with the field, what was found, and the remedy."""

    def __init__(self, field: str, found: object, remedy: str) -> None:
        shown = found if isinstance(found, (int, float)) else str(found)[:120]
        super().__init__(f"{field}: {shown!r}; {remedy}")
        self.field = field
        self.remedy = remedy


class Malformed(WireError):
    """The bytes do not form a message: truncated, corrupted or inconsistent."""


class TooLarge(WireError):
    """A stated or actual size is above the limit; nothing was decompressed past it."""


class UnsupportedVersion(WireError):
    """The message is of a version that this side does not read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds that a message must respect, checked before memory is taken."""

    header_bytes: int = 4 << 20
    payload_bytes: int = 64 << 20
    frames: int = 4096
    parameters: int = 200_000
    quantities: int = 64
    scalars: int = 256
    events: int = 1024


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One watched parameter as the layout names it.

    ``block`` groups parameters for display and for per-block medians (``blocks.3``);
    ``kind`` is one of matrix, embedding, head, norm, bias, adapter, expert, other.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    block: str
    kind: str

    @property
    def layer(self) -> str:
        """The owning module's path: the name without its last part."""
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rows of a matrix mean; sent once per run and hash.

    ``backward`` lists row indices in the order in which gradients became ready (the loss
    side first), or is empty where that order was not seen.
    """

    parameters: tuple[Parameter, ...]
    backward: tuple[int, ...] = ()

    @property
    def hash(self) -> str:
        """32 hex digits over the canonical JSON form."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": [
                {
                    "name": p.name,
                    "shape": list(p.shape),
                    "dtype": p.dtype,
                    "block": p.block,
                    "kind": p.kind,
                }
                for p in self.parameters
            ],
            "backward": list(self.backward),
        }

    @classmethod
    def from_json(cls, data: object, limits: Limits = DEFAULT_LIMITS) -> Layout:
        """Build a layout from its JSON form.

        Raises:
            Malformed: a field is missing or of the wrong type.
            TooLarge: more parameters than the limit.
        """
        rows = _member(data, "parameters", list)
        if len(rows) > limits.parameters:
            raise TooLarge("parameters", len(rows), f"send at most {limits.parameters}")
        parameters = tuple(
            Parameter(
                name=_text(_member(row, "name", str), "name", 1024),
                shape=tuple(_integer(n, "shape") for n in _member(row, "shape", list)),
                dtype=_text(_member(row, "dtype", str), "dtype", 64),
                block=_text(_member(row, "block", str), "block", 1024),
                kind=_text(_member(row, "kind", str), "kind", 64),
            )
            for row in rows
        )
        backward = tuple(_integer(i, "backward") for i in _member(data, "backward", list))
        if backward and sorted(backward) != list(range(len(parameters))):
            raise Malformed("backward", len(backward), "list each row exactly once, or none")
        return cls(parameters, backward)


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
    speak for its group or nothing was captured; ``wide`` the [L, W] 64-bit words. ``open`` says that more frames of this step
    follow (a frame with a non-finite value leaves before the step's scalars are logged).
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


def encode(batch: Batch, codec: Codec = "deflate") -> bytes:
    """Encode a batch; ``codec`` is ``deflate`` (zlib level 1) or ``zstd`` where importable.

    Raises:
        Malformed: frames are missing, not consecutive, or a matrix has the wrong size.
    """
    frames = batch.frames
    if not frames:
        raise Malformed("frames", 0, "a batch holds at least one frame")
    if any(f.seq != frames[0].seq + i for i, f in enumerate(frames)):
        raise Malformed("seq", [f.seq for f in frames][:8], "frames of a batch are consecutive")
    narrow, wide = 4 * len(batch.quantities), 8 * len(batch.wide)
    sizes = (batch.parameters * narrow, batch.parameters * wide)
    spoken = [f for f in frames if f.values]
    if any((len(f.values), len(f.wide)) != sizes for f in spoken):
        raise Malformed("values", len(spoken[0].values), f"{sizes} bytes of values and wide")
    payload = _compress(
        _to_planes(b"".join(f.values for f in spoken), narrow)
        + _to_planes(b"".join(f.wide for f in spoken), wide),
        codec,
    )
    names = sorted({name for f in frames for name in f.scalars})
    header = {
        "version": VERSION,
        "run": batch.stream.run,
        "attempt": batch.stream.attempt,
        "rank": batch.stream.rank,
        "nonce": batch.stream.nonce,
        "group": batch.stream.group,
        "layout": batch.layout,
        "n": len(frames),
        "L": batch.parameters,
        "quantities": list(batch.quantities),
        "wide": list(batch.wide),
        "first_seq": frames[0].seq,
        "steps": [f.step for f in frames],
        "times_ns": [f.time_ns for f in frames],
        "scalars": {n: [_to_json_number(f.scalars.get(n)) for f in frames] for n in names},
        "events": [[i, dict(e)] for i, f in enumerate(frames) for e in f.events],
        "capture": [f.capture for f in frames],
        "stepped": [f.stepped for f in frames],
        "open": [int(f.open) for f in frames],
        "matrix": [int(bool(f.values)) for f in frames],
        "codec": codec,
        "crc32": zlib.crc32(payload),
        "sent_ns": batch.sent_ns,
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return _PRELUDE.pack(MAGIC, len(text)) + text + payload


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Batch:
    """Decode one message, bounding every length first.

    Raises:
        Malformed: truncated, corrupted or inconsistent bytes.
        TooLarge: a size above ``limits``.
        UnsupportedVersion: a version other than those this module reads.
    """
    header, payload = _split(data, limits)
    fields = _Columns(header, limits)
    crc = _integer(_member(header, "crc32", int), "crc32")
    if crc != zlib.crc32(payload):
        raise Malformed("crc32", crc, "the payload was damaged on its way; send it again")
    narrow, wide = 4 * len(fields.quantities), 8 * len(fields.wide)
    rows = sum(fields.matrix) * fields.parameters
    if rows * (narrow + wide) > limits.payload_bytes:
        raise TooLarge(
            "payload", rows * (narrow + wide), f"send at most {limits.payload_bytes} bytes a batch"
        )
    planes = _decompress(payload, _member(header, "codec", str), rows * (narrow + wide))
    values = _from_planes(planes[: rows * narrow], narrow)
    words = _from_planes(planes[rows * narrow :], wide)
    spoken = itertools.count()
    frames = tuple(
        replace(
            frame,
            values=_slice(values, at := next(spoken), fields.parameters * narrow),
            wide=_slice(words, at, fields.parameters * wide),
        )
        if fields.matrix[i]
        else frame
        for i, frame in enumerate(fields.frames())
    )
    return fields.batch(frames)


def to_json(batch: Batch) -> dict[str, Any]:
    """The plain form for curl and other languages: one object per frame, rows as lists.

    Non-finite numbers become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
    64-bit columns are not part of the plain form.
    """
    width = len(batch.quantities)
    return {
        "version": VERSION,
        "run": batch.stream.run,
        "attempt": batch.stream.attempt,
        "rank": batch.stream.rank,
        "nonce": batch.stream.nonce,
        "group": batch.stream.group,
        "layout": batch.layout,
        "quantities": list(batch.quantities),
        "sent_ns": batch.sent_ns,
        "frames": [
            {
                "seq": f.seq,
                "step": f.step,
                "time_ns": f.time_ns,
                "scalars": {k: _to_json_number(v) for k, v in f.scalars.items()},
                "events": [dict(e) for e in f.events],
                "capture": f.capture,
                "stepped": f.stepped,
                "open": f.open,
                "values": _rows(f.values, width),
            }
            for f in batch.frames
        ],
    }


def from_json(data: object, limits: Limits = DEFAULT_LIMITS) -> Batch:
    """Read the plain form; the inverse of :func:`to_json`.

    Raises:
        Malformed, TooLarge, UnsupportedVersion: as :func:`decode`.
    """
    items = _member(data, "frames", list)
    assert isinstance(data, dict)
    if len(items) > limits.frames:
        raise TooLarge("frames", len(items), f"send at most {limits.frames} a batch")
    rows = [_member(f, "values", list) for f in items]
    counts = {len(r) for r in rows if r}
    if len(counts) > 1:
        raise Malformed("values", sorted(counts), "all matrices of a batch have L rows")
    columns = {
        **{k: data.get(k) for k in data if k != "frames"},
        "n": len(items),
        "L": counts.pop() if counts else 0,
        "first_seq": items[0].get("seq") if items and isinstance(items[0], dict) else None,
        "steps": [_member(f, "step", int) for f in items],
        "times_ns": [_member(f, "time_ns", int) for f in items],
        "scalars": _columns_of_scalars(items),
        "events": [[i, e] for i, f in enumerate(items) for e in f.get("events", [])],
        "capture": [f.get("capture", "") for f in items],
        "stepped": [f.get("stepped") for f in items],
        "open": [int(bool(f.get("open", False))) for f in items],
        "matrix": [int(bool(r)) for r in rows],
        "sent_ns": data.get("sent_ns", 0),
        "group": data.get("group", 0),
    }
    columns["wide"] = []
    columns.setdefault("layout", "")
    columns.setdefault("quantities", list(QUANTITIES))
    _check_version(columns)
    fields = _Columns(columns, limits)
    width = len(fields.quantities)
    if sum(fields.matrix) * fields.parameters * width * 4 > limits.payload_bytes:
        raise TooLarge("values", fields.parameters, f"at most {limits.payload_bytes} bytes")
    frames = tuple(
        replace(frame, values=b"".join(_pack_row(r, width) for r in rows[i]))
        for i, frame in enumerate(fields.frames())
    )
    if any(f.seq != _member(items[i], "seq", int) for i, f in enumerate(frames)):
        raise Malformed("seq", [i.get("seq") for i in items][:8], "frames are consecutive")
    return fields.batch(frames)


class _Columns:
    """The header, checked: every column has n entries of its type and range."""

    def __init__(self, header: Mapping[str, Any], limits: Limits) -> None:
        self.n = n = _integer(_member(header, "n", int), "n")
        if n == 0:
            raise Malformed("n", n, "a batch holds at least one frame")
        if n > limits.frames:
            raise TooLarge("n", n, f"send at most {limits.frames} frames a batch")
        self.parameters = _integer(_member(header, "L", int), "L")
        if self.parameters > limits.parameters:
            raise TooLarge("L", self.parameters, f"at most {limits.parameters} parameters")
        quantities = _member(header, "quantities", list)
        if len(quantities) > limits.quantities:
            raise TooLarge("quantities", len(quantities), f"at most {limits.quantities}")
        self.quantities = tuple(_text(q, "quantities", 64) for q in quantities)
        self.wide = tuple(_text(w, "wide", 64) for w in _member(header, "wide", list))
        if len(self.wide) > limits.quantities:
            raise TooLarge("wide", len(self.wide), f"at most {limits.quantities}")
        self.layout = _member(header, "layout", str)
        if self.layout and not _HASH.match(self.layout):
            raise Malformed("layout", self.layout, "32 hex digits, or empty")
        self.stream = StreamKey(
            run=_identifier(header, "run"),
            attempt=_identifier(header, "attempt"),
            rank=_integer(_member(header, "rank", int), "rank"),
            nonce=_identifier(header, "nonce"),
            group=_integer(_member(header, "group", int), "group"),
        )
        self.first_seq = _integer(_member(header, "first_seq", int), "first_seq")
        self.sent_ns = _integer(_member(header, "sent_ns", int), "sent_ns")
        self.steps = [_integer(s, "steps") for s in self._column(header, "steps")]
        self.times = [_integer(t, "times_ns") for t in self._column(header, "times_ns")]
        self.matrix = [int(bool(m)) for m in self._column(header, "matrix")]
        if any(self.matrix) and not (self.layout and self.parameters and self.quantities):
            raise Malformed("matrix", sum(self.matrix), "matrices need a layout, L and quantities")
        self.open = [bool(o) for o in self._column(header, "open")]
        self.capture = self._column(header, "capture")
        if any(c not in ("pre_clip", "post_clip", "unclipped", "") for c in self.capture):
            raise Malformed("capture", self.capture[:8], "pre_clip, post_clip, unclipped or empty")
        self.stepped = self._column(header, "stepped")
        if any(s not in (True, False, None) for s in self.stepped):
            raise Malformed("stepped", self.stepped[:8], "true, false or null")
        self.scalars = _member(header, "scalars", dict)
        if len(self.scalars) > limits.scalars:
            raise TooLarge("scalars", len(self.scalars), f"at most {limits.scalars} names")
        for name, column in self.scalars.items():
            _text(name, "scalars", 128)
            if not isinstance(column, list) or len(column) != n:
                raise Malformed(f"scalars.{name}", column, f"a list of {n} numbers or null")
        self.events: list[list[Event]] = [[] for _ in range(n)]
        pairs = _member(header, "events", list)
        if len(pairs) > limits.events:
            raise TooLarge("events", len(pairs), f"at most {limits.events} a batch")
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)):
                raise Malformed("events", pair, "pairs of frame index and object")
            index = _integer(pair[0], "events")
            if index >= n or not isinstance(pair[1].get("kind"), str):
                raise Malformed("events", pair, f"an index below {n} and an object with a kind")
            self.events[index].append(pair[1])

    def _column(self, header: Mapping[str, Any], name: str) -> list[Any]:
        column: list[Any] = _member(header, name, list)
        if len(column) != self.n:
            raise Malformed(name, len(column), f"one entry per frame, {self.n}")
        return column

    def frames(self) -> list[Frame]:
        return [
            Frame(
                seq=self.first_seq + i,
                step=self.steps[i],
                time_ns=self.times[i],
                scalars={
                    name: _from_json_number(column[i], f"scalars.{name}")
                    for name, column in self.scalars.items()
                    if column[i] is not None
                },
                events=tuple(self.events[i]),
                capture=self.capture[i],
                stepped=self.stepped[i],
                open=self.open[i],
            )
            for i in range(self.n)
        ]

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


def _split(data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    if len(data) < _PRELUDE.size:
        raise Malformed("message", f"{len(data)} bytes", "it ends before its header")
    magic, length = _PRELUDE.unpack_from(data)
    if magic != MAGIC:
        raise Malformed("magic", magic, f"a message begins with {MAGIC!r}")
    if length > limits.header_bytes:
        raise TooLarge("header length", length, f"at most {limits.header_bytes} bytes")
    end = _PRELUDE.size + length
    if len(data) < end:
        raise Malformed("header", f"{len(data)} of {end} bytes", "the message is truncated")
    try:
        header = json.loads(data[_PRELUDE.size : end], parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed("header", error, "the header is JSON in UTF-8") from None
    if not isinstance(header, dict):
        raise Malformed("header", type(header).__name__, "the header is a JSON object")
    _check_version(header)
    return header, data[end:]


def _check_version(header: Mapping[str, Any]) -> None:
    version = header.get("version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise Malformed("version", version, "state the wire version as a number")
    if version != VERSION:
        raise UnsupportedVersion(
            "version", version, f"this side reads version {VERSION}; upgrade the older side"
        )


def _compress(planes: bytes, codec: Codec) -> bytes:
    if codec == "deflate":
        return zlib.compress(planes, 1)
    if codec == "zstd" and _zstandard is not None:
        return _zstandard.ZstdCompressor(level=1).compress(planes)
    raise Malformed("codec", codec, "use deflate, or zstd with zstandard installed")


def _decompress(payload: bytes, codec: str, stated: int) -> bytes:
    """Decompress to exactly ``stated`` bytes and never allocate more than one byte above."""
    try:
        if codec == "deflate":
            inflate = zlib.decompressobj()
            planes = inflate.decompress(payload, stated + 1)
            whole = inflate.eof and not inflate.unconsumed_tail and not inflate.unused_data
        elif codec == "zstd" and _zstandard is not None:
            # The one-shot call trusts the size that the sender wrote; the reader is bounded.
            with _zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                payload
            ) as reader:
                planes = reader.read(stated + 1)
            whole = len(planes) >= stated
        else:
            raise Malformed("codec", codec, "use deflate, or zstd with zstandard installed")
    except zlib.error as error:
        raise Malformed("payload", error, "the deflate stream is damaged") from None
    except MemoryError:
        raise TooLarge("payload", stated, "send smaller batches") from None
    except Exception as error:
        if isinstance(error, WireError):
            raise
        raise Malformed("payload", error, "the zstd stream is damaged") from None
    if len(planes) > stated:
        raise TooLarge("payload", f"more than {stated} bytes", "it inflates past its stated size")
    if len(planes) < stated or not whole:
        raise Malformed("payload", f"{len(planes)} of {stated} bytes", "the payload is truncated")
    return planes


def _to_planes(raw: bytes, stride: int) -> bytes:
    return b"".join(raw[offset::stride] for offset in range(stride))


def _from_planes(planes: bytes, stride: int) -> bytes:
    raw = bytearray(len(planes))
    plane = len(planes) // stride if stride else 0
    for offset in range(stride):
        raw[offset::stride] = planes[offset * plane : (offset + 1) * plane]
    return bytes(raw)


def _slice(data: bytes, index: int, size: int) -> bytes:
    return data[index * size : (index + 1) * size]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"bare {name} is not JSON; non-finite numbers are strings")


def _member(data: object, name: str, kind: type) -> Any:
    if not isinstance(data, Mapping):
        raise Malformed(name, type(data).__name__, "expected a JSON object around it")
    value = data.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Malformed(name, value, f"expected {kind.__name__}")
    return value


def _integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT:
        raise Malformed(name, value, "expected an integer from 0 to 2^63 - 1")
    return value


def _text(value: object, name: str, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest or "\x00" in value:
        raise Malformed(name, value, f"expected text of 1 to {longest} characters")
    return value


def _identifier(header: Mapping[str, Any], name: str) -> str:
    value = _member(header, name, str)
    if not _ID.match(value):
        raise Malformed(name, value, "letters, digits and . _ : + - only, at most 128 of them")
    return str(value)


def is_identifier(value: str) -> bool:
    """Whether a run, attempt or nonce may be called so on the wire."""
    return bool(_ID.match(value))


def _to_json_number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json_number(value: object, name: str) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Malformed(name, value, 'expected a number, "NaN", "Infinity" or "-Infinity"')
    try:
        return float(value)
    except OverflowError:
        raise Malformed(name, value, "expected a number that a float64 can hold") from None


def _rows(values: bytes, width: int) -> list[list[float | str | None]]:
    row = struct.Struct(f"<{width}f")
    return [[_to_json_number(v) for v in r] for r in row.iter_unpack(values)] if values else []


def _pack_row(row: object, width: int) -> bytes:
    if not isinstance(row, list) or len(row) != width:
        raise Malformed("values", row, f"rows of {width} numbers")
    try:
        return struct.pack(f"<{width}f", *(_from_json_number(v, "values") for v in row))
    except OverflowError:
        raise Malformed("values", row, "numbers that a float32 can hold") from None


def _columns_of_scalars(items: Sequence[Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for i, item in enumerate(items):
        scalars = item.get("scalars", {})
        if not isinstance(scalars, dict):
            raise Malformed("scalars", scalars, "expected an object of numbers")
        for name, value in scalars.items():
            columns.setdefault(name, [None] * len(items))[i] = value
    return columns


def missing(held: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The inclusive intervals of [first, last] that ``held`` does not cover, in order."""
    gaps: list[tuple[int, int]] = []
    at = first
    for start, end in sorted(held):
        if end < at or start > last:
            continue
        if start > at:
            gaps.append((at, start - 1))
        at = end + 1
    if at <= last:
        gaps.append((at, last))
    return gaps


def merge(held: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """``held`` with [first, last] added; touching intervals become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted([*held, (first, last)]):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
