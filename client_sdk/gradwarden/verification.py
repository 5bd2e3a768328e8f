"""Whether a checkpoint is what was saved: whole, and of the checksum that was recorded."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from gradwarden.checkpoint import checksum, files, modified
from gradwarden.guard import Saved

_WHOLE = 0.9
"""A file that was written again since is cut off below this share of its size."""
_ZIP = b"PK\x03\x04"


def look(path: Path, known: Saved | None) -> dict[str, Any]:
    """The event of one look at a checkpoint; the whole of it is read.

    ``verified`` is False where it is not what was saved, True where checksum and size are as
    ``known``, and None where nothing speaks against it and nothing is known for certain.
    ``whole`` says that the files themselves tell that nothing of them is missing. The service
    knows more: what earlier processes of the run saved.
    """
    event: dict[str, Any] = {"kind": "checkpoint", "path": str(path), "verified": None}
    if known is not None:
        event["saved_step"] = known.step
    try:
        digest, size = checksum(path)
        wrong, whole = _cut_off(path) if size else ("it is empty", False)
        event |= {"sha256": digest, "bytes": size, "modified_ns": modified(path), "whole": whole}
    except OSError as error:
        return {**event, "ok": False, "error": f"{type(error).__name__}: {error}"}
    if not wrong and known is not None and known.sha256:
        wrong = _differs(known, event)
        event["verified"] = True if digest == known.sha256 else None
    if wrong:
        event |= {"verified": False, "error": wrong}
    return {**event, "ok": not wrong}


def _differs(known: Saved, event: dict[str, Any]) -> str:
    if not event["whole"] and event["bytes"] < _WHOLE * known.bytes:
        return f"it has {event['bytes']} of {known.bytes} bytes"
    if event["modified_ns"] == known.modified_ns and event["sha256"] != known.sha256:
        return "its checksum differs from when it was saved"
    return ""


def _cut_off(path: Path) -> tuple[str, bool]:
    """Which file is cut off, or nothing; and whether all are known to be whole.

    ``torch.save`` writes zip files, whose directory comes last.
    """
    whole = True
    for file in files(path):
        with open(file, "rb") as stream:
            begins = stream.read(len(_ZIP))
        if begins != _ZIP:
            whole = False
        elif not zipfile.is_zipfile(file):
            name = str(file.relative_to(path)) if path.is_dir() else "it"
            return f"{name} is cut off: the end of the file is missing", False
    return "", whole
