"""``gradwarden sync DIR``: deliver what spools hold, also of a dead process or node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gradwarden.courier import Courier, Verdict
from gradwarden.outbox import Losses, Record
from gradwarden.spool import lock, read_segment, segments
from gradwarden.transport import HttpTransport, Transport


@dataclass(slots=True)
class SyncReport:
    """What a sync did: frames acked, what is left and why."""

    spools: int = 0
    acked: int = 0
    skipped: list[Path] = field(default_factory=list)
    """Spools that a live process holds; it delivers them itself."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Spools that could not be delivered, with the last answer."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Frames that the service refused for good, by reason."""

    @property
    def ok(self) -> bool:
        return not self.failed and not self.dropped


Progress = Callable[[Path, int, int], None]
"""Called with (spool, bytes done, bytes in all) after each record."""


def sync(
    directory: str | Path,
    url: str,
    token: str | None = None,
    progress: Progress | None = None,
    *,
    project: str = "default",
    transport: Transport | None = None,
    tries: int = 5,
) -> SyncReport:
    """Send every spool under ``directory`` in order and delete what was acked.

    Spools locked by a live process are skipped. A spool whose delivery fails ``tries`` times
    in a row stays as it is, so that running the same command again goes on from there.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"no spool directory at {root}")
    losses = Losses()
    courier = Courier(transport or HttpTransport(url, token, project), losses, lambda _: None)
    report = SyncReport()
    for spool in find(root):
        report.spools += 1
        held = lock(spool)
        if held is None:
            report.skipped.append(spool)
            continue
        held.close()
        if not send_directory(spool, courier, progress, tries):
            report.failed[spool] = courier.trouble or "a live process took it"
    report.acked, report.dropped = courier.acked, losses.counts()
    return report


def find(root: Path) -> list[Path]:
    """Spool directories at or under ``root``, oldest first."""
    found = {p.parent for p in [*root.glob("*.spool"), *root.glob("*/*.spool")]}
    return sorted(found, key=lambda d: min((p.stat().st_mtime_ns for p in segments(d)), default=0))


def send_directory(
    directory: Path,
    courier: Courier,
    progress: Progress | None = None,
    tries: int = 1,
) -> bool:
    """Deliver one spool and delete it; False when it is in use or the service did not ack."""
    held = lock(directory)
    if held is None:
        return False
    with held:
        paths = segments(directory)
        total, done = sum(p.stat().st_size for p in paths), 0
        for path in paths:
            for record in read_segment(path):
                if not _insist(courier, record, tries):
                    return False
                done += len(record.body)
                if progress is not None:
                    progress(directory, min(done, total), total)
            path.unlink(missing_ok=True)
        (directory / "lock").unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()
    return True


def _insist(courier: Courier, record: Record, tries: int) -> bool:
    for attempt in range(tries):
        if courier.deliver(record) is not Verdict.LATER:
            return True
        if attempt + 1 < tries:
            time.sleep(min(courier.pause, 15.0))
    return False
