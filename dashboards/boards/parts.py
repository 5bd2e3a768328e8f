"""What the dashboards are put together from: panels of one look over one data source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="gradwarden")
COLUMNS = 24
"""Of Grafana's grid."""

Builder = Any
"""Of a panel, a query or a variable; each kind has a class of its own."""


def query(expression: str, legend: str = "__auto") -> Builder:
    """A query over the time shown."""
    asked = prometheus.Dataquery().expr(expression).legend_format(legend)
    return asked.range().datasource(SOURCE)


def newest(expression: str) -> Builder:
    """A query at the end of the time shown."""
    asked = prometheus.Dataquery().expr(expression).datasource(SOURCE)
    return asked.instant().format(PromQueryFormat.TABLE)


def number(
    title: str, why: str, expression: str, unit: str = "short", bad: float | None = None
) -> Builder:
    """One number; red from ``bad`` on."""
    steps = [Threshold(value=None, color="text")]
    if bad is not None:
        steps.append(Threshold(value=bad, color="red"))
    limits = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    reduced = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = stat.Panel().title(title).description(why).datasource(SOURCE).unit(unit)
    panel.thresholds(limits).graph_mode(BigValueGraphMode.NONE).reduce_options(reduced)
    return panel.with_target(newest(expression)).height(4).span(4)


def curves(
    title: str,
    why: str,
    targets: Sequence[Builder],
    unit: str = "short",
    *,
    log: bool = False,
    bars: bool = False,
) -> Builder:
    """Lines over time, half a row wide; ``log`` as gradients are looked at."""
    legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    hover = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    panel = timeseries.Panel().title(title).description(why).datasource(SOURCE).unit(unit)
    panel.legend(legend.display_mode(LegendDisplayMode.LIST))
    panel.tooltip(hover.sort(SortOrder.DESCENDING)).line_width(1.0)
    panel.draw_style(GraphDrawStyle.BARS if bars else GraphDrawStyle.LINE)
    panel.fill_opacity(60.0 if bars else 0.0)
    if log:
        scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG)
        panel.scale_distribution(scale.log(10.0))
    for target in targets:
        panel.with_target(target)
    return panel.height(8).span(COLUMNS // 2)


def bands(title: str, why: str, target: Builder, height: int = 8) -> Builder:
    """What stood when, a row for each."""
    standing = ValueMap(options={"1": ValueMappingResult(text="stands", color="red", index=0)})
    panel = statetimeline.Panel().title(title).description(why).datasource(SOURCE)
    return panel.mappings([standing]).with_target(target).height(height).span(COLUMNS)


def listed(title: str, why: str, expression: str, hidden: Sequence[str] = ()) -> Builder:
    """A table of what is so now, without what is the same in each line."""
    away = dict.fromkeys(("Time", "Value", "__name__", "project", *hidden), True)
    dropped = DataTransformerConfig(id_val="organize", options={"excludeByName": away})
    panel = table.Panel().title(title).description(why).datasource(SOURCE)
    panel.with_target(newest(expression)).with_transformation(dropped)
    return panel.height(8).span(COLUMNS)


def label_choice(name: str, label: str, metric: str, *, several: bool = False) -> Builder:
    """A choice among the values that a label of a series has."""
    chosen = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    chosen.query(f"label_values({metric}, {name})").sort(VariableSort.ALPHABETICAL_ASC)
    chosen.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(several)
    return chosen.include_all(True).all_value(".*") if several else chosen


def word_choice(name: str, label: str, words: Sequence[str]) -> Builder:
    """A choice among fixed words, the first of them at the start."""
    return dashboard.CustomVariable(name).label(label).values(",".join(words))


def board(uid: str, title: str, why: str, since: str) -> Builder:
    """An empty dashboard."""
    made = dashboard.Dashboard(title).uid(uid).description(why).tags(["gradwarden"])
    return made.time(since, "now").refresh("30s").timezone("browser").readonly()
