"""SIGKILL a service between what ClickHouse accepted and the seal: nothing lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.shelves import clickhouse_schema as schema
from gradwarden_server.store.shelves.clickhouse import ClickHouseShelf
from gradwarden_server.store.shelves.clickhouse_engines import connect
from tests.needs import needs_package
from tests.server.pager import PATIENCE
from tests.server.siege import Trainer, announce, check_kept
from tests.server.test_kill_compacting import settled
from tests.service import Service

DEATHS = 3


@pytest.mark.timeout(900)
def test_a_service_killed_between_put_and_seal(tmp_path: Path) -> None:
    needs_package("chdb")
    series = f"chdb://{tmp_path / 'clickhouse'}"
    env = {"GRADWARDEN_SERIES": series}
    service = Service(tmp_path, program="tests.server.deadly", env=env)
    announce(service, "well")
    trainer = Trainer([service], "well")
    trainer.start()
    for _ in range(DEATHS):
        assert service.process is not None
        assert service.process.wait(PATIENCE) == -9
        service.start()
    assert service.process is not None
    assert service.process.wait(PATIENCE) == -9
    service.program = "tests.server.hasty"
    service.start()
    trainer.more(200)
    trainer.finish()
    settled(service.db)
    service.stop()
    engine = connect(series)
    shelf = ClickHouseShelf(engine)
    check_kept(service.db, {"well": trainer.acked}, shelf)
    database = Database(service.db)
    with database.read() as connection:
        rows = connection.execute(select(t.segment.c.id, t.segment.c.claimed_ns))
        owned = {(number, made) for number, made in rows}
        assert connection.execute(select(func.count()).select_from(t.chunk)).scalar_one() == 0
    database.close()
    assert set(shelf.holding("rollup", (0, 0))) == owned, "what the dead put there is gone"
    twice = engine.query(
        f"SELECT count() - uniqExact(segment, made, quantity, row) FROM {schema.VALUES}"
    )
    assert int.from_bytes(twice, "little") == 0
    engine.close()
