"""The stack of docker-compose.yml by hand: real Prometheus and Alertmanager, shipped files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import free_port
from tests.needs import needs

ROOT = Path(__file__).resolve().parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
RULES = ROOT / "alert_rules" / "prometheus" / "gradwarden-self.rules.yml"


def laid_out(tmp_path: Path, scrape: str, alertmanager: str, token: str) -> Path:
    """Prometheus' files as its container sees them, with addresses of this machine."""
    folder = tmp_path / "prometheus"
    for part in ("rules", "secrets"):
        (folder / part).mkdir(parents=True)
    (folder / "secrets" / "admin_token").write_text(token)
    shutil.copy(RULES, folder / "rules")
    text = PROMETHEUS.read_text().replace("service:8321", scrape)
    text = text.replace("alertmanager:9093", alertmanager).replace("15s", "1s")
    config = folder / "prometheus.yml"
    config.write_text(text)
    return config


@contextmanager
def running(tmp_path: Path, scrape: str, token: str) -> Iterator[tuple[str, str]]:
    """Prometheus, which scrapes one address, and Alertmanager; the URLs of both."""
    programs = needs("prometheus"), needs("prometheus-alertmanager")
    ports = free_port(), free_port()
    config = laid_out(tmp_path, scrape, f"127.0.0.1:{ports[1]}", token)
    commands = (
        [
            programs[0],
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{ports[0]}",
            # The first send comes before Alertmanager is discovered; the next after a minute.
            "--rules.alert.resend-delay=1s",
        ],
        [
            programs[1],
            f"--config.file={ALERTMANAGER}",
            f"--storage.path={tmp_path / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{ports[1]}",
            "--cluster.listen-address=",
        ],
    )
    processes = []
    with (tmp_path / "stack.log").open("wb") as log:
        try:
            for command in commands:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path))
            yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(10)


def make_secrets(folder: Path) -> None:
    """Runs the script of the stack, with every file owned by who runs the tests."""
    me = f"{os.getuid()}:{os.getgid()}"
    owners = dict.fromkeys(("SERVICE_OWNER", "POSTGRES_OWNER", "GRAFANA_OWNER"), me)
    script = ROOT / "deploy" / "compose" / "make-secrets.sh"
    subprocess.run(["sh", script, folder], check=True, env={**os.environ, **owners})


def get(url: str) -> Any:
    """The JSON behind a URL."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def ask(prometheus: str, expression: str) -> list[float]:
    """The values that an expression has in Prometheus now."""
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    return [float(row["value"][1]) for row in get(url)["data"]["result"]]


def until(what: str, look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first truthy answer of `look`, asked again until it is there."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = look()
        except OSError as error:
            last = error
        else:
            if last:
                return last
        threading.Event().wait(0.1)
    raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {last!r}")
