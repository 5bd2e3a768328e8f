"""The report of a week: what broke, what it cost, how fast people knew, and what is watched. Pure.

One set of lines, told as Markdown, as HTML for mail and browsers, and as CSV for sheets.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from gradwarden_server.slo.budget import told_left


@dataclass(frozen=True, slots=True)
class Times:
    """Of how many incidents a time is known; its median and 90th percentile in seconds."""

    of: int
    median: float | None
    p90: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """GPU-hours by one cause, owner or run; ``cost`` None where no price is known."""

    name: str
    gpu_hours: float
    cost: float | None
    incidents: int = 0


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model took until it converged; the last two None where nothing did."""

    model: str
    runs: int
    converged: int
    gpu_hours: float
    cost: float | None

    @property
    def hours_each(self) -> float | None:
        """GPU-hours of a converged model, failed tries included."""
        return self.gpu_hours / self.converged if self.converged else None

    @property
    def cost_each(self) -> float | None:
        """Cost of a converged model, failed tries included."""
        return self.cost / self.converged if self.converged and self.cost is not None else None


@dataclass(frozen=True, slots=True)
class Objective:
    """How an objective stands; ``left`` None with too little data."""

    name: str
    left: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Report:
    """One period of one project. Incidents are pages and tickets that fired within it."""

    project: str
    since_ns: int
    until_ns: int
    incidents: int
    incidents_before: int
    pages: int
    tickets: int
    pages_acted: int
    detect: Times
    acknowledge: Times
    resolve: Times
    currency: str
    wasted: Spent
    held: Spent
    causes: Sequence[Spent]
    owners: Sequence[Spent]
    models: Sequence[ModelCost]
    runs: int
    runs_watched: int
    runs_partly: int
    objectives: Sequence[Objective]

    @property
    def title(self) -> str:
        """The period in words."""
        return f"Training report of {self.project}: {_day(self.since_ns)} to {_day(self.until_ns)}"

    @property
    def summary(self) -> str:
        """The report in one sentence."""
        cost = "" if self.wasted.cost is None else f" ({self.wasted.cost:,.2f} {self.currency})"
        return (
            f"{self.incidents} incidents (before: {self.incidents_before}), "
            f"{self.wasted.gpu_hours:,.1f} GPU-hours wasted{cost}, "
            f"{self.pages_acted} of {self.pages} pages acted on"
        )


Line = tuple[str, ...]

_FORMULAS = ("=", "+", "@", "-", "\t", "\r", "\n")
"""What a sheet takes for the beginning of a formula, blanks that it leaves out included."""


def week_before(now_ns: int, zone: str = "UTC") -> tuple[int, int]:
    """Monday to Monday of the last whole week, in nanoseconds."""
    now = datetime.fromtimestamp(now_ns // 1_000_000_000, ZoneInfo(zone))
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = day - timedelta(days=day.weekday())
    begin = monday - timedelta(days=7)
    return round(begin.timestamp()) * 1_000_000_000, round(monday.timestamp()) * 1_000_000_000


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {_plain(report.title)}", f"{_plain(report.summary)}."]
    for title, head, lines in _tables(report):
        rows = [_row(head), _row(["---"] * len(head)), *map(_row, lines)]
        parts.append("\n".join([f"## {title}", "", *rows]))
    return "\n\n".join(parts) + "\n"


def page(report: Report) -> str:
    """The report as one HTML page without scripts, for mail and browsers."""
    parts = [
        f"<h1>{html.escape(report.title)}</h1>",
        f"<p>{html.escape(report.summary)}.</p>",
    ]
    for title, head, lines in _tables(report):
        cells = "".join(f"<th>{html.escape(one)}</th>" for one in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in line) + "</tr>"
            for line in lines
        )
        table = f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
        parts.append(f"<h2>{html.escape(title)}</h2>{table}")
    name = html.escape(report.title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def sheet(report: Report) -> str:
    """The report as CSV: section, name, measure, value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("section", "name", "measure", "value"))
    for title, head, lines in _tables(report):
        for line in lines:
            for measure, value in zip(head[1:], line[1:], strict=True):
                writer.writerow([_cell(one) for one in (title, line[0], measure, value)])
    return out.getvalue()


def _tables(report: Report) -> Iterable[tuple[str, Line, list[Line]]]:
    acted = f"{report.pages_acted} of {report.pages}"
    share = report.wasted.gpu_hours / report.held.gpu_hours if report.held.gpu_hours else 0.0
    yield (
        "At a glance",
        ("what", "value"),
        [
            ("incidents", str(report.incidents)),
            ("incidents the period before", str(report.incidents_before)),
            ("pages", str(report.pages)),
            ("tickets", str(report.tickets)),
            ("pages acted on", acted),
            ("GPU-hours held", f"{report.held.gpu_hours:.1f}"),
            ("GPU-hours wasted", f"{report.wasted.gpu_hours:.1f}"),
            ("share wasted", f"{share * 100:.1f} %"),
            ("cost of waste", _money(report.wasted.cost, report.currency)),
        ],
    )
    yield (
        "Times",
        ("time", "incidents", "median", "90th percentile"),
        [
            (name, str(t.of), _span(t.median), _span(t.p90))
            for name, t in (
                ("to detect", report.detect),
                ("to acknowledge", report.acknowledge),
                ("to resolve", report.resolve),
            )
        ],
    )
    for title, first, spent in (
        ("Top causes", "cause", report.causes),
        ("Wasted by owner", "owner", report.owners),
    ):
        if spent:
            head = (first, "incidents", "GPU-hours", "cost")
            lines: list[Line] = [
                (s.name, str(s.incidents), f"{s.gpu_hours:.1f}", _money(s.cost, report.currency))
                for s in spent
            ]
            yield title, head, lines
    if report.models:
        columns = ("model", "runs", "converged", "GPU-hours", "per converged model")
        yield "Models", columns, [_model(one, report.currency) for one in report.models]
    if report.objectives:
        lines = [
            (o.name, "-" if o.left is None else told_left(o.left), o.sentence)
            for o in report.objectives
        ]
        yield "Objectives", ("objective", "budget left", "in words"), lines
    yield (
        "Coverage",
        ("what", "value"),
        [
            ("runs", str(report.runs)),
            ("runs with 80 % of detectors armed", str(report.runs_watched)),
            ("runs partly watched", str(report.runs_partly)),
        ],
    )


def _model(model: ModelCost, currency: str) -> Line:
    each = "-"
    if model.cost_each is not None:
        each = _money(model.cost_each, currency)
    elif model.hours_each is not None:
        each = f"{model.hours_each:.1f} GPU-hours"
    hours = f"{model.gpu_hours:.1f}"
    return model.model or "-", str(model.runs), str(model.converged), hours, each


def _money(value: float | None, currency: str) -> str:
    return "-" if value is None else f"{value:.2f} {currency}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Names of strangers as text: nothing in them ends a cell or begins markup."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)


def _cell(text: str) -> str:
    """No cell begins what a sheet would take for a formula."""
    return f"'{text}" if text[:1] in _FORMULAS and text != "-" else text


def _day(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m-%d}"
