"""The house for a walk: a real service, a real receiver, and real training processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.pager import EACH_AT_ONCE, PATIENCE, LocalReceiver
from tests.service import Service, clean_environment

TRAINER = [sys.executable, "-m", "tests.walk.trainer"]


class House:
    """Service, pager and trainers of one test."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.pager = LocalReceiver()
        receivers = (
            f"receivers:\n  - name: pager\n    type: webhook\n    url: {self.pager.url}\n"
            f"    allow_private: true\n{EACH_AT_ONCE}"
        )
        self.service = Service(folder, receivers=receivers, env=settings)

    def environment(self, run: str, **more: str) -> dict[str, str]:
        """A trainer's environment: where the service is, which run, and its own spool."""
        return clean_environment(
            GRADWARDEN_URL=self.service.url,
            GRADWARDEN_RUN_ID=run,
            GRADWARDEN_SPOOL=str(self.folder / "spool"),
            **more,
        )

    def train(self, run: str, *arguments: str) -> str:
        """Run a trainer to its end; what it printed."""
        done = subprocess.run(
            [*TRAINER, *arguments],
            env=self.environment(run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    @contextmanager
    def lasting(self, train: Callable[..., Any], run: str, *arguments: str) -> Iterator[None]:
        """A training that goes on for the length of the block.

        What is over before its message left is told to nobody, and on a busy machine a short
        training is over before it is judged.
        """
        stop = self.folder / f"{run}.stop"
        with ThreadPoolExecutor(1) as pool:
            training = pool.submit(train, run, "--until", str(stop), *arguments)
            try:
                yield
            finally:
                stop.touch()
            training.result()

    def fetch(self, path: str, **query: str) -> str:
        address = f"{self.service.url}{path}"
        if query:
            address += "?" + urllib.parse.urlencode(query)
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.fetch(path, **query))

    def page(self, alertname: str, status: str = "firing") -> Mapping[str, Any]:
        """The first delivered message of this status about an alert of this name."""
        seen = 0
        while True:
            seen += 1
            body: dict[str, Any] = json.loads(self.pager.wait(seen)[seen - 1].body)
            names = {alert["labels"]["alertname"] for alert in body["alerts"]}
            if body["status"] == status and alertname in names:
                return body

    def until_judged(self, run: str) -> None:
        """Wait until the service has judged all that the ended run sent and settled it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            known = self.get(f"/v1/runs/{run}")
            standing = self.get("/v1/alerts", run=run, state="pending,firing")["items"]
            if known["status"] == "finished" and not known["unjudged"] and not standing:
                return
        raise AssertionError(f"run {run} was not judged to its end")

    def close(self) -> None:
        self.service.stop()
        self.pager.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()
