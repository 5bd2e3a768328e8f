"""A diagnosis for people, in 80 columns: the story first, then why, then what to do.

It is told from its JSON, so that a service's answer and a spool's read the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Told = Mapping[str, Any]

SICK = ("critical", "at risk")
"""The verdicts of runs in which something was found that did not heal."""
_STYLES = {"critical": "bold red", "at risk": "bold yellow", "page": "red", "ticket": "yellow"}
_WIDTH = 80
_LABEL = 10
_GAPS = 3
_NOTES = 5
_SHA = 12
_LONGEST = 400


def tell(diagnosis: Told, url: str = "") -> None:
    """Print it; a command stands alone on its line, unbroken, to be copied.

    ``url`` is the service that shows the run's page; without one no page is named.
    """
    narrow = sys.stdout.isatty()
    console = Console(width=None if narrow else _WIDTH, highlight=False)
    if console.width > _WIDTH:
        console.width = _WIDTH
    at = "" if diagnosis["step"] is None else f", step {diagnosis['step']:,}"
    name = diagnosis["name"] if diagnosis["name"] != diagnosis["run"] else ""
    head = Text()
    head.append(diagnosis["verdict"].upper(), _STYLES.get(diagnosis["verdict"], "bold green"))
    head.append(_clean(f"  {diagnosis['run']} {name}".rstrip() + f" ({diagnosis['status']}{at})"))
    console.print(head)
    roots = {f["symptom"].lower() for f in diagnosis["findings"]}
    if diagnosis["headline"].lower() not in roots:
        console.print(_text(diagnosis["headline"]))
    findings = {finding["id"]: finding for finding in diagnosis["findings"]}
    alone = []
    number = 0
    for story in diagnosis["stories"]:
        told = [findings[id_] for id_ in story["findings"]]
        if len(told) == 1 and told[0]["severity"] == "note":
            alone.append(told[0])
            continue
        number += 1
        _story(console, number, told, url)
    if alone:
        console.print()
        rows = [("notes", f"{f['name']}: {f['symptom']}") for f in alone[:_NOTES]]
        if len(alone) > _NOTES:
            rows.append(("", f"and {len(alone) - _NOTES} more"))
        console.print(_rows(rows))
    console.print()
    console.print(_rows(list(_footing(diagnosis))))


def _story(console: Console, number: int, told: Sequence[Told], url: str) -> None:
    root, *rest = told
    console.print()
    title = Text(f"{number} ", "bold")
    title.append(_clean(root["symptom"]), "bold")
    console.print(title)
    rows: list[tuple[str, str]] = [("where", where) for where in _where(root)]
    rows.append(("cause", root["cause"]))
    rows.append(("sure", f"{root['confidence']}: {root['why']}"))
    rows += [("seen", f"{item['text']}") for item in root["evidence"]]
    rows += [("then", _followed(item)) for item in rest]
    rows += [("ruled out", text) for text in _together(root["ruled_out"])]
    rows += [("open", text) for text in _together(root["not_ruled_out"])]
    console.print(_rows(rows))
    if url and root["evidence"]:
        _copied(console, f"  look at    {url}{root['evidence'][0]['path']}")
    for at, action in enumerate(root["actions"]):
        console.print(_rows([("DO FIRST" if at == 0 else "THEN", action["text"])]))
        if action["command"]:
            _copied(console, " " * (_LABEL + 4) + action["command"], "bold")
        rows = [("risk", action["risk"])]
        if action["loses"]:
            rows.append(("loses", action["loses"]))
        console.print(_rows(rows))


def _copied(console: Console, line: str, style: str = "") -> None:
    """A line to be copied: unbroken, however narrow the terminal is."""
    console.print(Text(_clean(line), style), soft_wrap=True, crop=False, overflow="ignore")


def _where(root: Told) -> Iterator[str]:
    parts = [f"attempt {root['attempt']}"]
    if root["step"] is not None:
        parts.append(f"from step {root['step']:,}")
    parts += [f"{name} {root[name]}" for name in ("layer", "rank", "node") if root[name]]
    parts.append(root["state"] if root["kind"] == "alert" else "a change in the run")
    yield ", ".join(parts)


def _together(items: Sequence[Told]) -> list[str]:
    """One line for all that the same thing is said of."""
    by: dict[str, list[str]] = {}
    for item in items:
        by.setdefault(item["by"], []).append(item["what"])
    return [f"{', '.join(what)}: {why}" for why, what in by.items()]


def _followed(item: Told) -> str:
    severity = item["severity"] or ""
    return f"{item['name']} ({severity}, {item['confidence']}): {item['symptom']}"


def _footing(diagnosis: Told) -> Iterator[tuple[str, str]]:
    good = diagnosis["last_good_checkpoint"]
    if good is not None:
        text = f"{good['path']} (step {good['step']:,}, sha256 {good['sha256'][:_SHA]})"
        yield "last good", f"{text}: {diagnosis['checkpoint_note']}"
    else:
        yield "last good", diagnosis["checkpoint_note"]
    watched = diagnosis["coverage"]
    yield "watched", f"{watched['armed']} of {watched['of']} detectors armed"
    gaps = watched["gaps"]
    for gap in gaps[:_GAPS]:
        yield "not yet", f"{gap['what']}: {gap['by']}"
    if len(gaps) > _GAPS:
        yield "", f"and {len(gaps) - _GAPS} more"


def _rows(rows: Sequence[tuple[str, str]]) -> Table:
    """Labels on the left, each once; texts wrapped beside them."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_LABEL + 2)
    grid.add_column(overflow="fold")
    before = None
    for label, text in rows:
        style = "bold" if label.isupper() else "dim"
        shown = Text("" if label == before else f"  {label}", style)
        grid.add_row(shown, _text(text))
        before = label
    return grid


def _text(text: str) -> Text:
    return Text(_clean(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."))


def _clean(text: str) -> str:
    """What strangers wrote, on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
