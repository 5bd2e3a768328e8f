"""Objectives in the file formats of other tools: Sloth's ``prometheus/v1`` and Pyrra's resource.

Neither can count things of which there are a few a day, and Pyrra knows sums of one metric alone;
what a format cannot say is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradwarden_server.slo import compile as compiling
from gradwarden_server.slo.objective import WINDOW, Objective
from gradwarden_server.slo.windows import words


class Shape(Protocol):
    """A sum of one metric: its selector, and the labels that it is split by."""

    @property
    def metric(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


Shapes = Callable[[str], Shape | None]
"""The shape of a query; None where it is no sum of one metric."""


@dataclass(frozen=True, slots=True)
class Export:
    """Documents to be written as YAML one after the other, and what could not be said."""

    documents: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]


def prometheus(objectives: Sequence[Objective]) -> Export:
    """One rule file with everything: what is recorded, and who is told when."""
    return Export((compiling.document(objectives),), ())


def sloth(objectives: Sequence[Objective]) -> Export:
    """A document for each service, for ``sloth generate``; its windows are Sloth's own."""
    services: dict[str, list[dict[str, Any]]] = {}
    left_out = []
    for objective in objectives:
        if objective.count is not None:
            left_out.append(f"{objective.id}: Sloth has no budget by count")
        else:
            services.setdefault(objective.service, []).append(_sloth(objective))
    documents = tuple(
        {"version": "prometheus/v1", "service": service, "slos": slos}
        for service, slos in services.items()
    )
    return Export(documents, tuple(left_out))


def pyrra(objectives: Sequence[Objective], shapes: Shapes) -> Export:
    """A ``ServiceLevelObjective`` for each, where both of its queries are sums of one metric."""
    documents, left_out = [], []
    for objective in objectives:
        queries = (objective.good or objective.bad, objective.total)
        some, every = (shapes(query.replace(WINDOW, "5m")) for query in queries)
        if objective.count is not None or objective.slice_s:
            left_out.append(f"{objective.id}: Pyrra counts events alone, no slices and no runs")
        elif some is None or every is None:
            left_out.append(f"{objective.id}: Pyrra reads sums of one metric alone")
        else:
            kind, name = ("latency", "success") if objective.good else ("ratio", "errors")
            documents.append(_pyrra(objective, kind, name, some, every))
    return Export(tuple(documents), tuple(left_out))


def _sloth(objective: Objective) -> dict[str, Any]:
    if objective.slice_s:
        every = words(objective.slice_s)
        share = compiling.slice_share(objective)
        sli: dict[str, Any] = {
            "raw": {"error_ratio_query": f"avg_over_time(({share})[{WINDOW}:{every}])"}
        }
    else:
        sli = {
            "events": {
                "error_query": compiling.bad_in(objective, WINDOW),
                "total_query": " ".join(objective.total.split()),
            }
        }
    return {
        "name": objective.id,
        "objective": round(objective.target * 100, 9),
        "description": objective.description,
        "sli": sli,
        "alerting": {
            "name": compiling.ALERT,
            "labels": {"slo": objective.id},
            "page_alert": {"labels": {"severity": "page"}},
            "ticket_alert": {"labels": {"severity": "ticket"}},
        },
    }


def _pyrra(objective: Objective, kind: str, name: str, some: Shape, every: Shape) -> dict[str, Any]:
    return {
        "apiVersion": "pyrra.dev/v1alpha1",
        "kind": "ServiceLevelObjective",
        "metadata": {
            "name": objective.id,
            "labels": {"pyrra.dev/service": objective.service},
        },
        "spec": {
            "description": objective.description,
            "target": f"{objective.target * 100:g}",
            "window": f"{objective.period.days:g}d",
            "indicator": {
                kind: {
                    name: {"metric": some.metric},
                    "total": {"metric": every.metric},
                    **({"grouping": list(every.labels)} if every.labels else {}),
                }
            },
        },
    }
