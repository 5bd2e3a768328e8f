"""The binary form: ``magic | u32 header length | JSON header | payload``.

The payload holds the [n, L, K] float32 statistics as byte planes (all first bytes, then all
second bytes, ...), quantity by quantity, because planes of exponents compress far better than
interleaved floats; columns that need 64 bits (checksums) follow as [n, L, W] words in the
same way, then the roots of the frames that have them, [n, 33] words. Every length is bounded
before anything is decompressed.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from typing import Any, Literal

from gradwarden.wire.checks import (
    DEFAULT_LIMITS,
    Limits,
    Malformed,
    TooLarge,
    WireError,
    integer,
    member,
    to_json_number,
)
from gradwarden.wire.message import VERSION, Batch, Header, check_version
from gradwarden.wire.quantity import ROOT_WORDS

try:  # a host without zstandard still speaks the protocol, with deflate
    import zstandard as _zstandard
except ImportError:  # pragma: no cover - depends on the host
    _zstandard = None  # type: ignore[assignment]

MAGIC = b"GWRD"
MEDIA_TYPE = f"application/vnd.gradwarden.frames; version={VERSION}"
Codec = Literal["deflate", "zstd"]

_PRELUDE = struct.Struct("<4sI")
_ROOTS = 8 * ROOT_WORDS
_own = threading.local()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"bare {name} is not JSON; non-finite numbers are strings")


_HEADER = json.JSONDecoder(parse_constant=_refuse_constant)


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
    rooted = [f.roots for f in frames if f.roots]
    if any(len(r) != _ROOTS for r in rooted):
        raise Malformed("roots", len(rooted[0]), f"{_ROOTS} bytes, or none")
    payload = _compress(
        _to_planes(b"".join(f.values for f in spoken), narrow)
        + _to_planes(b"".join(f.wide for f in spoken), wide)
        + _to_planes(b"".join(rooted), _ROOTS),
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
        "scalars": {n: [to_json_number(f.scalars.get(n)) for f in frames] for n in names},
        "events": [[i, dict(e)] for i, f in enumerate(frames) for e in f.events],
        "capture": [f.capture for f in frames],
        "stepped": [f.stepped for f in frames],
        "open": [int(f.open) for f in frames],
        "matrix": [int(bool(f.values)) for f in frames],
        "rooted": [int(bool(f.roots)) for f in frames],
        "codec": codec,
        "crc32": zlib.crc32(payload),
        "sent_ns": batch.sent_ns,
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return _PRELUDE.pack(MAGIC, len(text)) + text + payload


class Message:
    """A binary message, checked whole and not unpacked: a log needs its header alone."""

    __slots__ = ("_planes", "data", "header")

    def __init__(self, header: Header, data: bytes, planes: bytes) -> None:
        self.header = header
        self.data = data
        """The message as it came."""
        self._planes = planes

    @property
    def planes(self) -> bytes:
        """The payload, inflated: every quantity of all matrices in its turn, then the rest."""
        return self._planes

    def column(self, quantity: str) -> bytes:
        """One quantity of all matrices, [m, L] float32 as four byte planes; empty if not sent."""
        header = self.header
        if quantity not in header.quantities:
            return b""
        size = 4 * sum(header.matrix) * header.parameters
        at = header.quantities.index(quantity) * size
        return self._planes[at : at + size]

    def roots(self) -> bytes:
        """The roots of all frames that have them, end to end."""
        size = sum(self.header.rooted) * _ROOTS
        return _from_planes(memoryview(self._planes)[len(self._planes) - size :], _ROOTS)

    def batch(self) -> Batch:
        """Unpack it."""
        header, planes = self.header, memoryview(self._planes)
        narrow, wide = 4 * len(header.quantities), 8 * len(header.wide)
        blocks = [(header.matrix, header.parameters * narrow, narrow)]
        blocks += [(header.matrix, header.parameters * wide, wide), (header.rooted, _ROOTS, _ROOTS)]
        parts, at = [], 0
        for flags, length, stride in blocks:
            end = at + sum(flags) * length
            parts.append(_deal(_from_planes(planes[at:end], stride), flags, length))
            at = end
        return header.batch(header.frames(*parts))


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Batch:
    """Decode one message, bounding every length first.

    Raises:
        Malformed, TooLarge, UnsupportedVersion: as :func:`check`.
    """
    return check(data, limits).batch()


def check(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Find all that could be wrong with one message, bounding every length first.

    Raises:
        Malformed: truncated, corrupted or inconsistent bytes.
        TooLarge: a size above ``limits``.
        UnsupportedVersion: a version other than those this module reads.
    """
    members, payload = _split(data, limits)
    header = Header(members, limits)
    crc = integer(member(members, "crc32", int), "crc32")
    if crc != zlib.crc32(payload):
        raise Malformed("crc32", crc, "the payload was damaged on its way; send it again")
    row = 4 * len(header.quantities) + 8 * len(header.wide)
    size = sum(header.matrix) * header.parameters * row + sum(header.rooted) * _ROOTS
    if size > limits.payload_bytes:
        raise TooLarge("payload", size, f"send at most {limits.payload_bytes} bytes a batch")
    return Message(header, data, _decompress(payload, member(members, "codec", str), size))


