"""A checkpoint that is timed, on disk when it says so, and never half written."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gradwarden.errors import Faults

Report = Callable[[dict[str, Any]], None]


class Checkpoints:
    """Guards saves; the checksum is taken by a thread of its own, beside the training."""

    def __init__(
        self,
        report: Report,
        faults: Faults,
        sick: Callable[[], Tensor | bool] = lambda: False,
        heard: Callable[[], bool] = lambda: True,
    ) -> None:
        """``sick`` looks whether a weight is NaN or Inf; of a device it answers one float32.

        While nobody has ``heard`` files are written as ever, but neither read nor reported.
        """
        self._tell, self._faults, self._sick, self._heard = report, faults, sick, heard
        self._threads: list[threading.Thread] = []

    @contextmanager
    def save(self, path: str | os.PathLike[str], step: int | None) -> Iterator[Path]:
        """Yield a temporary path beside ``path``; renamed over it when the body is done.

        A body that writes ``path`` itself is served too. The body's own exception passes
        through after the temporary file is removed; a rename that fails raises as well, since
        the caller relies on the file.
        """
        target = Path(path)
        draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
        started = time.perf_counter()
        event: dict[str, Any] = {"kind": "checkpoint", "path": str(target), "ok": False}
        if step is not None:
            event["saved_step"] = int(step)
        try:
            yield draft
            if draft.exists():
                flush(draft)
                _replace(draft, target)
                _flush_directory(target.parent)
            elif target.exists():
                flush(target)
        except BaseException:
            _remove(draft)
            self._report({**event, "seconds": time.perf_counter() - started})
            raise
        if not self._heard():
            return
        event["seconds"] = time.perf_counter() - started
        event["sick"] = self._faults.quiet("checkpoint", self._sick)
        self._faults.quiet("checkpoint", self._beside, target, event, foreign=False)

    def saved(self, path: str | os.PathLike[str], step: int) -> None:
        """Tell of a checkpoint that something else just wrote; our thread alone waits for it."""
        if not self._heard():
            return
        event = {"kind": "checkpoint", "path": str(path), "ok": False, "saved_step": int(step)}
        event["sick"] = self._faults.quiet("checkpoint", self._sick)
        self._beside(Path(path), event, foreign=True)

    def wait(self, deadline: float) -> None:
        """Let running checksums finish, until the monotonic deadline."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _report(self, event: dict[str, Any]) -> None:
        self._faults.quiet("checkpoint", self._tell, event)

    def _beside(self, target: Path, event: dict[str, Any], *, foreign: bool) -> None:
        thread = threading.Thread(
            target=self._describe,
            args=(target, event, foreign),
            name="gradwarden-checksum",
            daemon=True,
        )
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _describe(self, target: Path, event: dict[str, Any], foreign: bool) -> None:
        sick = event.pop("sick", None)
        event["finite"] = None if sick is None else not bool(sick)  # no thread but ours waits
        try:
            if foreign:
                flush(target)
            digest, size = checksum(target)
            written = {"modified_ns": modified(target)}
            event |= {"bytes": size, "sha256": digest, **written, "ok": True}
        except OSError as error:
            if foreign and not target.exists():  # a trainer that keeps few of them took it away
                return
            event["error"] = f"{type(error).__name__}: {error}"
        self._report(event)


def checksum(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file, or of a directory's files in name order."""
    digest, size = hashlib.sha256(), 0
    for file in files(path):
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    return digest.hexdigest(), size


def modified(path: Path) -> int:
    """When a file was written last, or the newest of a directory's, in UTC nanoseconds."""
    return max((file.stat().st_mtime_ns for file in files(path)), default=0)


def flush(path: Path) -> None:
    """fsync a file, or every file of a directory."""
    for file in files(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def files(path: Path) -> list[Path]:
    """The file itself, or all files of a directory in name order."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _replace(draft: Path, target: Path) -> None:
    if not target.is_dir():
        os.replace(draft, target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    os.replace(target, aside)  # a directory cannot be renamed over a full one
    os.replace(draft, target)
    _remove(aside)


def _flush_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # some file systems cannot open a directory; the rename stands anyway
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
