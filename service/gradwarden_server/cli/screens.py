"""What ``gradwarden top`` draws: the fleet, and one run. Only drawing; data are arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradwarden_server.cli.terminal_heatmap import Heat, folded, line

PHASES = ("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
_MARKS = {
    "crit": ("X", "bold red"),
    "warn": ("^", "bold yellow"),
    "silent": ("?", "bold"),
    "ok": ("o", "dim"),
}
_SEVERITIES = {"page": "bold red", "ticket": "yellow"}
_BARS = "▁▂▃▄▅▆▇█"
_SPARK, _SHORT_SPARK = 32, 10
_NARROW = 110
_NAME = 28
_LABELS = 28
_AROUND_LIST = 8
_AROUND_HEAT = 17
_BESIDE_CURVE = 40  # its name, the newest value, and how many are not finite


def worst_first(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Runs by health; else in the order given, newest first."""
    order = list(_MARKS)
    return sorted(runs, key=lambda run: (order.index(run["health"]), run["status"] != "running"))


def fleet(
    told: Mapping[str, Any], chosen: int, width: int, height: int, foot: Text
) -> RenderableType:
    """All runs, the worst first, and what fires; a narrow terminal shows names, not owners."""
    narrow = width < _NARROW
    bars = _SHORT_SPARK if narrow else _SPARK
    runs, alerts = told["runs"], told["alerts"]
    counts = {health: sum(run["health"] == health for run in runs) for health in _MARKS}
    firing = [alert for alert in alerts if alert["state"] == "firing"]
    pages = sum(alert["severity"] == "page" for alert in firing)
    head = Text.assemble(
        ("" if narrow else "gradwarden   ", "bold"),
        f"{len(runs)} runs: ",
        (f"{counts['crit']} critical", "bold red" if counts["crit"] else "dim"),
        f", {counts['warn']} at risk, {counts['silent']} silent, {counts['ok']} healthy",
        "; firing " if narrow else "   firing: ",
        (f"{pages} page" + "s" * (pages != 1), "bold red" if pages else "dim"),
        f", {len(firing) - pages} other",
        no_wrap=True,
        overflow="ellipsis",
    )
    grid = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    grid.add_column("", no_wrap=True)
    longest = max((len(run["name"] or run["run"]) for run in runs), default=0)
    grid.add_column("run", width=min(longest, max(_NAME, width // 4)) or None, no_wrap=True)
    if not narrow:
        grid.add_column("owner", ratio=1, no_wrap=True)
    grid.add_column("step", justify="right", no_wrap=True)
    grid.add_column("loss", justify="right", no_wrap=True)
    grid.add_column("norm", no_wrap=True, min_width=bars)
    grid.add_column("why", ratio=5, no_wrap=True)
    shown = max(1, height - _AROUND_LIST - min(len(firing), 5))
    first = max(0, min(chosen - shown + 1, len(runs) - shown))
    for at, run in enumerate(runs[first : first + shown], start=first):
        mark, style = _MARKS.get(run["health"], _MARKS["ok"])
        grid.add_row(
            Text(mark, style),
            _text(run["name"] or run["run"]),
            *(() if narrow else (_text(run["owner"] or "-"),)),
            "-" if run["step"] is None else f"{run['step']:,}",
            number(run["loss"]),
            spark(run["spark"][-bars:]),
            _text(run["reason"] or run["status"]),
            style="reverse" if at == chosen else "",
        )
    none = Text("no runs yet; call gradwarden.watch(model, optimizer) in one")
    below = [_alert(alert) for alert in firing[:5]]
    return Group(head, Text(), grid if runs else none, Text(), *below, foot)


def one_run(told: Mapping[str, Any], width: int, height: int, foot: Text) -> RenderableType:
    """One run: its diagnosis, curves, and layers over steps, fewer of them where it is narrow."""
    run, series, diagnosis = told["run"], told["series"], told["diagnosis"]
    mark, style = _MARKS.get(run["health"], _MARKS["ok"])
    at = "-" if run["step"] is None else f"{run['step']:,}"
    head = Text.assemble(
        (f"{mark} {run['verdict'].upper()}", style),
        f"  {_clean(run['name'] or run['run'])}  {run['status']}, step {at}",
        "\n" if width < _NARROW else "  ",
        _clean(diagnosis["headline"]),
    )
    curves = Table.grid(padding=(0, 2))
    for name in ("loss", "grad_norm", "lr"):
        told_of = series["keys"][name]
        counts = [n or 0 for n in told_of["nonfinite"]]
        values = [
            float("nan") if bad else _float(value)
            for value, bad in zip(told_of["last"], counts, strict=True)
        ]
        values, bad = [value for value in values if value is not None], sum(counts)
        if not values:
            continue
        marked = Text(f"{bad} not finite", "#ff2bd6") if bad else Text()
        curves.add_row(
            Text(name, "dim"),
            number(_last(values)),
            spark(_thinned(values, width - _BESIDE_CURVE)),
            marked,
        )
    phases = {name: _last([_float(v) for v in series["keys"][name]["last"]]) for name in PHASES}
    parts = [f"{n.removesuffix('_seconds')} {v:.3g} s" for n, v in phases.items() if v is not None]
    finding = diagnosis["findings"][0] if diagnosis["findings"] else None
    todo = Text()
    if finding is not None and finding["actions"]:
        action = finding["actions"][0]
        todo = Text.assemble(("DO FIRST  ", "bold"), _clean(action["text"]))
        if action["command"]:
            todo.append(f"\n          {_clean(action['command'])}", "bold")
    return Group(
        head,
        Text(),
        curves,
        Text("phases  ", "dim") + Text(", ".join(parts) or "not measured"),
        Text(),
        _layers(told["heat"], [layer["name"] for layer in run["layers"]], width, height),
        Text(),
        todo,
        foot,
    )


def footer(at: float, wrong: str, back: bool, now: float) -> Text:
    """How fresh the data are, and which keys there are."""
    keys = "esc: all runs   q: leave" if back else "j k: choose   enter: open   q: leave"
    if wrong:
        return Text(f"no answer for {now - at:.0f} s; this is what was known then   {keys}", "red")
    return Text(f"updated {now - at:.0f} s ago   {keys}", "dim")


def spark(values: Sequence[Any]) -> Text:
    """A line of bars between the least and the largest value; X where one is not finite."""
    numbers = [_float(value) for value in values]
    finite = [value for value in numbers if value is not None and abs(value) != float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    text = Text(no_wrap=True)
    for value in numbers:
        if value is None or value != value or abs(value) == float("inf"):
            text.append("X", "#ff2bd6")
        else:
            share = (value - low) / (high - low) if high > low else 0.5
            text.append(_BARS[round(share * (len(_BARS) - 1))])
    return text


def number(value: Any) -> str:
    """Three significant digits; a dash where there is none."""
    told = _float(value)
    return "-" if told is None else f"{told:.3g}"


def _layers(heat: Heat | None, names: Sequence[str], width: int, height: int) -> RenderableType:
    if heat is None:
        return Text("no layers yet: the first captured step brings them", "dim")
    columns = max(8, min(_SPARK * 3, width - _LABELS - 1))
    labels, cells = folded(heat, names, max(4, height - _AROUND_HEAT), columns)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_LABELS, no_wrap=True, overflow="ellipsis")
    grid.add_column(no_wrap=True)
    for label, row in zip(labels, cells, strict=True):
        grid.add_row(_text(label), line(row))
    first = heat.step[max(0, len(heat.step) - cells.shape[1])]
    span = f"gradient norm, 1e{heat.low:.1f} to 1e{heat.high:.1f}, from step {first:,}"
    return Group(grid, Text(f"{span}   X: NaN or Inf", "dim"))


def _alert(alert: Mapping[str, Any]) -> Text:
    style = _SEVERITIES.get(alert["severity"], "dim")
    run = alert["labels"].get("run_name") or alert["labels"].get("run", "")
    said = alert["annotations"].get("summary", "")
    head = (f"{alert['severity']:<7}{alert['alertname']}  ", style)
    return Text.assemble(head, _text(f"{run}  {said}"), no_wrap=True, overflow="ellipsis")


def _thinned(values: Sequence[float | None], room: int) -> Sequence[float | None]:
    """The newest of each group, so many as fit beside each other."""
    most = max(8, min(_SPARK * 2, room))
    step = max(1, -(-len(values) // most))
    return values[::-1][::step][::-1]


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _text(text: str) -> Text:
    return Text(_clean(text), no_wrap=True, overflow="ellipsis")


def _clean(text: str) -> str:
    """What strangers wrote, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)
