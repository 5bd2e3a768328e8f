"""MLflow runs: metrics become scalars and layers as in :mod:`.tags`, params the configuration.

MLflow's databases keep an Inf as the largest float64; here it is an Inf again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

from gradwarden import wire
from gradwarden_server.transfer import tags
from gradwarden_server.transfer.faults import MissingExtra, Unreadable
from gradwarden_server.transfer.foreign import Series, source
from gradwarden_server.transfer.head import RunFacts
from gradwarden_server.transfer.source import Source

try:
    import mlflow
    from mlflow.exceptions import MlflowException
except ImportError as error:
    raise MissingExtra("Reading MLflow", "mlflow-skinny", "mlflow") from error

_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "cancelled"}
_MILLISECOND_NS = 1_000_000
_PAGE = 100


def runs(uri: str | None, run_id: str | None, experiment: str | None) -> Iterator[Source]:
    """One run, or every run of an experiment, read when its turn comes.

    Raises:
        Unreadable: MLflow does not know it, or does not answer.
    """
    where = uri or str(mlflow.get_tracking_uri())
    client = mlflow.MlflowClient(tracking_uri=where)
    try:
        if run_id is not None:
            yield _source(client, where, client.get_run(run_id))
            return
        found = client.get_experiment_by_name(experiment)
        if found is None:
            remedy = "see its list of experiments; names are taken exactly"
            raise Unreadable(where, "experiment", experiment, remedy)
        token: str | None = None
        while True:
            page = client.search_runs(
                [found.experiment_id],
                order_by=["attributes.start_time ASC"],
                max_results=_PAGE,
                page_token=token,
            )
            for run in page:
                yield _source(client, where, run)
            token = page.token
            if not token:
                return
    except MlflowException as error:
        asked = run_id or experiment
        remedy = "check --tracking-uri, and that it is there"
        raise Unreadable(where, "MLflow", asked, f"{str(error)[:200]}; {remedy}") from None


def _source(client: Any, where: str, run: Any) -> Source:
    info, data = run.info, run.data
    scalars: dict[str, Series] = {}
    for name in sorted(data.metrics):
        series = scalars[name] = Series()
        points = client.get_metric_history(info.run_id, name)
        for point in sorted(points, key=lambda p: p.timestamp):
            series.add(point.step, point.timestamp * _MILLISECOND_NS, _number(point.value))
    experiment = client.get_experiment(info.experiment_id)
    facts = RunFacts(
        tags.identifier(info.run_id),
        name=(info.run_name or info.run_id)[:256],
        training_job=experiment.name[:256],
        owner=(data.tags.get("mlflow.user") or info.user_id or None),
        git_commit=(data.tags.get("mlflow.source.git.commit") or "")[:64] or None,
        config=dict(data.params),
        started_ns=(info.start_time or 0) * _MILLISECOND_NS,
    )
    ending: wire.Event | None = None
    if info.status in _STATUS:
        ending = {"kind": "finish", "status": _STATUS[info.status]}
        if info.status == "FAILED":
            ending = {**ending, "error": "MLflow says FAILED"}
    label = f"MLflow run {info.run_id}"
    return source(label, facts, scalars, {}, ending, f"mlflow {where} {info.run_id}")


def _number(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
