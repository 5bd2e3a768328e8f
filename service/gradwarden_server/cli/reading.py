"""Commands that read a running service over HTTP: runs and receivers."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradwarden_server.cli.faults import DONE, NO, REFUSED, UNREACHABLE, USAGE, CommandError
from gradwarden_server.notify.routes import GROUP_BY

_TIMEOUT_SECONDS = 30.0
_WIDEST = 10_000
_NO_SUCH = (400, 404)  # a name may be no identifier at all
_LONGEST_QUERY = 200
_NAMED = 10
# Somebody took the call, and ended it in the middle of the question or of the answer.
_BROKEN_OFF = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.DecodingError)


class Client:
    """A service at an address; refusals become texts that say what to do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._url = options.url.rstrip("/")
        self._headers = {}
        token = os.environ.get("GRADWARDEN_TOKEN")
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        if options.project:
            self._headers["Gradwarden-Project"] = options.project

    def call(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of an answer.

        Raises:
            CommandError: nobody answers, or the answer is a refusal.
        """
        answer = self._answer(method, path, **more)
        if answer.is_success:
            return answer.json() if answer.content else None
        raise _refusal(answer)

    def knows(self, run: str) -> bool:
        """Whether there is a run of that identifier.

        Raises:
            CommandError: nobody answers, or the answer is a refusal.
        """
        answer = self._answer("GET", f"/v1/runs/{quote(run, safe='')}")
        if not answer.is_success and answer.status_code not in _NO_SUCH:
            raise _refusal(answer)
        return answer.is_success

    def run(self, said: str) -> str:
        """The identifier of the run that somebody means: by that, or by its name where one has it.

        What nobody knows comes back as it was said, for the service to refuse.

        Raises:
            CommandError: several runs have the name; or nobody answers, or the answer is a refusal.
        """
        if self.knows(said):
            return said
        named: list[str] = []
        query: dict[str, str] = {"q": said[:_LONGEST_QUERY], "limit": "1000"}
        while True:
            page = self.call("GET", "/v1/runs", params=query)
            named += [run["run"] for run in page["items"] if run["name"] == said]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        if len(named) > 1:
            raise CommandError(
                f"{len(named)} runs are called {said!r}; name one by its identifier: "
                f"{', '.join(named[:_NAMED])}{', ...' if len(named) > _NAMED else ''}",
                USAGE,
            )
        return named[0] if named else said

    @contextmanager
    def stream(self, path: str, params: Mapping[str, Any]) -> Iterator[httpx.Response]:
        """An answer that is read as it comes; what breaks on the way stays an httpx.HTTPError.

        Raises:
            CommandError: nobody answers, or the answer is a refusal.
        """
        with ExitStack() as stack:
            try:
                more: dict[str, Any] = {"headers": self._headers, "timeout": _TIMEOUT_SECONDS}
                answer = stack.enter_context(
                    httpx.stream("GET", self._url + path, params=dict(params), **more)
                )
                if not answer.is_success:
                    answer.read()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._silence(error) from None
            if not answer.is_success:
                raise _refusal(answer)
            yield answer

    def _answer(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return httpx.request(
                method,
                self._url + path,
                headers=self._headers,
                timeout=_TIMEOUT_SECONDS,
                **more,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._silence(error) from None

    def _silence(self, error: Exception) -> CommandError:
        if isinstance(error, _BROKEN_OFF):
            return CommandError(
                f"the service at {self._url} broke off ({error}); run the same again", UNREACHABLE
            )
        return CommandError(
            f"no service answers at {self._url} ({error}); start one with: gradwarden serve, "
            "or name another with --url",
            UNREACHABLE,
        )


def runs(options: argparse.Namespace) -> int:
    """List runs, or show one."""
    client = Client(options)
    if options.run:
        path = f"/v1/runs/{quote(client.run(options.run), safe='')}"
        return _show(client.call("GET", path), options.json)
    query = {"state": options.state, "q": options.query, "limit": str(options.limit)}
    page = client.call("GET", "/v1/runs", params=query)
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    columns = ("run", "name", "status", "verdict", "step", "loss", "last_seen_at", "reason")
    table(columns, page["items"], "no runs yet; call gradwarden.watch(model, optimizer) in one")
    return DONE


def receivers(options: argparse.Namespace) -> int:
    """List who is told."""
    page = Client(options).call("GET", "/v1/receivers")
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    items = [{**r, "severities": ", ".join(r["severities"])} for r in page["items"]]
    missing = "nobody is told; start the service with --receivers FILE"
    table(("name", "type", "severities", "links"), items, missing)
    return DONE


def test_receiver(options: argparse.Namespace) -> int:
    """Send a test message; exit code 1 when it was not taken."""
    outcome = Client(options).call("POST", f"/v1/receivers/{options.name}/test")
    if options.json:
        print(json.dumps(outcome, indent=2))
    else:
        verb = "took the test message" if outcome["ok"] else "did not take the test message"
        print(f"{options.name} {verb} ({outcome['latency_ms']:g} ms): {outcome['detail']}")
    return DONE if outcome["ok"] else NO


def routes(options: argparse.Namespace) -> int:
    """List routes, or those that alerts with some labels take."""
    asked = {"label": options.label} if options.label else {}
    page = Client(options).call("GET", "/v1/routes", params=asked)
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    items = [
        {
            "receiver": route["receiver"],
            "matchers": ", ".join(route["matchers"]) or "everything",
            "group_by": _grouped(route["group_by"]),
            "escalates_to": (route["escalate"] or {}).get("receiver"),
            "goes_on": "yes" if route["goes_on"] else "no",
        }
        for route in page["items"]
    ]
    columns = ("receiver", "matchers", "group_by", "escalates_to", "goes_on")
    table(columns, items, "nobody is told of such alerts")
    return DONE if items else NO


def _grouped(by: Sequence[str] | None) -> str:
    """By which labels a route groups; without a word of its own, by the severity's."""
    if by is not None:
        return ", ".join(by) or "nothing but the project"
    return "; ".join(f"{severity}s: {', '.join(names)}" for severity, names in GROUP_BY.items())


def dead_letters(options: argparse.Namespace) -> int:
    """List messages that were given up, or send one once more."""
    client = Client(options)
    if options.retry is not None:
        again = client.call("POST", f"/v1/deliveries/{options.retry}/retry")
        print(json.dumps(again, indent=2) if options.json else f"message {again['id']} is tried")
        return DONE
    page = client.call("GET", "/v1/deliveries", params={"state": "dead", "limit": "500"})
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    columns = ("id", "receiver", "severity", "status", "summary", "created_at", "attempts")
    table((*columns, "detail"), page["items"], "no message was given up")
    return DONE


def rotate_links(options: argparse.Namespace) -> int:
    """Make all links that were sent worthless."""
    Client(options).call("POST", "/v1/links/rotate")
    print("links that were sent so far do nothing any more; new messages carry new ones")
    return DONE


def table(columns: Sequence[str], items: Sequence[Mapping[str, Any]], none: str) -> None:
    """Print rows for people, one line each: names can be copied whole, whatever the width.

    What strangers wrote is shown as text, never as markup.
    """
    if not items:
        print(none)
        return
    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for item in items:
        cells = {n: _to_seconds(v) if n.endswith("_at") else v for n, v in item.items()}
        grid.add_row(*(Text(clean(cells.get(name))) for name in columns))
    Console(width=_WIDEST).print(grid, soft_wrap=True)


def _show(item: Mapping[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(item, indent=2))
        return DONE
    facts = {k: v for k, v in item.items() if not isinstance(v, (dict, list)) or k == "annotations"}
    nested = facts.pop("annotations", {})
    for name, value in [*facts.items(), *nested.items()]:
        print(f"{name:<16} {clean(value)}")
    return DONE


def _to_seconds(moment: str | None) -> str | None:
    return None if moment is None else f"{moment[:19]}Z"


def clean(value: object) -> str:
    """A value for a terminal, without what it would obey."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _refusal(answer: httpx.Response) -> CommandError:
    try:
        problem = answer.json()
        text = f"{problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        text = f"{answer.url} answered {answer.status_code}; is it a gradwarden service?"
    if answer.status_code in (401, 403):
        return CommandError(f"{text}\nset GRADWARDEN_TOKEN to a token that may", REFUSED)
    return CommandError(text, UNREACHABLE if answer.status_code >= 500 else USAGE)
