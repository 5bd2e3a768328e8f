"""Parquet: the tidy table of :mod:`.table`, with the run as JSON under the key ``gradwarden``.

Row groups are written as they fill, so a run of any length passes through in bounded memory.
Float columns are split by byte and never kept in a dictionary, which would take one NaN for
another.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden import wire
from gradwarden_server.transfer import table
from gradwarden_server.transfer.faults import MissingExtra, Unreadable
from gradwarden_server.transfer.head import Head

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtra("Parquet", "pyarrow", "parquet") from error

MEDIA_TYPE = "application/vnd.apache.parquet"
_KEY = b"gradwarden"
_GROUP_ROWS = 1 << 16
_DICTIONARY = ("kind", "attempt", "layer", "name", "capture", "layout")
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("rank", "group"), pa.int32()),
    **dict.fromkeys(("step", "time_ns", "seq"), pa.int64()),
    **dict.fromkeys(wire.COLUMNS, pa.float32()),
    **dict.fromkeys(wire.CHECKSUMS, pa.uint64()),
    **dict.fromkeys(("stepped", "open"), pa.bool_()),
    "value": pa.float64(),
    "roots": pa.binary(),
}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in table.COLUMNS])


def write(head: Head, batches: Iterable[wire.Batch]) -> Iterator[bytes]:
    """The bytes of the file, as row groups fill; an empty piece for each batch that waits."""
    sink = _Sink()
    schema = _SCHEMA.with_metadata({_KEY: head.to_text().encode()})
    splits = dict.fromkeys((*wire.COLUMNS, "value"), "BYTE_STREAM_SPLIT")
    writer = pq.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=list(_DICTIONARY), column_encoding=splits
    )
    group = _Group()
    for batch in batches:
        for frame in batch.frames:
            group.add(head, batch, frame)
            if group.rows >= _GROUP_ROWS:
                writer.write_table(group.table(schema))
                group = _Group()
        yield sink.take()
    if group.rows:
        writer.write_table(group.table(schema))
    writer.close()
    yield sink.take()


def read(path: Path) -> tuple[Head, Iterator[wire.Batch]]:
    """The head of a file, and its frames as they are read.

    Raises:
        Unreadable: the file is not what it should be; while iterating, too.
    """
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        remedy = f"{str(error)[:120]}; export the run again"
        raise Unreadable(f"{path}", "file", "as it is", remedy) from None
    text = (file.schema_arrow.metadata or {}).get(_KEY)
    if text is None:
        remedy = "its metadata has no key gradwarden; was it written by another program?"
        raise Unreadable(f"{path}", "metadata", "nothing of ours", remedy)
    head = Head.from_text(f"{path}, metadata", text.decode(errors="replace"))
    for name in table.COLUMNS:
        found = file.schema_arrow.field(name).type if name in file.schema_arrow.names else None
        if found != _SCHEMA.field(name).type:
            remedy = f"expected {_SCHEMA.field(name).type}; export the run again"
            raise Unreadable(f"{path}, schema", name, found, remedy)
    return head, table.frames(head, _rows(path, file))


def _rows(path: Path, file: Any) -> Iterator[table.Row]:
    number = 0
    plain = [name for name in table.COLUMNS if name not in wire.COLUMNS]
    try:
        for block in file.iter_batches(_GROUP_ROWS // 4, columns=list(table.COLUMNS)):
            columns = {name: block.column(name) for name in table.COLUMNS}
            cells = [columns[name].to_pylist() for name in plain]
            held = np.stack(
                [columns[n].is_valid().to_numpy(zero_copy_only=False) for n in wire.COLUMNS], 1
            )
            # Filled and seen as words, so that no NaN passes through a float64.
            bits = np.stack(
                [columns[n].view(pa.uint32()).fill_null(0).to_numpy() for n in wire.COLUMNS], 1
            )
            values = bits.view(np.float32)
            known: dict[bytes, tuple[str, ...]] = {}
            for i, row in enumerate(zip(*cells, strict=True)):
                number += 1
                mask = held[i]
                names = known.get(pattern := mask.tobytes())
                if names is None:
                    names = tuple(n for n, there in zip(wire.COLUMNS, mask, strict=True) if there)
                    known[pattern] = names
                found = {n: cell for n, cell in zip(plain, row, strict=True) if cell is not None}
                yield table.Row(f"{path}, row {number}", found, names, values[i, mask])
    except (pa.ArrowInvalid, OSError) as error:
        remedy = f"{str(error)[:120]}; export the run again"
        raise Unreadable(f"{path}, row {number + 1}", "file", "damaged", remedy) from None


class _Group:
    """Rows of one row group, column by column."""

    def __init__(self) -> None:
        self.rows = 0
        self._plain: dict[str, list[Any]] = {
            name: [] for name in table.COLUMNS if name not in wire.COLUMNS
        }
        self._blocks: dict[str, list[Any]] = {name: [] for name in wire.COLUMNS}
        self._masks: dict[str, list[Any]] = {name: [] for name in wire.COLUMNS}

    def add(self, head: Head, batch: wire.Batch, frame: wire.Frame) -> None:
        key = batch.stream
        keys: dict[str, Any] = {"attempt": key.attempt, "rank": key.rank, "group": key.group}
        keys |= {"step": frame.step, "time_ns": frame.time_ns, "seq": frame.seq}
        self._row(
            {
                **keys,
                "kind": "frame",
                "capture": frame.capture,
                "stepped": frame.stepped,
                "open": frame.open,
                "layout": batch.layout,
                "roots": frame.roots or None,
            }
        )
        for name, value in frame.scalars.items():
            self._row({**keys, "kind": "scalar", "name": name, "value": value})
        for event in frame.events:
            data = table.event_text(event)
            self._row({**keys, "kind": "event", "name": event["kind"], "data": data})
        if frame.values:
            self._layers(keys | {"kind": "layer", "capture": frame.capture}, head, batch, frame)

    def table(self, schema: Any) -> Any:
        """The rows as one Arrow table."""
        arrays = []
        for name in table.COLUMNS:
            if name in self._plain:
                arrays.append(pa.array(self._plain[name], _SCHEMA.field(name).type))
            else:
                values = np.concatenate(self._blocks[name])
                arrays.append(pa.array(values, mask=np.concatenate(self._masks[name])))
        return pa.table(arrays, schema=schema)

    def _row(self, cells: dict[str, Any]) -> None:
        self._repeat(cells, 1, {})
        for name in wire.COLUMNS:
            self._empty(name, 1)

    def _layers(
        self, keys: dict[str, Any], head: Head, batch: wire.Batch, frame: wire.Frame
    ) -> None:
        values = np.frombuffer(frame.values, "<f4").reshape(-1, len(batch.quantities))
        rows = len(values)
        words = np.frombuffer(frame.wide, "<u8").reshape(rows, len(batch.wide))
        cells: dict[str, Any] = {
            "layer": [p.name for p in head.layouts[batch.layout].parameters],
        }
        for i, name in enumerate(batch.wide):
            if name in wire.CHECKSUMS:
                cells[name] = words[:, i].tolist()
        strange = {*batch.quantities, *batch.wide} - {*wire.COLUMNS, *wire.CHECKSUMS}
        if strange:
            more = [table.more_of(batch, values, words, at) for at in range(rows)]
            cells["more"] = [json.dumps(one) for one in more]
        self._repeat(keys, rows, cells)
        for name in wire.COLUMNS:
            if name in batch.quantities:
                self._blocks[name].append(values[:, batch.quantities.index(name)])
                self._masks[name].append(np.zeros(rows, np.bool_))
            else:
                self._empty(name, rows)

    def _repeat(
        self, cells: dict[str, Any], rows: int, lists: dict[str, Any] | None = None
    ) -> None:
        for name, column in self._plain.items():
            found = (lists or {}).get(name)
            column.extend([cells.get(name)] * rows if found is None else found)
        self.rows += rows

    def _empty(self, name: str, rows: int) -> None:
        self._blocks[name].append(np.zeros(rows, np.float32))
        self._masks[name].append(np.ones(rows, np.bool_))


class _Sink(io.RawIOBase):
    """Where the writer writes; what it wrote is taken away at once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def take(self) -> bytes:
        """What was written since."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
