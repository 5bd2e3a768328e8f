"""``gradwarden.integrations.wandb.link(monitor)``: a W&B run and our run know each other.

W&B is never imported here: a process without a live W&B run has none to link to.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gradwarden.attach import Monitor
from gradwarden.errors import say
from gradwarden.integrations.bridge import connect


def link(monitor: Monitor) -> None:
    """Link both ways with the live W&B run, and show it a few numbers of each captured step.

    Called after ``wandb.init`` and ``gradwarden.watch``, on ranks that have a W&B run. Its
    config and summary get ``gradwarden``, the address of the run's page; its history gets
    ``gradwarden/grad_norm`` and ``gradwarden/nonfinite_layers`` over ``gradwarden/step``, within
    the rows that the loop logs itself; its summary gets the numbers of the end. The other way
    needs no call: ``watch`` takes name, owner and address of a live W&B run by itself.
    """
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        say("no W&B run is live: call wandb.init() before gradwarden.integrations.wandb.link()")
        return
    run.define_metric("gradwarden/step", hidden=True)
    run.define_metric("gradwarden/*", step_metric="gradwarden/step")
    connect(monitor, _Wandb(run))


class _Wandb:
    name = "wandb"

    def __init__(self, run: Any) -> None:
        self._run = run

    def linked(self, run: str, url: str | None) -> None:
        self._run.config.update({"gradwarden": url or run}, allow_val_change=True)
        self._run.summary["gradwarden"] = url or run

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        named = {f"gradwarden/{name}": value for name, value in numbers.items()}
        # Without commit the loop's own step counter stays as it is.
        self._run.log({"gradwarden/step": step, **named}, commit=False)

    def ended(self, numbers: Mapping[str, float], text: str) -> None:
        self._run.summary.update({f"gradwarden/{name}": v for name, v in numbers.items()})
