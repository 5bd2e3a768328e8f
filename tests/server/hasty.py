"""``gradwarden`` whose compactor is always busy: a few frames make a segment, in many commits."""

from __future__ import annotations

from functools import partial

from gradwarden_server import cli, house
from gradwarden_server.store.compacting import compaction
from gradwarden_server.store.shelves import shelf_tables

FRAMES = 32

if __name__ == "__main__":
    shelf_tables._WRITE_BYTES, compaction._SWEEP_ROWS = 4000, 2
    # One that is only slow is taken for dead too, and must find out.
    compaction.ABANDONED_NS = 3_000_000_000
    house.Compaction = partial(house.Compaction, frames=FRAMES)  # type: ignore[assignment, misc]
    raise SystemExit(cli.main())
