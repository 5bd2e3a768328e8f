"""One run to import: what it is, and its frames as often as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gradwarden import wire
from gradwarden_server.transfer import formats
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.head import Head


@dataclass(frozen=True, slots=True)
class Source:
    """``frames`` reads anew at every call; ``identity`` tells the same run from another one."""

    label: str
    head: Head
    frames: Callable[[], Iterator[wire.Batch]]
    identity: str
    remarks: tuple[str, ...] = ()

    @property
    def nonce(self) -> str:
        """Whose the streams are: equal for the same run, so that an import can be resumed."""
        return f"import-{hashlib.sha256(self.identity.encode()).hexdigest()[:16]}"

    def checked(self) -> int:
        """The number of frames, after every one of them was read and found right.

        Raises:
            Unreadable: one is not, so nothing should be sent.
        """
        streams = {(s.attempt, s.rank): s.group for s in self.head.streams}
        last: dict[tuple[str, int], int] = {}
        count = 0
        for batch in self.frames():
            count += 1
            key, seq = (batch.stream.attempt, batch.stream.rank), batch.first_seq
            where = f"{self.label}, frame {count}"
            if streams.get(key) != batch.stream.group:
                remedy = "list each stream with its group in the head of the file"
                told = f"attempt {key[0]}, rank {key[1]}, group {batch.stream.group}"
                raise Unreadable(where, "stream", told, remedy)
            if seq <= last.get(key, -1):
                remedy = f"frames of a stream rise; seq {last[key]} came before"
                raise Unreadable(where, "seq", seq, remedy)
            last[key] = seq
        return count


def of_file(path: Path, form: formats.FormatName | None) -> Source:
    """The run in an exported file; None as ``form`` takes what the file is.

    Raises:
        Unreadable: its head is not what it should be.
        MissingExtra: the format needs a package that is not installed.
        OSError: it cannot be read.
    """
    module = formats.load(form or formats.of_file(path))
    head, _ = module.read(path)
    identity = f"gradwarden {head.run.run} {head.run.started_ns}"
    return Source(str(path), head, lambda: module.read(path)[1], identity)
