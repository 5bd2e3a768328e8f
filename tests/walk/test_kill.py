"""SIGKILL the service again and again under a running training: nothing acked is lost."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from tests.server.pager import PATIENCE
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
        done = gradwarden("sync", health["spool"], "--url", house.service.url)
        assert done.returncode == 0, done.stderr
    house.until_judged("besieged")
    assert house.get("/v1/runs/besieged")["step"] == health["captured"] - 1

    alerts = house.get("/v1/alerts", run="besieged", limit="500")["items"]
    fired = Counter(
        a["fingerprint"]
        for a in alerts
        # What a cause that stands explains is told to nobody.
        if a["fired_at"] and a["severity"] in ("page", "ticket") and not a["muted"]
    )
    assert fired.total() > 1  # it fell ill, was healed, and fell ill again
    # One that was over before it could be told, as where a service was dead meanwhile, never is.
    standing = {a["fingerprint"] for a in alerts if a["state"] == "firing" and not a["muted"]}
    deadline = time.monotonic() + PATIENCE
    while not standing <= (told := paged(house)).keys() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert standing <= told.keys()
    assert told, "nobody was told of anything"
    assert told <= fired, "told of what was none, or twice"

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


def paged(house: House) -> Counter[str]:
    """How many incidents of each fingerprint the pager was told of."""
    told = {
        (alert["fingerprint"], alert["startsAt"])
        for request in list(house.pager.requests)
        for alert in json.loads(request.body)["alerts"]
        if alert["status"] == "firing"
    }
    return Counter(fingerprint for fingerprint, _ in told)
