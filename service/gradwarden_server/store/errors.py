"""Why the store refuses; each is translated into one problem document by the api."""

from __future__ import annotations


class StoreError(Exception):
    """Root of the tree.

    UnknownStream, UnknownLayout, RunAlreadyLive, RunDeleted, Fenced, DatabaseInUse, Unavailable,
    DiskFull, DatabaseDamaged, Damaged.
    """


class UnknownStream(StoreError):
    """Frames or a heartbeat of a stream that never started here; the remedy is to start it."""

    def __init__(self, run: str, attempt: str, rank: int) -> None:
        super().__init__(f"no stream of run {run!r}, attempt {attempt!r}, rank {rank} is known")
        self.run, self.attempt, self.rank = run, attempt, rank


class UnknownLayout(StoreError):
    """A matrix whose layout this server lost or never had; the remedy is to send it."""

    def __init__(self, layout: str) -> None:
        super().__init__(f"layout {layout} is not known")
        self.layout = layout


class RunAlreadyLive(StoreError):
    """Another live process speaks for the same (run, rank)."""

    def __init__(
        self, run: str, rank: int, host: str, pid: int, nonce: str, live_seconds: float
    ) -> None:
        super().__init__(
            f"rank {rank} of run {run!r} is already reported by process {pid} on {host}, "
            f"heard {live_seconds:.0f} s ago"
        )
        self.run, self.rank = run, rank
        self.host, self.pid, self.nonce = host, pid, nonce
        self.live_seconds = live_seconds


class RunDeleted(StoreError):
    """Someone deleted the run; what its trainers still send is not taken."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} was deleted")
        self.run = run


class Fenced(StoreError):
    """The lease went to another process; what was computed under it must be dropped."""


class DatabaseInUse(StoreError):
    """A running server holds this SQLite file; writing beside it is refused."""


class Unavailable(StoreError):
    """The database does not answer or cannot write now; nothing was changed, try again."""


class DiskFull(Unavailable):
    """No room is left for the database; nothing was changed, and reading goes on."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"the disk of {place} is full, so nothing more is stored; trainers keep their frames "
            "and send them again. Make room there; no restart is needed"
        )
        self.place = place


class DatabaseDamaged(StoreError):
    """The database finds its own file not as it wrote it; what lies on that page is lost here."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(
            f"the database {place} is damaged ({why}). Stop the service, keep a copy of the file, "
            "see what is lost with `gradwarden db check`, and bring back a backup with "
            "`gradwarden db restore`"
        )
        self.place, self.why = place, why


class Damaged(StoreError):
    """Stored bytes are not those that were written; what they held is lost here."""

    def __init__(self, place: str, what: str, why: str) -> None:
        super().__init__(
            f"{place}: {what} cannot be read ({why}); the rest can. "
            "`gradwarden db check` lists what is damaged, a backup may still hold it"
        )
        self.place, self.what, self.why = place, what, why
