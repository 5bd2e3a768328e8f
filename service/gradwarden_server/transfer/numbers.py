"""float32 as text and back, bit for bit: nine digits are enough, and NaN has its bits.

Almost every NaN is the quiet one, written ``NaN``. A GPU's is another; where a format takes
text in place of a number it is written ``NaN(0x7fffffff)``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAN_BITS = 0x7FC00000
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
Singles = NDArray[np.float32]


def texts(values: Singles) -> list[str]:
    """Each of a row of numbers as text; ``NaN``, ``Infinity`` and ``-Infinity`` among them."""
    flat = values.ravel()
    found = (" ".join(["%.9g"] * flat.size) % tuple(flat.tolist())).split(" ") if flat.size else []
    for i in np.flatnonzero(~np.isfinite(flat)).tolist():
        found[i] = "NaN" if np.isnan(flat[i]) else "Infinity" if flat[i] > 0 else "-Infinity"
    # JSON reads -0 as a whole number, which has no sign.
    for i in np.flatnonzero((flat == 0) & np.signbit(flat)).tolist():
        found[i] = "-0.0"
    return found


def odd_nans(values: Singles) -> dict[int, str]:
    """The NaN that are not the usual one, by their place in the flat row: ``NaN(0x...)``."""
    bits = np.ascontiguousarray(values).ravel().view(np.uint32)
    odd = np.isnan(values.ravel()) & (bits != NAN_BITS)
    return {i: f"NaN(0x{int(bits[i]):08x})" for i in np.flatnonzero(odd).tolist()}


def singles(found: Sequence[Any]) -> Singles:
    """The numbers of a row of texts or JSON numbers.

    Raises:
        ValueError: one is no number that a float32 can hold; the text names it.
    """
    values = np.array([_double(one) for one in found], np.float64)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    for i in np.flatnonzero(np.isinf(narrow) & np.isfinite(values)).tolist():
        raise ValueError(f"{found[i]!r}: expected a number that a float32 can hold")
    bits = narrow.view(np.uint32)
    bits[np.isnan(narrow)] = NAN_BITS
    for i, one in enumerate(found):
        if isinstance(one, str) and one.startswith("NaN("):
            bits[i] = _nan_bits(one)
    return narrow


def double_text(value: float) -> str:
    """A float64 as text that reads back the same."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def double(found: Any) -> float:
    """A float64 from its text or JSON number.

    Raises:
        ValueError: it is none.
    """
    return _double(found)


def words(raw: bytes) -> list[str]:
    """64-bit little-endian words as 16 hex digits each."""
    return [f"{word:016x}" for (word,) in struct.iter_unpack("<Q", raw)]


def packed_words(found: Iterable[Any]) -> bytes:
    """The inverse of :func:`words`.

    Raises:
        ValueError: one is no text of hex digits.
    """
    return b"".join(struct.pack("<Q", int(one, 16)) for one in found)


def _double(one: Any) -> float:
    if isinstance(one, str):
        if one in _WORDS:
            return _WORDS[one]
        if one.startswith("NaN("):
            _nan_bits(one)
            return math.nan
    elif isinstance(one, bool) or not isinstance(one, (int, float)):
        raise ValueError(f"{one!r}: expected a number, NaN, Infinity or -Infinity")
    try:
        return float(one)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{str(one)[:40]!r}: expected a number, NaN, Infinity or -Infinity"
        ) from None


def _nan_bits(text: str) -> int:
    try:
        bits = int(text.removeprefix("NaN(").removesuffix(")"), 16)
        if math.isnan(struct.unpack("<f", struct.pack("<I", bits))[0]):
            return bits
    except (ValueError, struct.error):
        pass
    raise ValueError(f"{text[:40]!r}: expected NaN(0x........) with the bits of a NaN")
