"""The real parts of the dashboard's tests: service, training, browser."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards import build_web
from tests.needs import needs
from tests.service import Service, clean_environment
from tests.ui.browser import Page

SICK_STEP = 170
SICK_LAYER = "1.mix"
STEPS = 240


@pytest.fixture(scope="session")
def dashboard() -> None:
    """The dashboard is built from the sources as they are."""
    # Several test processes may come here at once; one builds, the others find it built.
    with (build_web.WEB / "package.json").open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        build_web.build()


@pytest.fixture(scope="module")
def service(dashboard: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real service with an empty database."""
    running = Service(tmp_path_factory.mktemp("service"))
    yield running
    running.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A fresh headless Chromium."""
    with Page(needs("chromium"), tmp_path / "profile") as opened:
        opened.size(1440, 900)
        opened.scheme("dark")
        yield opened


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One Chromium for a whole module: starting one costs more than most tests."""
    with Page(needs("chromium"), tmp_path_factory.mktemp("profile")) as opened:
        opened.call("Network.enable")
        yield opened


@pytest.fixture
def tab(browser: Page) -> Page:
    """That Chromium as if it were new: a wide dark window, on line, with nothing remembered."""
    browser.go("about:blank")
    browser.network()
    browser.size(1440, 900)
    browser.scheme("dark")
    browser.call("Network.clearBrowserCookies")
    browser.complaints.clear()
    return browser


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: ``GRADWARDEN_SCREENSHOTS``, else pytest's temporary folder."""
    named = os.environ.get("GRADWARDEN_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


class Training:
    """The training of ``train.py`` as a process; it lives on after its last step until ended."""

    def __init__(self, service: Service, run: str, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ui.train", "--steps", str(STEPS), *arguments],
            stdin=subprocess.PIPE,
            env=clean_environment(
                GRADWARDEN_URL=service.url,
                GRADWARDEN_RUN=run,
                GRADWARDEN_SPOOL=str(folder / "spool"),
            ),
        )

    def end(self) -> None:
        """Let it finish."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def training(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """A live run named ``sick`` whose gradient became NaN, and whose alerts fire."""
    folder = tmp_path_factory.mktemp("training")
    started = Training(service, "sick", folder, "--sick-step", str(SICK_STEP), "--hold")
    try:
        until(lambda: firing(service, "sick") >= 1 and at_step(service, "sick") == STEPS - 1)
        yield started
    finally:
        started.end()


def firing(service: Service, run: str) -> int:
    """How many alerts of the run fire."""
    return len(service.get(f"/v1/alerts?state=firing&run={run}")["items"])


def at_step(service: Service, run: str) -> int | None:
    """The newest step that the service knows of the run."""
    items = service.get(f"/v1/runs?q={run}")["items"]
    return items[0]["step"] if items else None


def until(true: Any, limit: float = 90) -> None:
    """Ask until it is so."""
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)
