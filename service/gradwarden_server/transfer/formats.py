"""The formats by name, and which one a file is."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from gradwarden import wire
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.head import Head

FormatName = Literal["jsonl", "csv", "parquet", "frames"]
ExportName = Literal[FormatName, "html"]
"""What a run can be written as; a page for the browser is not read back."""
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
_MODULES = {"jsonl": "jsonl", "csv": "commas", "parquet": "parquet", "frames": "framed"}
_SIGNS = (("parquet", b"PAR1"), ("frames", b"GWFR"), ("csv", b"# {"), ("jsonl", b"{"))


class Format(Protocol):
    """One module of this room."""

    MEDIA_TYPE: str

    def write(self, head: Head, batches: Iterable[wire.Batch]) -> Iterator[bytes]: ...
    def read(self, path: Path) -> tuple[Head, Iterator[wire.Batch]]: ...


def load(name: FormatName) -> Format:
    """The module of a format.

    Raises:
        MissingExtra: it needs a package that is not installed.
    """
    module = importlib.import_module(f"gradwarden_server.transfer.{_MODULES[name]}")
    return cast(Format, module)


def of_file(path: Path) -> FormatName:
    """What a file is, by its first bytes.

    Raises:
        Unreadable: none of ours.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    for name, sign in _SIGNS:
        if begin.startswith(sign):
            return cast(FormatName, name)
    remedy = "no export of gradwarden begins like this; TensorBoard and MLflow need --from"
    raise Unreadable(f"{path}", "file", begin, remedy)
