"""Objectives as Prometheus's rules: what they record, and when somebody is told.

What comes out is the content of a rule file, so that the service, promtool and any Prometheus
read the same. Recorded names and labels are Sloth's (``slo:sli_error:ratio_rate5m``), so that its
dashboards find them.

Windows below six hours are read from the counters themselves. Longer ones add up what was recorded
each minute of the last five: a month of a thousand runs is then one series, and every event counts
five times, so that none between two counters' points is left out and a window ends with the minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradwarden_server.slo import windows
from gradwarden_server.slo.objective import WINDOW, Objective

ALERT = "SloBudgetBurn"
TILE_S = 300
TILED_FROM_S = 6 * windows.HOUR
_TILE_EVERY_S = 60
# What an alert reads must be younger than the look-back of five minutes; the period's own numbers
# move slowly, and cost the most.
_PERIOD_EVERY = "4m"
_PERIOD_EVENTS = "slo:period_events:total"
_OF_A_RUN = "project, environment"

Group = dict[str, Any]
Rule = dict[str, Any]


def groups(objective: Objective, url: str = "") -> list[Group]:
    """The rule groups of an objective, in the order in which they build on each other.

    Args:
        objective: What is promised.
        url: Where runbooks are served, for the alerts' links.
    """
    if objective.count is not None:
        return [
            _group(objective, "count", f"{objective.interval_s}s", [_count_alert(objective, url)])
        ]
    held = windows.all_windows(objective.pairs)
    short = [rule for w in held if w < TILED_FROM_S for rule in _window(objective, w)]
    long = [rule for w in held if w >= TILED_FROM_S for rule in _window(objective, w)]
    alerts = list(_burn_alerts(objective, url))
    made = []
    if objective.slice_s:
        made.append(
            _group(objective, "slices", windows.words(objective.slice_s), _slices(objective))
        )
    tiles = [*_tiles(objective), *long]
    if not short:
        tiles += alerts
    made.append(_group(objective, "tiles", windows.words(_TILE_EVERY_S), tiles))
    if short:
        made.append(_group(objective, "short", f"{objective.interval_s}s", [*short, *alerts]))
    made.append(_group(objective, "period", _PERIOD_EVERY, list(_period(objective))))
    return made


def document(objectives: Sequence[Objective], url: str = "") -> dict[str, Any]:
    """A rule file of Prometheus with all of them; see :func:`groups`."""
    return {"groups": [group for objective in objectives for group in groups(objective, url)]}


def identity(objective: Objective) -> dict[str, str]:
    """The labels of all that is recorded of an objective."""
    return {
        "sloth_id": objective.id,
        "sloth_service": objective.service,
        "sloth_slo": objective.name,
    }


def total(objective: Objective, window_s: int) -> str:
    """What happened within a window, as PromQL over the counters; time slices over slices."""
    if objective.slice_s:
        every = windows.words(objective.slice_s)
        over = f"{_selector('slo:sli_error:slice', objective)}[{windows.words(window_s)}:{every}]"
        return f"count_over_time({over})"
    return _within(objective.total, window_s)


def bad(objective: Objective, window_s: int) -> str:
    """What of :func:`total` was bad."""
    if objective.slice_s:
        every = windows.words(objective.slice_s)
        over = f"{_selector('slo:sli_error:slice', objective)}[{windows.words(window_s)}:{every}]"
        return f"sum_over_time({over})"
    return _bad(objective, window_s)


def slice_share(objective: Objective) -> str:
    """The share of bad events of the slice that ended; of plain slices whether it is too many."""
    events = _within(objective.total, objective.slice_s)
    share = f"({_bad(objective, objective.slice_s)}) / (({events}) > 0)"
    if objective.budgeting == "timeslices":
        share = f"({share}) > bool {_number(1 - objective.slice_target)}"
    return share


def bad_in(objective: Objective, window: str) -> str:
    """The bad events within a window, as PromQL; the window may be a placeholder."""
    events = _placed(objective.total, window)
    if objective.bad:  # no counter of bad ones says that there were none
        return f"({_placed(objective.bad, window)}) or 0 * ({events})"
    good = _placed(objective.good, window)
    return f"({events}) - (({good}) or 0 * ({events}))"


def tiled(objective: Objective, kind: str, window_s: int) -> str:
    """``total`` or ``bad`` within a window, from recorded tiles, which lie a minute apart."""
    selector = _selector(f"slo:sli_{kind}:increase5m", objective)
    return f"sum_over_time({selector}[{windows.words(window_s)}]) / {TILE_S // _TILE_EVERY_S}"


def ratio_name(window_s: int) -> str:
    """Under which name the share of bad events of a window is recorded."""
    return f"slo:sli_error:ratio_rate{windows.words(window_s)}"


def total_name(window_s: int) -> str:
    """Under which name the number of events of a window is recorded."""
    return f"slo:sli_total:increase{windows.words(window_s)}"


def over(objective: Objective) -> str:
    """PromQL that holds while more are bad than a count allows; its value is how many."""
    count = objective.count
    assert count is not None
    return f"{counted_bad(objective)} > {count.bad}"


def counted_bad(objective: Objective) -> str:
    """How many of the last so many were bad, where any was."""
    return f"count by ({_OF_A_RUN}) ({bad_of_last(objective)})"


def bad_of_last(objective: Objective) -> str:
    """The bad ones of the last so many, one by one."""
    spoilt = _within(objective.bad, round(objective.period.days * windows.DAY))
    return f"{_last(objective)} and on (project, run) ({spoilt})"


def counted_total(objective: Objective) -> str:
    """How many of the last so many there were."""
    return f"count by ({_OF_A_RUN}) ({_last(objective)})"


def _last(objective: Objective) -> str:
    assert objective.count is not None
    period = round(objective.period.days * windows.DAY)
    held = _within(objective.total, period)
    return f"topk by ({_OF_A_RUN}) ({objective.count.of}, {held})"


def _tiles(objective: Objective) -> list[Rule]:
    rules: list[Rule] = []
    for kind, expression in (("total", total), ("bad", bad)):
        name = f"slo:sli_{kind}:increase5m"
        rules.append(_record(objective, name, expression(objective, TILE_S)))
    return rules


def _slices(objective: Objective) -> list[Rule]:
    return [_record(objective, "slo:sli_error:slice", slice_share(objective))]


def _window(objective: Objective, window_s: int) -> Iterator[Rule]:
    window = {"sloth_window": windows.words(window_s)}
    if window_s >= TILED_FROM_S:
        events, spoilt = tiled(objective, "total", window_s), tiled(objective, "bad", window_s)
    else:
        events, spoilt = total(objective, window_s), bad(objective, window_s)
    share = f"({spoilt}) / (({events}) > 0)"
    yield _record(objective, ratio_name(window_s), share, window)
    if any(pair.long_s == window_s for pair in objective.pairs) and window_s != TILE_S:
        yield _record(objective, total_name(window_s), events, window)


def _period(objective: Objective) -> Iterator[Rule]:
    """What Sloth's dashboards read besides: the period as a whole, and the objective itself."""
    period_s = round(objective.period.days * windows.DAY)
    window = {"sloth_window": windows.words(period_s)}
    spoilt, events = tiled(objective, "bad", period_s), tiled(objective, "total", period_s)
    share = f"({spoilt}) / (({events}) > 0)"
    yield _record(objective, ratio_name(period_s), share, window)
    yield _record(objective, _PERIOD_EVENTS, events)
    yield _record(objective, "slo:objective:ratio", f"vector({_number(objective.target)})")
    yield _record(objective, "slo:error_budget:ratio", f"vector({_number(objective.allowed)})")
    yield _record(objective, "slo:time_period:days", f"vector({objective.period.days:g})")
    ratio = _selector(ratio_name(period_s), objective, "sloth_window")
    allowed = _number(objective.allowed)
    yield _record(objective, "slo:period_burn_rate:ratio", f"{ratio} / {allowed}")
    left = f"1 - {_selector('slo:period_burn_rate:ratio', objective)}"
    yield _record(objective, "slo:period_error_budget_remaining:ratio", left)
    shortest = min(windows.all_windows(objective.pairs), default=TILE_S)
    now = _selector(ratio_name(shortest), objective, "sloth_window")
    yield _record(objective, "slo:current_burn_rate:ratio", f"{now} / {allowed}")
    info = {"sloth_mode": "gradwarden", "sloth_objective": f"{objective.target * 100:g}"}
    yield _record(objective, "sloth_slo_info", "vector(1)", info)


