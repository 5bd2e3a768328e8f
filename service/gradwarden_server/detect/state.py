"""State of detectors as bytes: JSON with arrays inside, compressed. No pickle, so that a
snapshot from a foreign database can do no more than be refused."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard


class BadState(ValueError):
    """A snapshot that this version cannot read; re-advance from the log instead."""


def pack(state: Mapping[str, Any]) -> bytes:
    """Bytes of a tree of mappings (text keys), lists, numbers, text, bytes and arrays."""
    text = json.dumps(_plain(state), separators=(",", ":")).encode()
    return zstandard.ZstdCompressor(level=1).compress(text)


def unpack(data: bytes) -> dict[str, Any]:
    """The tree that :func:`pack` was given; tuples come back as lists.

    Raises:
        BadState: the bytes are not such a tree.
    """
    try:
        tree = _rich(json.loads(_inflated(data)))
    except (ValueError, TypeError, KeyError, zlib.error, zstandard.ZstdError) as error:
        raise BadState(f"unreadable detector state: {error}") from None
    if not isinstance(tree, dict):
        raise BadState("detector state is not a mapping")
    return tree


def _inflated(data: bytes) -> bytes:
    """States were deflated once, and such a snapshot is not thrown away."""
    if data[:4] == zstandard.FRAME_HEADER:
        return bytes(zstandard.ZstdDecompressor().decompress(data))
    return zlib.decompress(data)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"__array__": [value.dtype.str, list(value.shape), text]}
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        dtype, shape, text = value["__array__"]
        return np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape).copy()
    if "__bytes__" in value:
        return base64.b64decode(value["__bytes__"])
    return {k: _rich(v) for k, v in value.items()}
