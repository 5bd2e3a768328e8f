"""``gradwarden top``: the fleet and one run, once into a pipe and live on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.server.pager import eventually
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, clean_environment, gradwarden

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07)")
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A run that is well and one with NaN in its third layer from step 19 on."""
    running = Service(tmp_path_factory.mktemp("top"))
    for run, bad in (("well", None), ("sick", 2)):
        begin(running, run, name=f"digits-resnet-18-lr-0.1-{run}")
        frames = [frame(n, bad_row=bad if n >= 20 else None) for n in range(1, 24)]
        assert send(running, batch(run, frames)).status_code == 200

    def fires() -> bool:
        answer = running.call("GET", "/v1/alerts", params={"state": "firing", "run": "sick"})
        return bool(answer.json()["items"])

    eventually(fires)
    yield running
    running.close()


def test_the_fleet_shows_the_sick_run_first_and_what_fires(service: Service) -> None:
    done = gradwarden("top", "--url", service.url, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "2 runs: 1 critical" in lines[0]
    sick, well = (
        next(at for at, line in enumerate(lines) if run in line) for run in ("sick", "well")
    )
    assert sick < well
    assert lines[sick].startswith("X")
    assert any("NonFiniteGradient" in line for line in lines)


def test_a_narrow_terminal_shows_names_whole_and_a_head_of_one_line(service: Service) -> None:
    done = gradwarden("top", "--url", service.url, env={"COLUMNS": "80"})
    head, empty, *lines = done.stdout.splitlines()
    assert "2 runs: 1 critical" in head
    assert "firing 1 page" in head
    assert not empty.strip()
    for run in ("sick", "well"):
        assert any(f"digits-resnet-18-lr-0.1-{run} " in line for line in lines)
    assert "owner" not in done.stdout
    assert max(map(len, lines)) <= 80


def test_one_run_shows_its_layers_with_nan_where_they_are(service: Service) -> None:
    done = gradwarden("top", "sick", "--url", service.url, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "CRITICAL" in done.stdout
    assert "DO FIRST" in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("blocks")}
    assert rows["blocks.1.weight"].count("X") == 4
    assert "X" not in rows["blocks.0.weight"]


def test_one_run_fits_eighty_columns_with_every_layer_and_the_newest_steps(
    service: Service,
) -> None:
    done = gradwarden("top", "sick", "--url", service.url, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "CRITICAL" in lines[0]
    assert lines[1].strip(), "what ails it has a line of its own"
    assert "…" not in lines[0] + lines[1]
    rows = {line.split()[0]: line for line in lines if line.startswith("blocks")}
    assert rows["blocks.1.weight"].count("X") == 4
    assert any(line.startswith("loss") and line.rstrip()[-1] in "▁▂▃▄▅▆▇█Xe" for line in lines)


def test_json_tells_the_same(service: Service) -> None:
    done = gradwarden("top", "--json", "--url", service.url)
    assert {run["run"] for run in json.loads(done.stdout)["runs"]} == {"well", "sick"}


def test_nobody_at_the_address_is_said_with_what_to_do() -> None:
    done = gradwarden("top", "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert "gradwarden serve" in done.stderr


def test_a_run_that_nobody_knows_is_refused(service: Service) -> None:
    done = gradwarden("top", "nobody", "--url", service.url)
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_keys_choose_a_run_open_it_go_back_and_leave(service: Service) -> None:
    screen, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gradwarden_server.cli", "top", "--url", service.url],
        env=clean_environment(TERM="xterm-256color", COLUMNS="160", LINES="40"),
        stdin=side,
        stdout=side,
        stderr=subprocess.PIPE,
    )
    os.close(side)
    try:
        _until(screen, "2 runs")
        os.write(screen, b"\r")
        _until(screen, "DO FIRST")
        os.write(screen, b"\x1b")
        _until(screen, "2 runs")
        os.write(screen, b"q")
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        os.close(screen)


def _until(screen: int, wanted: str) -> None:
    """Read what is drawn from now on until the words are seen."""
    seen, end = "", time.monotonic() + PATIENCE_SECONDS
    while wanted not in ESCAPES.sub("", seen):
        assert time.monotonic() < end, f"{wanted!r} was not drawn: {ESCAPES.sub('', seen)[-2000:]}"
        ready, _, _ = select.select([screen], [], [], 1.0)
        if ready:
            seen += os.read(screen, 65536).decode(errors="replace")
