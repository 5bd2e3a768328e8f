"""Stored runs of a service, fetched as frames to be judged on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from gradwarden_server.alerting.past import History, known
from gradwarden_server.cli.faults import UNREACHABLE, USAGE, CommandError
from gradwarden_server.cli.reading import Client
from gradwarden_server.transfer.faults import Unreadable

_PAGE = 200

Face = dict[str, Any]


@contextmanager
def fetched(client: Client, run: str, url: str) -> Iterator[History]:
    """A stored run of the service at ``url``; its frames lie in a temporary file while it is open.

    Raises:
        CommandError: the service is away, knows no such run, or has no frames of it any more.
    """
    where = f"/v1/runs/{quote(run, safe='')}"
    face = client.call("GET", where)
    with tempfile.NamedTemporaryFile(prefix="gradwarden-", suffix=".frames") as file:
        try:
            with client.stream(f"{where}/export", {"format": "frames"}) as answer:
                for piece in answer.iter_raw():
                    file.write(piece)
            file.flush()
            yield known(face, Path(file.name), url.rstrip("/"))
        except httpx.HTTPError as error:
            text = f"the service broke off while {run} was read ({error}); run the same again"
            raise CommandError(text, UNREACHABLE) from None
        except Unreadable as error:
            raise CommandError(f"{run}: {error}", USAGE) from None


def stored(client: Client, states: str, query: str, limit: int) -> list[Face]:
    """Runs of a project as the service lists them, newest first, without drills."""
    found: list[Face] = []
    cursor: str | None = None
    while len(found) < limit:
        asked = {"state": states, "q": query, "limit": str(_PAGE)}
        page = client.call("GET", "/v1/runs", params=asked | ({"cursor": cursor} if cursor else {}))
        found += [face for face in page["items"] if face["environment"] != "drill"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return found[:limit]


def raised(client: Client, run: str) -> list[Face]:
    """Every alert that was ever raised of a run."""
    found: list[Face] = []
    cursor: str | None = None
    while True:
        asked = {"run": run, "limit": str(_PAGE)} | ({"cursor": cursor} if cursor else {})
        page = client.call("GET", "/v1/alerts", params=asked)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found