def _split(data: bytes, limits: Limits) -> tuple[dict[str, Any], memoryview]:
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
        header = _HEADER.decode(str(data[_PRELUDE.size : end], "utf-8"))
    except (ValueError, RecursionError) as error:
        raise Malformed("header", error, "the header is JSON in UTF-8") from None
    if not isinstance(header, dict):
        raise Malformed("header", type(header).__name__, "the header is a JSON object")
    check_version(header)
    return header, memoryview(data)[end:]


def _compress(planes: bytes, codec: Codec) -> bytes:
    if codec == "deflate":
        return zlib.compress(planes, 1)
    if codec == "zstd" and _zstandard is not None:
        return _zstandard.ZstdCompressor(level=1).compress(planes)
    raise Malformed("codec", codec, "use deflate, or zstd with zstandard installed")


def _decompress(payload: memoryview, codec: str, stated: int) -> bytes:
    """Decompress to exactly ``stated`` bytes and never allocate more than one byte above."""
    try:
        if codec == "deflate":
            inflate = zlib.decompressobj()
            planes = inflate.decompress(payload, stated + 1)
            whole = inflate.eof and not inflate.unconsumed_tail and not inflate.unused_data
        elif codec == "zstd" and _zstandard is not None:
            if _zstandard.frame_content_size(payload) == stated:
                # The one-shot call takes as much memory as the sender wrote, which is as stated.
                planes = _inflater().decompress(payload)
            else:
                with _inflater().stream_reader(payload) as reader:
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


def _inflater() -> Any:
    """This thread's own, since making one costs more than a small payload."""
    held = getattr(_own, "inflater", None)
    if held is None:
        held = _own.inflater = _zstandard.ZstdDecompressor(max_window_size=1 << 27)
    return held


def _to_planes(raw: bytes, stride: int) -> bytes:
    return b"".join(raw[offset::stride] for offset in range(stride))


def _from_planes(planes: memoryview, stride: int) -> bytes:
    if len(planes) == stride:  # a single row lies as it is
        return bytes(planes)
    raw = bytearray(len(planes))
    plane = len(planes) // stride if stride else 0
    for offset in range(stride):
        raw[offset::stride] = planes[offset * plane : (offset + 1) * plane]
    return bytes(raw)


def _deal(data: bytes, flags: list[int], size: int) -> list[bytes]:
    """Each flagged frame's share of ``data``, in order; nothing for the others."""
    if len(flags) == 1:
        return [data]
    shares, at = [], 0
    for flag in flags:
        end = at + flag * size
        shares.append(data[at:end])
        at = end
    return shares
