"""What the demo tells in the terminal: training, the alert, the delivered page, the dashboard."""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.json import JSON
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gradwarden_server.cli import telling
from gradwarden_server.demo import service

STEPS = 1000
_PATIENCE_SECONDS = 60.0
_ABOUT = (
    "Train a small network until a NaN is born in it, and show the alert, the delivered page and "
    "the dashboard, which stays up."
)


class Pager:
    """A real HTTP receiver on a free loopback port, as a pager's webhook endpoint would be."""

    def __init__(self) -> None:
        received: queue.Queue[dict[str, Any]] = queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.end_headers()
                received.put(json.loads(body))

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent; the demo shows the body itself."""

        self.received = received
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/page"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when the service said what it had to say, and nothing else."""
    parser = argparse.ArgumentParser(prog="gradwarden demo", description=_ABOUT)
    parser.add_argument("--healthy", action="store_true", help="train without the bad image")
    parser.add_argument("--stop", action="store_true", help="stop the dashboard of the last demo")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    if arguments.stop:
        stopped = service.stop()
        console.print("Stopped." if stopped else "No demo dashboard is up.")
        return 0
    pager = Pager()
    try:
        running = service.start(pager.url)
        return _tell(console, running, pager, sick=not arguments.healthy)
    except service.ServiceFailed as error:
        console.print(f"[red]The service did not start:[/]\n{error}", markup=True)
        return 1
    finally:
        pager.close()


def _tell(console: Console, running: service.DemoService, pager: Pager, sick: bool) -> int:
    run = time.strftime("digits-%Y%m%d-%H%M%S") + ("" if sick else "-healthy")
    console.print(f"Service   {running.url}  (SQLite, fresh)")
    console.print(f"Pager     {pager.url}  (a local webhook receiver)")
    console.print(f"Training  run {run}: a five-block convolutional network on 1,500 digits\n")
    began = time.monotonic()
    training = _train(running.url, run, sick)
    page = _watch(console, running.url, run, training, pager)
    output = training.communicate()[0]
    if page is None and sick:
        page = _wait(pager, _PATIENCE_SECONDS)
    elapsed = time.monotonic() - began
    if page is not None:
        _show(console, page)
    console.print(Panel(output.strip()[-1200:], title="what the training script itself printed"))
    told = _get(f"{running.url}/v1/runs/{run}/diagnosis") if page is not None else None
    if told is not None:
        console.print(f"\nThe story, as `gradwarden diagnose {run}` tells it:\n", soft_wrap=True)
        telling.tell(told, running.url)
    address = f"{running.url}/runs/{run}"
    console.print(f"\nDashboard: [bold]{address}[/]", soft_wrap=True)
    console.print(f"It stays up; stop it with: {_own_command()} --stop", soft_wrap=True)
    if not sick:
        verdict = "no alert" if page is None else "an alert that should not be"
        console.print(f"Healthy run over after {elapsed:.0f} s: {verdict}.")
        return 0 if page is None and training.returncode == 0 else 1
    if page is None:
        console.print(f"[red]No alert arrived.[/] The service's log: {service.folder()}")
        return 1
    return 0


def _own_command() -> str:
    """How this demo was called, as one can type it again from here."""
    called = Path(sys.argv[0])
    if called.name != "gradwarden":
        return "gradwarden demo"
    here = Path.cwd()
    return f"{called.relative_to(here) if called.is_relative_to(here) else called} demo"


def _train(url: str, run: str, sick: bool) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    environment |= {"GRADWARDEN_URL": url, "GRADWARDEN_RUN_ID": run}
    command = [sys.executable, "-m", "gradwarden_server.demo.training", f"--steps={STEPS}"]
    return subprocess.Popen(
        command + ["--sick"] * sick,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def _watch(
    console: Console, url: str, run: str, training: subprocess.Popen[str], pager: Pager
) -> dict[str, Any] | None:
    """Show progress from the service's own view until the training ends; the first page."""
    page: dict[str, Any] | None = None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=STEPS, loss="-")
        while training.poll() is None:
            seen = _get(f"{url}/v1/runs/{run}")
            if seen is not None and seen.get("step") is not None:
                loss = seen.get("loss")
                shown = f"{loss:.3f}" if isinstance(loss, float) else str(loss or "-")
                progress.update(task, completed=seen["step"] + 1, loss=shown)
            page = page or _wait(pager, 0.2)
        seen = _get(f"{url}/v1/runs/{run}")
        if seen is not None and seen.get("step") is not None:
            progress.update(task, completed=seen["step"] + 1)
    return page or _wait(pager, 0.5)


def _get(address: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except OSError:
        return None  # the run's first frame has not arrived yet


def _wait(pager: Pager, seconds: float) -> dict[str, Any] | None:
    try:
        return pager.received.get(timeout=seconds)
    except queue.Empty:
        return None


def _show(console: Console, page: Mapping[str, Any]) -> None:
    alert = page["alerts"][0]
    labels, said = alert["labels"], alert["annotations"]
    table = Table.grid(padding=(0, 2))
    rows = (
        ("what", said.get("summary")),
        ("layer", said.get("layer")),
        ("step", said.get("step")),
        ("rank", said.get("rank")),
        ("where", said.get("bracket")),
        ("cause", said.get("cause")),
        ("do first", said.get("first_action")),
        ("runbook", said.get("runbook_url")),
    )
    for name, value in rows:
        if value:
            table.add_row(f"[bold]{name}[/]", str(value))
    title = f"{labels['severity'].upper()}  {labels['alertname']}"
    console.print(Panel(table, title=title, border_style="red"))
    console.print("Delivered to the pager, as Alertmanager would:")
    console.print(JSON.from_data(page))
