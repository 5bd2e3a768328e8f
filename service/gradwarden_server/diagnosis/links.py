"""Where the dashboard shows what a finding speaks of: the page's state is its address."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from gradwarden_server.diagnosis.case import Case

MARGIN = 50
"""Steps shown on both sides of what is pointed at."""


def path(
    case: Case,
    first: int | None = None,
    last: int | None = None,
    layer: str | None = None,
    quantity: str | None = None,
) -> str:
    """The run's page with these steps in view, and a parameter's row selected."""
    asked: dict[str, str | int] = {}
    if quantity is not None and quantity != "l2":
        asked["m"] = quantity
    if first is not None:
        asked["from"] = max(0, first - MARGIN)
        asked["to"] = (first if last is None else last) + MARGIN
    row = None if layer is None else row_of(case, layer)
    if row is not None:
        asked["row"] = row
    if not asked:
        return case.path
    return f"{case.path}{'&' if '?' in case.path else '?'}{urlencode(asked)}"


def row_of(case: Case, layer: str) -> int | None:
    """The row of a parameter, or of the first one of a layer or block."""
    for row, name in enumerate(case.parameters):
        if name == layer:
            return row
    for row, name in enumerate(case.parameters):
        if name.startswith(f"{layer}."):
            return row
    return None


def runbook(name: str) -> str:
    """Where the service shows an alert's runbook."""
    return f"/runbooks/{quote(name)}"
