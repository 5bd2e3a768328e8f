"""``gradwarden alerts``: list them, read one with its timeline, take care of it, look back."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, clean, table

_STATS = (
    "alertname",
    "count",
    "paged",
    "told",
    "acted",
    "flapping",
    "detect",
    "acknowledge",
    "resolve",
)
_NONE = "no alert fired"


def alerts(options: argparse.Namespace) -> int:
    """The words after ``alerts``: an action, its alert, and what somebody writes."""
    words = list(options.words)
    action = words.pop(0) if words else "list"
    if action.isdecimal():
        action, words = "show", [action, *words]
    if action == "list" and not words:
        return _list(options)
    if action == "stats" and not words:
        return _stats(options)
    if action == "show" and len(words) == 1:
        return _show(options, _number(words[0]))
    if action == "ack" and len(words) == 1:
        return acknowledged(options, _number(words[0]), options.note)
    if action == "note" and len(words) >= 2:
        return _note(options, _number(words[0]), " ".join(words[1:]))
    said = " ".join(["alerts", *options.words])
    raise CommandError(f"{said}: say alerts list, show ID, ack ID, note ID TEXT or stats", USAGE)


def ack(options: argparse.Namespace) -> int:
    """``gradwarden ack``."""
    return acknowledged(options, options.id, options.note)


def acknowledged(options: argparse.Namespace, alert: int, note: str) -> int:
    """Say that somebody takes care of an alert."""
    body = {"note": note} if note else {}
    done = Client(options).call("POST", f"/v1/alerts/{alert}/ack", json=body)
    if options.json:
        print(json.dumps(done, indent=2))
    else:
        words = f"{done['alertname']} of {done['labels'].get('run', 'no run')}"
        print(f"alert {done['id']}, {words}: taken care of by {done['acknowledged_by']}")
    return DONE


def _list(options: argparse.Namespace) -> int:
    client = Client(options)
    query = {"state": options.state, "limit": str(options.limit)}
    for name in ("run", "severity", "alertname"):
        if getattr(options, name):
            query[name] = getattr(options, name)
    if options.run:
        query["run"] = client.run(options.run)
    page = client.call("GET", "/v1/alerts", params=query)
    if options.json:
        print(json.dumps(page, indent=2))
        return DONE
    items = [
        {
            **a,
            "run": a["labels"].get("run"),
            "name": a["labels"].get("run_name"),
            "summary": a["annotations"].get("summary"),
        }
        for a in page["items"]
    ]
    columns = ("id", "severity", "state", "alertname", "run", "name", "active_at", "summary")
    table(columns, items, f"no alerts in state {options.state}")
    return DONE


def _show(options: argparse.Namespace, alert: int) -> int:
    client = Client(options)
    found = client.call("GET", f"/v1/alerts/{alert}")
    past = client.call("GET", f"/v1/alerts/{alert}/similar")["items"]
    if options.json:
        print(json.dumps({**found, "similar": past}, indent=2))
        return DONE
    for name, value in _facts(found):
        print(f"{name:<16} {clean(value)}")
    print("\ntimeline")
    for line in found["timeline"]:
        print(f"  {clean((line['at'] or '')[:19])}Z  {clean(_line(line))}")
    if past:
        print("\nearlier ones like it")
        for one in past:
            print(f"  {clean(_past(one))}")
    return DONE


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    said = {name: value for name, value in found.items() if not isinstance(value, dict | list)}
    said |= found["annotations"]
    if found["first_action"]:
        said.pop("first_action", None)  # told below, with its command
    yield from said.items()
    impact, saved, action = (found[n] for n in ("impact", "last_checkpoint", "first_action"))
    if impact:
        hours = f"{impact['gpu_hours']:.3g} {impact['devices']}-hours"
        yield "impact", f"{hours} of {impact['gpus']} since {impact['since'][:19]}Z"
    if saved:
        yield "last_checkpoint", f"step {saved['step']}, {saved['path']}"
    if action:
        yield "do_first", action["text"]
        if action["command"]:
            yield "command", action["command"]


def _line(line: Mapping[str, Any]) -> str:
    said = [line["kind"]]
    if line["kind"] in ("pending", "firing", "resolved"):
        said.append(f"({line['reason']})")
    if line["who"]:
        said.append(line["who"])
    if line["kind"] == "notified":
        said.append(f"of {line['reason']}: {'ok' if line['ok'] else 'failed'}")
    if line["text"]:
        said.append(f": {line['text']}")
    return " ".join(said).replace(" : ", ": ")


def _past(one: Mapping[str, Any]) -> str:
    took = one["seconds_to_resolve"]
    ended = one["state"] if took is None else f"{one['reason']} after {took:.0f} s"
    same = f", same {' and '.join(one['alike'])}" if one["alike"] else ""
    notes = "".join(f"; {n['by']}: {n['text']}" for n in one["notes"])
    return f"{one['id']} of {one['run']}, {(one['fired_at'] or '')[:10]}: {ended}{same}{notes}"


def _note(options: argparse.Namespace, alert: int, text: str) -> int:
    said = Client(options).call("POST", f"/v1/alerts/{alert}/notes", json={"text": text})
    print(json.dumps(said, indent=2) if options.json else f"alert {alert}: noted by {said['by']}")
    return DONE


def _stats(options: argparse.Namespace) -> int:
    told = Client(options).call("GET", "/v1/alerts/stats", params={"days": str(options.days)})
    if options.json:
        print(json.dumps(told, indent=2))
        return DONE
    rows = [
        {
            **one,
            "acted": "-" if one["acted_ratio"] is None else f"{one['acted_ratio']:.0%}",
            **{name: _spread(one[f"to_{name}"]) for name in ("detect", "acknowledge", "resolve")},
        }
        for one in told["items"]
    ]
    table(_STATS, rows, f"{_NONE} in {told['days']:g} days")
    return DONE


def _spread(spread: Mapping[str, Any]) -> str:
    if not spread["of"]:
        return "-"
    return f"{spread['median']:.3g} s (p90 {spread['p90']:.3g} s)"


def _number(text: str) -> int:
    if not text.isdecimal():
        raise CommandError(f"{text!r} is no number of an alert; see: gradwarden alerts", USAGE)
    return int(text)
