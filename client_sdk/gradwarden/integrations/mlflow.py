"""``gradwarden.integrations.mlflow.link(monitor)``: an MLflow run and our run know each other.

MLflow is never imported here: a process without an active MLflow run has none to link to.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gradwarden.attach import Monitor
from gradwarden.errors import say
from gradwarden.integrations.bridge import connect, mention


def link(monitor: Monitor) -> None:
    """Link both ways with this thread's active MLflow run; tell it how the training went.

    Called after ``mlflow.start_run`` and ``gradwarden.watch``, on ranks that have an MLflow run.
    It gets the tags ``gradwarden.run`` and ``gradwarden.url``; at the end the metrics
    ``gradwarden.steps``, ``gradwarden.skipped`` and ``gradwarden.grad_norm_max``, and what was
    found in words as the artifact ``gradwarden/diagnosis.txt``. Our run's configuration shows
    the tracking address and id of the MLflow run.
    """
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None else None
    if mlflow is None or active is None:
        say("no MLflow run is active: call mlflow.start_run() before this link()")
        return
    where = str(mlflow.get_tracking_uri())
    key = str(active.info.run_id)
    client = mlflow.MlflowClient(tracking_uri=where)  # the active run is one of this thread only
    mention(monitor, "mlflow", f"{where} run {key}")
    connect(monitor, _Mlflow(client, key))


class _Mlflow:
    name = "mlflow"

    def __init__(self, client: Any, key: str) -> None:
        self._client, self._key = client, key

    def linked(self, run: str, url: str | None) -> None:
        self._client.set_tag(self._key, "gradwarden.run", run)
        if url is not None:
            self._client.set_tag(self._key, "gradwarden.url", url)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Nothing: each metric of MLflow is a request of its own."""

    def ended(self, numbers: Mapping[str, float], text: str) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._key, f"gradwarden.{name}", value)
        self._client.log_text(self._key, text, "gradwarden/diagnosis.txt")
