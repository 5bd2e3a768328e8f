"""How a run may end, and who is told: a real process, really ended."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server import assets
from tests.server.pager import PATIENCE
from tests.walk.conftest import TRAINER, House

# The shipped patience is minutes; the same rules with seconds.
IMPATIENT = {"grace_seconds": 2.0, "silent_seconds": 15.0, "settle_seconds": 0.0}


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[House]:
    rules = tmp_path / "rules"
    shutil.copytree(assets.ALERT_RULES, rules)
    file = rules / "failed_run.yaml"
    text = file.read_text()
    for name, seconds in IMPATIENT.items():
        text = re.sub(rf"{name}: [\d.]+", f"{name}: {seconds}", text)
    file.write_text(text)
    made = House(tmp_path, GRADWARDEN_RULES=str(rules))
    yield made
    made.close()


def end(house: House, *arguments: str, by: signal.Signals | None = None) -> int:
    """Train in production until the end that the arguments or a signal bring."""
    with subprocess.Popen(
        [*TRAINER, "--pace", "0.02", *arguments],
        env=house.environment("ending", GRADWARDEN_ENVIRONMENT="prod"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as trainer:
        assert trainer.stdout is not None
        for line in trainer.stdout:
            if by is not None and line.startswith("step 20"):
                trainer.send_signal(by)
        return trainer.wait(PATIENCE)


def status(house: House, wanted: str) -> dict[str, Any]:
    """The run, once it has this status and all that it sent was judged."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        run: dict[str, Any] = house.get("/v1/runs/ending")
        if run["status"] == wanted and not run["unjudged"]:
            return run
    raise AssertionError(f"the run is {run['status']}, not {wanted}")


def test_an_exception_pages_with_its_own_words(impatient: House) -> None:
    assert end(impatient, "--raise-at", "25") == 1
    assert "out of memory" in status(impatient, "failed")["reason"]
    (alert,) = impatient.page("RunFailed")["alerts"]
    assert alert["labels"]["severity"] == "page"
    assert "out of memory" in alert["annotations"]["summary"]
    assert "tried to allocate 80 GiB" in alert["annotations"]["cause"]
    assert alert["annotations"]["step"] in ("24", "25")
    assert status(impatient, "failed")["health"] == "crit"


def test_a_process_killed_without_a_word_pages_too(impatient: House) -> None:
    assert end(impatient, "--die-at", "30") == -signal.SIGKILL
    (alert,) = impatient.page("RunFailed")["alerts"]
    assert "died without a word" in alert["annotations"]["summary"]
    assert alert["annotations"]["node"]


def test_a_resumed_run_closes_the_page_of_its_failure(impatient: House, tmp_path: Path) -> None:
    assert end(impatient, "--raise-at", "25") == 1
    impatient.page("RunFailed")
    assert end(impatient, "--first-step", "20", "--steps", "60") == 0
    status(impatient, "finished")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        (alert,) = impatient.get("/v1/alerts", run="ending")["items"]
        if alert["state"] == "resolved":
            break
    assert alert["state"] == "resolved"


def test_a_preempted_run_is_a_note_and_no_page(impatient: House) -> None:
    end(impatient, "--steps", "5000", by=signal.SIGTERM)
    status(impatient, "preempted")
    deadline = time.monotonic() + PATIENCE
    alerts: list[dict[str, Any]] = []
    while not alerts and time.monotonic() < deadline:
        alerts = impatient.get("/v1/alerts", run="ending")["items"]
    assert [(a["alertname"], a["severity"]) for a in alerts] == [("RunFailed", "note")]
    assert impatient.pager.requests == []


def test_a_run_cancelled_by_hand_raises_nothing(impatient: House) -> None:
    end(impatient, "--steps", "5000", by=signal.SIGINT)
    assert status(impatient, "cancelled")["health"] == "ok"
    assert impatient.get("/v1/alerts", run="ending")["items"] == []
