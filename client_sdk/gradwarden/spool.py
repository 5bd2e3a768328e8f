"""The on-disk spool: records that could not be delivered, in order, bounded, self-contained.

One directory per process holds a ``lock`` file (held with flock while the process lives) and
segments ``000001.spool``, ... Each segment begins with the start and layout records that its
batches need, so that any of them can be sent alone, from another machine, after the others
were lost. A record is ``length | crc32 | frames | kind | body``; a tail torn by a crash ends
the segment at its last whole record.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gradwarden.errors import say
from gradwarden.outbox import Kind, Losses, Record

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

_HEAD = struct.Struct("<IIIc")
_KINDS: dict[bytes, Kind] = {b"S": "start", b"L": "layout", b"B": "batch"}
_CODES = {kind: code for code, kind in _KINDS.items()}
_LONGEST = 96 << 20
SEGMENT_BYTES = 4 << 20


def pack(record: Record) -> bytes:
    head = _HEAD.pack(len(record.body), zlib.crc32(record.body), record.frames, _CODES[record.kind])
    return head + record.body


def read_segment(path: Path) -> Iterator[Record]:
    """The whole records of one segment; it ends quietly where a crash tore it."""
    with open(path, "rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, crc, frames, code = _HEAD.unpack(head)
            if code not in _KINDS or length > _LONGEST:
                return
            body = file.read(length)
            if len(body) < length or zlib.crc32(body) != crc:
                return
            yield Record(_KINDS[code], body, frames)


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.spool"))


def lock(directory: Path) -> IO[bytes] | None:
    """Hold the directory's lock; None when a live process holds it."""
    file = open(directory / "lock", "ab")  # noqa: SIM115 - the open file is the lock
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks; the directory's name is unique anyway
            return file
    return file


class Spool:
    """This process's own spool: append at the end, deliver from the front."""

    def __init__(self, root: Path, name: str, losses: Losses, most_bytes: int = 256 << 20) -> None:
        self._root = root
        self.directory = root / spool_name(name)
        self._losses, self._most = losses, most_bytes
        self._guard = threading.RLock()
        self._lock: IO[bytes] | None = None
        self._writer: IO[bytes] | None = None
        self._context: dict[str, Record] = {}
        self._sizes: dict[Path, int] = {}
        self._frames: dict[Path, int] = {}
        self._queue: deque[tuple[Path, Record]] = deque()
        self._loaded: Path | None = None
        self._number = 0
        self._refused = False
        self.held = 0
        """Frames that wait on disk."""

    def rename(self, name: str) -> None:
        """Take the run's name once it is known, before anything was written."""
        with self._guard:
            if self._lock is None:
                self.directory = self._root / spool_name(name)

    def provide(self, key: str, record: Record) -> None:
        """Remember a start or layout record: every segment begins with the newest of each."""
        with self._guard:
            self._context[key] = record

    def append(self, record: Record) -> bool:
        """Write one record to the end; False when the disk refuses, after counting it."""
        with self._guard:
            try:
                writer, path = self._segment()
                self._write(writer, path, record)
                self._shrink()
                return True
            except OSError as error:
                why = error.strerror or error
                if not self._refused:
                    self._refused = True
                    say(f"cannot spool to {self.directory} ({why}): frames are lost")
                self._losses.add(f"spool: {why}", record.frames)
                return False

    def head(self) -> Record | None:
        """The oldest record on disk, or None when all were delivered."""
        with self._guard:
            while not self._queue:
                path = next(iter(self._sizes), None)
                if path is None:
                    return None
                if path == self._loaded:  # it ended early: a damaged disk
                    self._losses.add("spool damaged", self._frames[path])
                    self.held -= self._frames[path]
                    self._delete(path)
                    continue
                if self._writer is not None and path == Path(self._writer.name):
                    self._writer.close()
                    self._writer = None
                self._queue.extend((path, r) for r in read_segment(path))
                self._loaded = path
            return self._queue[0][1]

    def remove(self, record: Record) -> None:
        """Forget the delivered head; a segment goes with its last record."""
        with self._guard:
            if self._queue and self._queue[0][1] is record:
                path, _ = self._queue.popleft()
                self.held -= record.frames
                self._frames[path] -= record.frames
                if not self._queue:
                    self._delete(path)

    def close(self) -> None:
        """Let go of the files; an empty spool leaves nothing behind."""
        with self._guard:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            if self._lock is not None:
                if not self._sizes:
                    (self.directory / "lock").unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # not empty: the rest is not ours
                        self.directory.rmdir()
                self._lock.close()
                self._lock = None

    def forget(self) -> None:
        """In a forked child: close the shared files, so that the parent's lock dies with it."""
        for file in (self._lock, self._writer):
            if file is not None:
                os.close(file.fileno())
        self._lock = self._writer = None

    def _segment(self) -> tuple[IO[bytes], Path]:
        if self._lock is None:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock(self.directory)
            if self._lock is None:
                raise OSError(f"{self.directory} is in use")
        if self._writer is not None:
            path = Path(self._writer.name)
            if self._sizes[path] < min(SEGMENT_BYTES, max(self._most // 4, 1)):
                return self._writer, path
            self._writer.close()
        self._number += 1
        path = self.directory / f"{self._number:06d}.spool"
        self._writer = open(path, "wb", buffering=0)  # noqa: SIM115 - kept open
        self._sizes[path] = self._frames[path] = 0
        for record in self._context.values():
            self._write(self._writer, path, record)
        return self._writer, path

    def _write(self, writer: IO[bytes], path: Path, record: Record) -> None:
        data = pack(record)
        position = self._sizes[path]
        written = 0
        try:
            while written < len(data):
                written += writer.write(data[written:]) or 0
        except OSError:
            writer.truncate(position)  # half a record would hide what follows
            writer.seek(position)
            raise
        self._sizes[path] += len(data)
        self._frames[path] += record.frames
        self.held += record.frames

    def _shrink(self) -> None:
        """Drop the oldest segments while above the bound, and count their frames."""
        while sum(self._sizes.values()) > self._most and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            self._losses.add("spool full", self._frames[oldest])
            self.held -= self._frames[oldest]
            if self._loaded == oldest:
                self._queue.clear()
            self._delete(oldest)

    def _delete(self, path: Path) -> None:
        self._sizes.pop(path, None)
        self._frames.pop(path, None)
        if self._loaded == path:
            self._loaded = None
        path.unlink(missing_ok=True)


def spool_name(name: str) -> str:
    """A run id as a directory name; ``:`` is not for every file system."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)


def describe(directory: Path) -> dict[str, Any]:
    """Bytes and frames that one spool directory holds."""
    paths = segments(directory)
    frames = sum(r.frames for p in paths for r in read_segment(p))
    return {"segments": len(paths), "bytes": sum(p.stat().st_size for p in paths), "frames": frames}
