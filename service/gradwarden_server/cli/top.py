"""``gradwarden top``: the fleet, or one run, live in a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.live import Live

from gradwarden_server.cli import screens
from gradwarden_server.cli.faults import DONE, UNREACHABLE, CommandError
from gradwarden_server.cli.reading import Client
from gradwarden_server.cli.terminal_heatmap import Heat, decoded

_SERIES = ("loss", "grad_norm", "lr", *screens.PHASES)
_COLUMNS = 160
_POLL_SECONDS = 0.1


@dataclass
class View:
    """What is looked at: the list with one line chosen, or one run."""

    run: str | None = None
    chosen: int = 0
    from_list: bool = False

    def press(self, key: str, fleet: Mapping[str, Any] | None) -> bool:
        """Take a key; False asks to leave."""
        names = [item["run"] for item in (fleet or {}).get("runs", ())]
        if key in ("q", "\x03"):
            return False
        if key == "\x1b" and self.from_list:
            self.run = None
        elif self.run is None and key in "jk" and names:
            self.chosen = (self.chosen + (1 if key == "j" else -1)) % len(names)
        elif self.run is None and key in "\r\n" and names:
            self.run, self.from_list = names[min(self.chosen, len(names) - 1)], True
        return True


@dataclass
class Data:
    """The newest answers, kept while the service does not answer."""

    fleet: Mapping[str, Any] | None = None
    of_run: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    at: float = 0.0
    wrong: str = ""


def top(options: argparse.Namespace) -> int:
    """Show until somebody leaves; once where nobody looks at a terminal."""
    client = Client(options)
    view = View(run=client.run(options.run) if options.run else None)
    if options.json:
        print(json.dumps(_asked(client, view, options.limit), indent=2, default=str))
        return DONE
    console = Console()
    if options.once or not console.is_terminal:
        data = Data()
        _store(data, view, _asked(client, view, options.limit))
        console.print(_screen(view, data, console, time.time()))
        return DONE
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        _follow(client, view, options, pressed, live)
    return DONE


def _follow(
    client: Client, view: View, options: argparse.Namespace, pressed: Iterator[str], live: Live
) -> None:
    data, due = Data(), 0.0
    while True:
        key = next(pressed)
        if key:
            if not view.press(key, data.fleet):
                return
            due = 0.0 if view.run and view.run not in data.of_run else due
        now = time.time()
        if now >= due:
            try:
                _store(data, view, _asked(client, view, options.limit))
            except CommandError as error:
                if data.at == 0 or error.code != UNREACHABLE:
                    raise
                data.wrong = str(error)
            due = now + options.interval
        live.update(_screen(view, data, live.console, now), refresh=True)


def _asked(client: Client, view: View, limit: int) -> dict[str, Any]:
    """What one screen shows, from the API.

    Raises:
        CommandError: nobody answers, or the run is not known.
    """
    if view.run is None:
        runs = client.call("GET", "/v1/runs", params={"limit": str(limit)})
        alerts = client.call("GET", "/v1/alerts", params={"state": "firing,pending"})
        return {"runs": screens.worst_first(runs["items"]), "alerts": alerts["items"]}
    path = f"/v1/runs/{quote(view.run, safe='')}"
    keys = {"keys": ",".join(_SERIES), "points": str(_COLUMNS)}
    return {
        "run": client.call("GET", path),
        "series": client.call("GET", f"{path}/series", params=keys),
        "diagnosis": client.call("GET", f"{path}/diagnosis"),
        "heat": _heat(client, path),
    }


def _heat(client: Client, path: str) -> Heat | None:
    with client.stream(f"{path}/heatmap", {"metric": "l2", "cols": str(_COLUMNS)}) as answer:
        return decoded(answer.read())


def _store(data: Data, view: View, told: Mapping[str, Any]) -> None:
    if view.run is None:
        data.fleet = told
    else:
        data.of_run[view.run] = told
    data.at, data.wrong = time.time(), ""


def _screen(view: View, data: Data, console: Console, now: float) -> Any:
    width, height = console.size
    foot = screens.footer(data.at, data.wrong, view.run is not None and view.from_list, now)
    if view.run is not None and view.run in data.of_run:
        return screens.one_run(data.of_run[view.run], width, height, foot)
    return screens.fleet(data.fleet or {"runs": [], "alerts": []}, view.chosen, width, height, foot)


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Keys as they are pressed, one at a time and unseen; empty where none was for a moment."""
    import select
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _no_keys()
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def pressed() -> Iterator[str]:
        while True:
            ready, _, _ = select.select([stdin], [], [], _POLL_SECONDS)
            yield sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(stdin)
        yield pressed()
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _no_keys() -> Iterator[str]:
    while True:
        time.sleep(_POLL_SECONDS)
        yield ""
