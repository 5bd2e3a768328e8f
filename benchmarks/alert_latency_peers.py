"""The same incidents told by Prometheus and Alertmanager, so that a page can be compared.

One exporter has a gauge of each run that turns 1 when its gradient is not finite; a rule fires on
it, and Alertmanager tells a webhook. That is fewer series and targets than a fleet has: it favours
the peer.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alert_pager import Pager, spread

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Tuning:
    """How often Prometheus looks and how long Alertmanager gathers; seconds."""

    scrape: int
    evaluation: int
    group_wait: int

    @property
    def worst_seconds(self) -> float:
        return self.scrape + self.evaluation + self.group_wait + 10.0


DEFAULTS = Tuning(scrape=15, evaluation=15, group_wait=30)
TUNED = Tuning(scrape=1, evaluation=1, group_wait=0)


class Missing(Exception):
    """A program is not installed; the text says which package brings it."""


def measured(tuning: Tuning, incidents: int, folder: Path) -> dict[str, Any]:
    """Milliseconds from a NaN until the webhook, over incidents at random moments.

    Raises:
        Missing: Prometheus or Alertmanager is not installed.
    """
    runs = [f"run-{n}" for n in range(incidents)]
    pager, exporter = Pager(), _Exporter(runs)
    began: dict[str, int] = {}
    try:
        with (
            _alertmanager(folder, tuning, pager) as alerts,
            _prometheus(folder, tuning, exporter.port, alerts) as url,
        ):
            _await_scrape(url, tuning)
            for run in runs:  # over two rounds of looking, so at every phase of them
                time.sleep(random.uniform(0, 2 * 2 * max(1, tuning.scrape) / incidents))
                began[run] = time.time_ns()
                exporter.sick.add(run)
            pager.wait(runs, tuning.worst_seconds)
    finally:
        pager.close()
        exporter.close()
    return {**vars(tuning), **spread(began, pager.paged)}


class _Exporter:
    def __init__(self, runs: list[str]) -> None:
        self.sick: set[str] = set()
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines = (f'nonfinite{{run="{r}"}} {int(r in exporter.sick)}\n' for r in runs)
                body = "".join(lines).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def _alertmanager(folder: Path, tuning: Tuning, pager: Pager) -> Iterator[int]:
    port = _free_port()
    config = folder / "alertmanager.yml"
    config.write_text(
        f"route:\n  receiver: pager\n  group_by: [run]\n  group_wait: {tuning.group_wait}s\n"
        f"receivers:\n  - name: pager\n    webhook_configs:\n      - url: {pager.url}\n"
    )
    words = [
        _program("prometheus-alertmanager"),
        f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with _running(words, f"http://127.0.0.1:{port}/-/ready"):
        yield port


@contextmanager
def _prometheus(folder: Path, tuning: Tuning, target: int, alerts: int) -> Iterator[str]:
    port = _free_port()
    rules = folder / "rules.yml"
    rules.write_text(
        "groups:\n  - name: training\n    rules:\n      - alert: NonFiniteGradient\n"
        "        expr: nonfinite > 0\n        labels: {severity: page}\n"
    )
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {tuning.scrape}s, scrape_timeout: 1s, "
        f"evaluation_interval: {tuning.evaluation}s}}\n"
        f"rule_files: [{rules}]\n"
        "alerting:\n  alertmanagers:\n"
        f"    - static_configs: [{{targets: ['127.0.0.1:{alerts}']}}]\n"
        "scrape_configs:\n  - job_name: trainers\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
    )
    words = [
        _program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    with _running(words, f"{url}/-/ready"):
        yield url


@contextmanager
def _running(words: list[str], ready: str) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        _until(lambda: _answers(ready), f"{words[0]} does not get ready")
        yield
    finally:
        process.terminate()
        process.wait(_PATIENCE_SECONDS)


def _await_scrape(url: str, tuning: Tuning) -> None:
    """Both have looked once, so that what follows is their pace and not their start."""
    asked = f"{url}/api/v1/query?query=count(nonfinite)"

    def scraped() -> bool:
        with urllib.request.urlopen(asked, timeout=_PATIENCE_SECONDS) as answer:
            return b'"value"' in answer.read()

    _until(scraped, "Prometheus scrapes nothing")
    time.sleep(tuning.evaluation)


def _until(asked: Any, complaint: str) -> None:
    deadline = time.monotonic() + 2 * _PATIENCE_SECONDS
    while not asked():
        if time.monotonic() > deadline:
            raise SystemExit(complaint)
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = "prometheus" if name == "prometheus" else "prometheus-alertmanager"
        raise Missing(f"{name} is not installed: apt install {package}")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
