"""SIGKILL while an alert is building up: it is raised at the very step at which it would have been.

Sick runs are sent up to the midst of what a detector counts, the service dies and starts again,
and the rest is sent. Their twins are sent whole to the same service.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gradwarden import wire
from tests.server.detection import LAYOUT, ROWS, matrix, noise
from tests.server.siege import until
from tests.server.traffic import send, start_body
from tests.service import Service

STEPS = 640
BATCH = 20
STEP_NS = 200_000_000


@dataclass(frozen=True)
class Sickness:
    """A run, what it should raise, and the step behind which the service dies."""

    alert: str
    severity: str
    killed: int
    norms: Callable[[], NDArray[np.float64]]
    loss: Callable[[int], float]


def faded() -> NDArray[np.float64]:
    rows = noise(STEPS, seed=1, sigma=0.1)
    rows[300:] *= np.geomspace(1e-7, 1, ROWS)
    return rows


def exploded() -> NDArray[np.float64]:
    rows = noise(STEPS, seed=2, sigma=0.1)
    rows[220:] *= 100
    return rows


def diverging(step: int) -> float:
    """Falls for 330 steps, and rises from then on."""
    wobble = 0.02 * math.sin(step * 1.7) + 0.02 * math.sin(step * 0.61)
    fallen = 2 + 6 * math.exp(-step / 60)
    return wobble + (fallen if step < 330 else 2.05 + (step - 330) * 0.012)


SICK = {
    "fades": Sickness("VanishingGradient", "ticket", 450, faded, lambda n: 2.0),
    "explodes": Sickness(
        "ExplodingGradient", "page", 230, exploded, lambda n: 2.0 + 50.0 * max(0, n - 219)
    ),
    "diverges": Sickness(
        "LossDivergence", "ticket", 470, lambda: noise(STEPS, seed=3, sigma=0.1), diverging
    ),
}


class Trainer:
    """One rank that sends what it has, as fast as it may."""

    def __init__(self, service: Service, run: str, sick: Sickness) -> None:
        self._service, self.run = service, run
        self._norms, self._loss = sick.norms(), sick.loss
        self._sent = 0
        # As if it had trained until now: older findings would be history.
        self.began_ns = time.time_ns() - (STEPS + 50) * STEP_NS
        started = service.call("POST", "/v1/start", json=start_body(run))
        assert started.status_code == 200, started.text
        service.call("POST", "/v1/layouts", json=LAYOUT.to_json())

    def train(self, until_step: int) -> None:
        """Send the steps before this one."""
        while self._sent < until_step:
            end = min(self._sent + BATCH, until_step)
            frames = tuple(self._frame(n) for n in range(self._sent, end))
            key = wire.StreamKey(self.run, "a1", 0, "n1")
            batch = wire.Batch(key, frames, LAYOUT.hash, ROWS, sent_ns=time.time_ns())
            assert send(self._service, batch).status_code == 200
            self._sent = end

    def _frame(self, number: int) -> wire.Frame:
        return wire.Frame(
            seq=number + 1,
            step=number,
            time_ns=self.began_ns + number * STEP_NS,
            scalars={"loss": self._loss(number), "lr": 1e-3},
            capture="pre_clip",
            stepped=True,
            values=matrix(self._norms[number]).tobytes(),
        )

    def judged(self) -> bool:
        return not self._service.get(f"/v1/runs/{self.run}")["unjudged"]

    def alerts(self) -> list[tuple[str, str, Mapping[str, str], list[tuple[int, str, str]]]]:
        """Each alert by name and severity: its words, and at which step its state changed."""
        found = []
        for alert in self._service.get(f"/v1/alerts?run={self.run}")["items"]:
            story = self._service.get(f"/v1/alerts/{alert['id']}")
            words = {k: v for k, v in alert["annotations"].items() if not k.endswith("_url")}
            changes = [(self._step_of(t["at"]), t["to"], t["reason"]) for t in story["timeline"]]
            found.append((alert["alertname"], alert["severity"], words, changes))
        return sorted(found, key=lambda alert: (alert[0], alert[1], alert[3]))

    def raised(self, sick: Sickness) -> list[int]:
        """The steps at which the alert was raised that the sickness deserves."""
        told = [a for a in self.alerts() if a[:2] == (sick.alert, sick.severity)]
        return [
            next(step for step, state, _ in changes if state == "firing")
            for _, _, _, changes in told
        ]

    def _step_of(self, at: str) -> int:
        since = datetime.fromisoformat(at).timestamp() - self.began_ns / 1e9
        return round(since / (STEP_NS / 1e9))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "settled",
    [
        pytest.param(True, id="judged"),
        pytest.param(False, id="merely acknowledged", marks=pytest.mark.full),
    ],
)
def test_an_alert_in_the_making_outlives_a_kill(tmp_path: Path, settled: bool) -> None:
    service = Service(tmp_path)
    try:
        cut = {name: Trainer(service, f"cut-{name}", sick) for name, sick in SICK.items()}
        # A service that has just started takes a snapshot with the first steps that it judges, so
        # the second start goes on from one that was taken in the midst of it.
        for more in (0, 5):
            for name, trainer in cut.items():
                trainer.train(SICK[name].killed + more)
            if settled:
                for name, trainer in cut.items():
                    until(trainer.judged, f"{trainer.run} is not judged")
                    assert not trainer.raised(SICK[name]), "too late"
            service.restart()
        for trainer in cut.values():
            trainer.train(STEPS)
        whole = {name: Trainer(service, f"whole-{name}", sick) for name, sick in SICK.items()}
        for trainer in whole.values():
            trainer.train(STEPS)
        for trainer in (*cut.values(), *whole.values()):
            until(trainer.judged, f"{trainer.run} is not judged")
        for name, sick in SICK.items():
            (step,) = whole[name].raised(sick)
            assert step > sick.killed + 5
            assert cut[name].alerts() == whole[name].alerts()
    finally:
        service.close()
