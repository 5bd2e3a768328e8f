"""A busy service asks for fuller batches, and gets them, but for what is urgent."""

from __future__ import annotations

import time

import pytest
import torch

from gradwarden.pump import BATCH_SECONDS, MOST_BATCH_SECONDS
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService


def test_frames_are_gathered_for_as_long_as_the_service_asks(
    service: FakeService, watch: Watch
) -> None:
    service.batch_seconds = 1.5
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, every=1)
    # Frames of the first quarter second leave before the service could ask for anything.
    for step in range(60):
        optimizer.zero_grad()
        loss = model(batch(step)).square().mean()
        loss.backward()
        optimizer.step()
        time.sleep(0.05)  # a step takes its time
    monitor.finish()
    assert len(service.all_frames()) >= 60
    alone = BATCH_SECONDS / 0.05
    assert max(len(sent.frames) for sent in service.batches) > 2 * alone


def test_a_nan_does_not_wait_for_its_batch_to_be_full(service: FakeService, watch: Watch) -> None:
    service.batch_seconds = 1.5
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, every=1)
    for step in range(40):
        optimizer.zero_grad()
        loss = model(batch(step)).square().mean()
        (loss * float("nan") if step == 30 else loss).backward()
        optimizer.step()
        time.sleep(0.03)
    monitor.finish()
    (sealed,) = [b for b in service.batches if 30 in {f.step for f in b.frames}][:1]
    # What ended while it was sealed may come along; a second and a half would be all the rest.
    assert sealed.frames[-1].step < 36, "nothing that came later was waited for"


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        (None, BATCH_SECONDS),
        ("soon", BATCH_SECONDS),
        (float("nan"), BATCH_SECONDS),
        (-1, BATCH_SECONDS),
        (1, 1.0),
        (3600, MOST_BATCH_SECONDS),
    ],
)
def test_what_a_service_asks_for_is_bounded(watch: Watch, asked: object, held: float) -> None:
    monitor = watch(mlp())
    pump = monitor._session._pump  # type: ignore[union-attr]
    pump.gather(asked)
    assert pump._gather_seconds == held
