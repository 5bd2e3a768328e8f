"""SIGKILL the service again and again under a running training: nothing acked is lost."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from tests.server.pager import PATIENCE
from tests.server.siege import check_told
from tests.service import gradwarden
from tests.walk.conftest import TRAINER, House


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [20, pytest.param(150, marks=pytest.mark.full)])
def test_kills_lose_no_frame_double_none_and_drop_no_alert(
    house: House, tmp_path: Path, kills: int
) -> None:
    stop = tmp_path / "stop"
    arguments = ["--until", str(stop), "--pace", "0.01", "--sick-every", "150"]
    log = tmp_path / "trainer.log"
    with log.open("w") as output:
        trainer = subprocess.Popen(
            [*TRAINER, *arguments], env=house.environment("besieged"), stdout=output, stderr=output
        )
        moments = random.Random(kills)
        for _ in range(kills):
            with suppress(subprocess.TimeoutExpired):
                trainer.wait(moments.uniform(0.1, 2.0))
                raise AssertionError(f"training ended: {log.read_text()}")
            house.service.restart()
        stop.touch()
        assert trainer.wait(PATIENCE * 2) == 0, log.read_text()
    health = json.loads(log.read_text().rpartition("health ")[2])
    assert health["dropped"] == {}
    if health["spooled"]:
        # The last kill may outlast the trainer's farewell; its spool waits on disk, as it says.
        done = gradwarden("sync", health["spool"], "--url", house.service.url, timeout=300)
        assert done.returncode == 0, done.stderr
    house.until_judged("besieged")
    assert house.get("/v1/runs/besieged")["step"] == health["captured"] - 1

    check_told(house.service, house.pager, ["besieged"])
    assert house.get("/v1/alerts", run="besieged", limit="500")["items"][1:], "it fell ill once"

    house.service.stop()
    database = Database(house.service.db)
    try:
        frames = Counter(
            frame.seq
            for entry in LogReader(database).after("default", "besieged", 0, 10**6)
            for frame in entry.batch().frames
        )
    finally:
        database.close()
    assert set(frames) == set(range(1, health["frames"] + 1))
    assert set(frames.values()) == {1}
