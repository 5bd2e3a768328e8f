"""SIGKILL a service that compacts under full load: every acked frame is there, exactly once."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from tests.server.hasty import FRAMES
from tests.server.pager import EACH_AT_ONCE, local_receiver
from tests.server.siege import Trainer, announce, check_kept, check_told, until
from tests.service import Service

HASTY = "tests.server.hasty"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.full)])
def test_kills_under_load_with_compaction(tmp_path: Path, kills: int) -> None:
    runs = ["sick-0", "well-1", "well-2"]
    with local_receiver() as pager:
        service = Service(tmp_path, program=HASTY, receivers=_pages(pager.url))
        trainers = [Trainer([service], run) for run in runs]
        for trainer in trainers:
            announce(service, trainer.run_name)
            trainer.start()
        moments = random.Random(kills)
        for _ in range(kills):
            trainers[0].more(moments.randrange(20, 120))
            threading.Event().wait(moments.uniform(0, 0.1))  # in the midst of whatever it does
            service.restart()
        trainers[0].more(2 * FRAMES)
        for trainer in trainers:
            trainer.finish()
        check_told(service, pager, runs)
        settled(service.db)
        service.stop()
    check_kept(service.db, {trainer.run_name: trainer.acked for trainer in trainers})
    database = Database(service.db)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
    database.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.full)])
def test_two_services_take_over_from_each_other_under_load(
    postgres_url: str, tmp_path: Path, kills: int
) -> None:
    runs = ["sick-0", "sick-1", "well-2"]
    with local_receiver() as pager:
        services = [
            Service(tmp_path / name, db=postgres_url, program=HASTY, receivers=_pages(pager.url))
            for name in ("one", "two")
        ]
        trainers = [Trainer(services, run) for run in runs]
        for trainer in trainers:
            announce(services[0], trainer.run_name)
            trainer.start()
        moments = random.Random(kills)
        for _ in range(kills):
            trainers[0].more(moments.randrange(40, 160))
            holder = next(s for s in services if s.get("/v1/runs/sick-0")["coverage"])
            holder.kill()
            # The other one alone: it takes the run's batches, and then its evaluation.
            other = services[1 - services.index(holder)]
            trainers[0].more(FRAMES)
            until(lambda o=other: bool(o.get("/v1/runs/sick-0")["coverage"]), "no take-over")
            holder.start()
        for trainer in trainers:
            trainer.finish()
        check_told(services[0], pager, runs)
        settled(postgres_url)
        for service in services:
            service.stop()
    check_kept(postgres_url, {trainer.run_name: trainer.acked for trainer in trainers})


def settled(url: str) -> None:
    """Wait until all is compacted that is due: nothing left undone by the dead."""
    database = Database(url)

    def still() -> bool:
        with database.read() as connection:
            unsealed = select(func.count()).where(t.segment.c.sealed.is_(False))
            waiting = select(func.max(t.stream.c.logged_frames))
            covered = (
                select(func.count())
                .select_from(t.frame_batch)
                .join(t.segment, t.segment.c.stream_id == t.frame_batch.c.stream_id)
                .where(t.segment.c.sealed, t.frame_batch.c.position <= t.segment.c.position1)
            )
            left = [connection.execute(s).scalar_one() for s in (unsealed, covered)]
            return left == [0, 0] and connection.execute(waiting).scalar_one() <= FRAMES

    until(still, "a dead process's compaction is left as it was")
    with database.read() as connection:
        sealed = select(func.count()).where(t.segment.c.sealed)
        assert connection.execute(sealed).scalar_one() > 3
        # The log and the segments together count what streams were told to hold.
        logged = connection.execute(select(func.sum(t.stream.c.logged_frames))).scalar_one()
        spans = func.sum(t.frame_batch.c.last_seq - t.frame_batch.c.first_seq + 1)
        assert logged == (connection.execute(select(spans)).scalar_one() or 0)
    database.close()


def _pages(url: str) -> str:
    return (
        f"receivers:\n  - name: pager\n    type: webhook\n    url: {url}\n    allow_private: true\n"
        + EACH_AT_ONCE
    )
