"""What OpenSLO cannot say of an objective: annotations that begin with ``gradwarden.dev/``."""

from __future__ import annotations

import re
from typing import Any

from gradwarden_server.slo import windows
from gradwarden_server.slo.document import Document
from gradwarden_server.slo.objective import Count, Period

PREFIX = "gradwarden.dev/"

_KNOWN = (
    "windows",
    "count",
    "min-events",
    "min-budget",
    "page-environment",
    "interval",
    "on",
    "unit",
)
_COUNT = re.compile(r"(\d{1,4}) of (\d{1,5})\Z")


def annotated(document: Document, period: Period | None, target: float) -> dict[str, Any]:
    """What the annotations say, as arguments of an Objective."""
    held = {
        key.removeprefix(PREFIX): value
        for key, value in document.annotations.items()
        if key.startswith(PREFIX) and isinstance(value, str)
    }
    where = f"metadata.annotations.{PREFIX}"
    for key in sorted(set(held) - set(_KNOWN)):
        document.wrong(where + key, f"is not known; known are {', '.join(_KNOWN)}")
    told: dict[str, Any] = {}
    days = 30.0 if period is None else period.days
    count = held.get("count")
    if count is not None:
        found = _COUNT.match(count)
        if found is None or int(found[1]) >= int(found[2]):
            document.wrong(where + "count", f"is {count!r}; write for example 2 of 50")
        else:
            told["count"] = Count(int(found[1]), int(found[2]))
        if "windows" in held:
            document.wrong(where + "windows", "what is counted has no burn rate; leave it out")
    else:
        told["pairs"] = _pairs(document, held.get("windows", "workbook"), where, days)
    least = held.get("min-events")
    if least is not None and not least.isdecimal():
        document.wrong(where + "min-events", f"is {least!r}; a whole number, 0 for none")
    elif 0 < target < 1:
        told["min_events"] = (
            float(least) if least is not None else float(round(1 / (1 - target), 6))
        )
    budget = held.get("min-budget", "0")
    if not budget.isdecimal():
        document.wrong(where + "min-budget", f"is {budget!r}; a whole number, 0 for none")
    elif count is not None and "min-budget" in held:
        document.wrong(where + "min-budget", "what is counted has no burn rate; leave it out")
    else:
        told["min_budget"] = float(budget)
    if "interval" in held:
        try:
            told["interval_s"] = windows.seconds(held["interval"])
        except ValueError as error:
            document.wrong(where + "interval", str(error))
    if held.get("on", "true") not in ("true", "false"):
        document.wrong(where + "on", f"is {held['on']!r}; true or false")
    told["on"] = held.get("on", "true") == "true"
    told["page_environment"] = held.get("page-environment", "")
    told["unit"] = held.get("unit", "events")
    return told


def _pairs(document: Document, text: str, where: str, days: float) -> tuple[windows.Pair, ...]:
    named = windows.preset(text, days)
    if named is not None:
        return named
    try:
        pairs = windows.override(text)
    except ValueError as error:
        document.wrong(where + "windows", f"workbook, training, or a list: {error}")
        return ()
    if any(pair.long_s > days * windows.DAY for pair in pairs):
        document.wrong(
            where + "windows", f"a window is longer than the {days:g} days of the budget"
        )
    return pairs
