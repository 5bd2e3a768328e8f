"""SIGKILL at every commit of a compaction, before it and after it: nothing lost or doubled."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, select, update

from gradwarden_server.store import tables as t
from gradwarden_server.store.compacting import compaction as steps
from gradwarden_server.store.compacting.compaction import ABANDONED_NS, Compaction
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.shelves import shelf_tables
from tests.conftest import PostgresServer
from tests.server.pager import PATIENCE
from tests.server.test_compaction import DAY_NS, compact_all, counts, send, told
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store

FRAMES = 64
# One process imports once and forks for each death; forking this one would take its locks along.
_ready = multiprocessing.get_context("forkserver")
_ready.set_forkserver_preload([__name__])


def _compact_and_die(url: str, commit: int, after: bool) -> None:
    """Compact, and be killed at the ``commit``-th commit: before it, or after it is durable."""
    # Several commits for what one could hold, so that there are more moments to die at.
    shelf_tables._WRITE_BYTES, steps._SWEEP_ROWS = 4000, 4
    database = Database(url)
    writer = database._writer
    write, seen = writer._commit, 0

    def count(_connection: Connection) -> None:
        nonlocal seen
        seen += 1
        if seen == commit and not after:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die(jobs: Any) -> None:
        write(jobs)
        if seen == commit:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(writer._engine, "commit", count)
    writer._commit = write_and_die  # type: ignore[method-assign]
    compaction = Compaction(database, LogReader(database), frames=FRAMES)
    for due in compaction.due(NOW + DAY_NS):
        compaction.compact(due)
    os._exit(0)


def _killed(url: str, commit: int, after: bool) -> bool:
    """Whether it came so far; if not, it finished."""
    child = _ready.Process(target=_compact_and_die, args=(url, commit, after))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def copies(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes databases that all hold the same hundred and fifty frames, not compacted."""
    postgres: PostgresServer | None = None
    if request.param == "sqlite":
        first = f"sqlite:///{tmp_path}/first.sqlite"
    else:
        postgres = request.getfixturevalue("postgres_server")
        assert postgres is not None
        first = postgres.create()
    store = Store(first)
    store.runs.put_layout(PROJECT, LAYOUT).result()
    send(store, 150)
    store.database.close()
    numbers = itertools.count()

    def copy() -> str:
        if postgres is not None:
            return postgres.create(f'TEMPLATE "{first.rpartition("/")[2]}"')
        to = tmp_path / f"copy{next(numbers)}.sqlite"
        shutil.copy(tmp_path / "first.sqlite", to)
        return f"sqlite:///{to}"

    return copy


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_commit_neither_loses_nor_doubles(
    copies: Callable[[], str], after: bool
) -> None:
    whole = Store(copies())
    sent = told(whole)
    assert sum(len(batch.frames) for batch in sent) == 150
    whole.database.close()
    deaths = 0
    while _killed(url := copies(), deaths + 1, after):
        deaths += 1
        store = Store(url)
        assert told(store) == sent, f"read right after the death at commit {deaths}"
        alone = store.database.kind == "sqlite"
        if not alone:  # a minute passes, in which the dead one might have been alive
            ago = t.segment.c.claimed_ns - ABANDONED_NS
            with store.database.engine.begin() as connection:
                connection.execute(update(t.segment).values(claimed_ns=ago))
        successor = Compaction(store.database, store.log, frames=FRAMES)
        successor.recover(alone)
        assert told(store) == sent, f"recovered after the death at commit {deaths}"
        compact_all(successor)
        assert told(store) == sent, f"compacted after the death at commit {deaths}"
        _check_whole(store)
        store.database.close()
    assert deaths > 10, "claim, pages of chunks, seal, pages of the log that is deleted"


def _check_whole(store: Store) -> None:
    assert counts(store)["frame_batch"] == 0
    with store.database.read() as connection:
        frames = select(func.sum(t.segment.c.frames), func.count()).where(t.segment.c.sealed)
        assert tuple(connection.execute(frames).one()) == (150, counts(store)["segment"])
        assert connection.execute(select(t.stream.c.logged_frames)).scalar_one() == 0
        if store.database.kind == "sqlite":
            checked = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
            assert checked == ["ok"]
