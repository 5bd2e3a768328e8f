"""Bodies for time series databases: remote write 1.0 (protobuf, snappy) and JSON lines.

Every series is ``gradient`` with the labels run, rank, layer and quantity; every sample is a
value that was measured, at its step's own time.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gradwarden import wire
from ingest_peers import client, programs
from ingest_peers.recording import WINDOW, Floats, Integers, Stream, Window

METRIC = "gradient"
_SAMPLE_BYTES = 18
_TIME_BYTES = 6  # of a varint, for milliseconds between 2004 and 2109

Compress = Callable[[bytes], bytes]


def snappy() -> Compress:
    """The raw snappy that remote write wants.

    Raises:
        programs.Missing: cramjam, which has it, is not installed.
    """
    programs.python_package("cramjam")
    if str(programs.PEERS) not in sys.path:
        sys.path.append(str(programs.PEERS))  # last: our own packages stay as they are
    module = importlib.import_module("cramjam")
    return lambda data: bytes(module.snappy.compress_raw(data))


def bodies(streams: Sequence[Stream], compress: Compress) -> list[list[client.Body]]:
    """One remote write request for each batch that our service gets."""
    made = []
    for stream in streams:
        labels = [_labels(stream, row, name) for row, name in _series(stream)]
        made.append(
            [
                client.Body(compress(request(window.values, times, labels)), window.samples)
                for window, times in _windows(stream)
            ]
        )
    return made


def request(values: Floats, times_ms: Integers, labels: Sequence[bytes]) -> bytes:
    """A WriteRequest of [steps, rows, quantities] values; NaN is no sample.

    ``labels`` are those of each row's quantities, one row after the other.
    """
    parts = []
    measured = ~np.isnan(values)
    samples = _samples(values, times_ms)
    flat = samples.transpose(1, 2, 0, 3).reshape(len(labels), len(values), _SAMPLE_BYTES)
    for series, mask, label in zip(
        flat, measured.transpose(1, 2, 0).reshape(len(labels), -1), labels, strict=True
    ):
        if mask.all():
            data = series.tobytes()
        elif mask.any():
            data = series[mask].tobytes()
        else:
            continue
        parts += [b"\x0a", varint(len(label) + len(data)), label, data]
    return b"".join(parts)


def lines(streams: Sequence[Stream]) -> list[list[client.Body]]:
    """The same batches as JSON lines, a line for each series, for ``/api/v1/import``."""
    made = []
    for stream in streams:
        heads = [
            json.dumps({"metric": dict(_pairs(stream, row, name))})[:-1]
            for row, name in _series(stream)
        ]
        made.append([_lines(window, times, heads) for window, times in _windows(stream)])
    return made


def _lines(window: Window, times: Integers, heads: Sequence[str]) -> client.Body:
    series = window.values.transpose(1, 2, 0).reshape(len(heads), -1).astype(np.float64)
    parts = []
    for head, values in zip(heads, series, strict=True):
        mask = np.isfinite(values)
        if mask.any():
            numbers, moments = values[mask].tolist(), times[mask].tolist()
            parts.append(f'{head}, "values": {numbers}, "timestamps": {moments}}}\n')
    samples = int(np.count_nonzero(np.isfinite(window.values)))
    return client.Body("".join(parts).encode(), samples)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def _windows(stream: Stream) -> Iterator[tuple[Window, Integers]]:
    times = stream.times_ms
    for number, window in enumerate(stream.windows):
        yield window, times[number * WINDOW : (number + 1) * WINDOW]


def _series(stream: Stream) -> Iterator[tuple[str, str]]:
    for parameter in stream.network.layout.parameters:
        for quantity in wire.COLUMNS:
            yield parameter.name, quantity


def _pairs(stream: Stream, row: str, quantity: str) -> list[tuple[str, str]]:
    """Label names and values, sorted by name as remote write asks."""
    return [
        ("__name__", METRIC),
        ("layer", row),
        ("quantity", quantity),
        ("rank", str(stream.rank)),
        ("run", stream.run),
    ]


def _labels(stream: Stream, row: str, quantity: str) -> bytes:
    made = b""
    for name, value in _pairs(stream, row, quantity):
        label = b"".join(
            tag + varint(len(text)) + text
            for tag, text in ((b"\x0a", name.encode()), (b"\x12", value.encode()))
        )
        made += b"\x0a" + varint(len(label)) + label
    return made


def _samples(values: Floats, times_ms: Integers) -> npt.NDArray[np.uint8]:
    """Encoded samples, [steps, rows, quantities, 18]: a double and a time, each with its tag."""
    made = np.empty((*values.shape, _SAMPLE_BYTES), np.uint8)
    made[..., 0:3] = (0x12, _SAMPLE_BYTES - 2, 0x09)
    made[..., 3:11] = values.astype("<f8")[..., None].view(np.uint8)
    made[..., 11] = 0x10
    shifts = 7 * np.arange(_TIME_BYTES)
    groups = (times_ms[:, None] >> shifts & 127).astype(np.uint8)
    groups[:, :-1] |= 128
    made[..., 12:18] = groups[:, None, None, :]
    return made