def _burn_alerts(objective: Objective, url: str) -> Iterator[Rule]:
    """Pages, in the environment that pages where one is named and as tickets elsewhere; tickets."""
    told = {urgency: _burning(objective, urgency) for urgency in ("page", "ticket")}
    where = objective.page_environment
    if told["page"] and where:
        here = _burning(objective, "page", f', environment="{where}"')
        elsewhere = _burning(objective, "page", f', environment!="{where}"')
        yield _burn_alert(objective, "page", here, "fast", url)
        yield _burn_alert(objective, "ticket", elsewhere, "fast", url)
    elif told["page"]:
        yield _burn_alert(objective, "page", told["page"], "fast", url)
    if told["ticket"]:
        yield _burn_alert(objective, "ticket", told["ticket"], "slowly", url)


def _burning(objective: Objective, urgency: str, where: str = "") -> str:
    """PromQL that holds while any pair of that urgency is over; empty where there is none."""
    parts = []
    for pair in objective.pairs:
        if pair.urgency != urgency:
            continue
        limit = f"({_number(pair.factor)} * {_number(objective.allowed)})"
        held = [
            f"{_series(ratio_name(pair.long_s), objective, where)} > {limit}",
            f"{_series(ratio_name(pair.short_s), objective, where)} > {limit}",
        ]
        if objective.min_events > 0:
            events = _series(total_name(pair.long_s), objective, where)
            held.append(f"{events} >= {_number(objective.min_events)}")
        parts.append(" and ".join(f"max without (sloth_window) ({one})" for one in held))
    told = " or ".join(f"({part})" for part in parts)
    if told and objective.min_budget > 0:
        # A floor over weeks may be old; a late evaluation of it must not resolve what burns.
        events = f"last_over_time({_series(_PERIOD_EVENTS, objective, where)}[15m])"
        least = f"{events} >= {_number(objective.least)}"
        told = f"({told}) and {least}"
    return told


def _burn_alert(objective: Objective, urgency: str, expression: str, speed: str, url: str) -> Rule:
    return {
        "alert": ALERT,
        "expr": expression,
        "labels": _alert_labels(objective, urgency) | {"burn": speed},
        "annotations": {
            "summary": f"{objective.name}: the error budget burns {speed}",
            "description": (
                "{{ $value | humanizePercentage }} of "
                f"{objective.unit} are bad, {_percent(objective.allowed)} are allowed"
            ),
            **_links(url),
        },
    }


def _count_alert(objective: Objective, url: str) -> Rule:
    count = objective.count
    assert count is not None
    return {
        "alert": ALERT,
        "expr": over(objective),
        "labels": _alert_labels(objective, "ticket") | identity(objective) | {"burn": "count"},
        "annotations": {
            "summary": f"{objective.name}: the error budget is gone",
            "description": (
                "{{ $value }} of the last "
                f"{count.of} {objective.unit} were bad, {count.bad} are allowed"
            ),
            **_links(url),
        },
    }


def _alert_labels(objective: Objective, urgency: str) -> dict[str, str]:
    return {**objective.labels, "severity": urgency, "slo": objective.id}


def _links(url: str) -> dict[str, str]:
    return {"runbook_url": f"{url}/runbooks/{ALERT}"} if url else {}


def _bad(objective: Objective, window_s: int) -> str:
    return bad_in(objective, windows.words(window_s))


def _within(query: str, window_s: int) -> str:
    return _placed(query, windows.words(window_s))


def _placed(query: str, window: str) -> str:
    return " ".join(query.replace(WINDOW, window).split())


def _record(
    objective: Objective, name: str, expression: str, more: Mapping[str, str] | None = None
) -> Rule:
    return {"record": name, "expr": expression, "labels": identity(objective) | dict(more or {})}


def _selector(name: str, objective: Objective, *gone: str) -> str:
    """A recorded series of the objective, without its name and these labels."""
    series = _series(name, objective)
    return f"sum without ({', '.join(gone)}) ({series})" if gone else series


def _series(name: str, objective: Objective, where: str = "") -> str:
    return f'{name}{{sloth_id="{objective.id}"{where}}}'


def _group(objective: Objective, part: str, interval: str, rules: list[Rule]) -> Group:
    return {"name": f"slo-{objective.id}-{part}", "interval": interval, "rules": rules}


def _number(value: float) -> str:
    return f"{round(value, 12):.12g}"


def _percent(share: float) -> str:
    return f"{share * 100:.6g} %"
