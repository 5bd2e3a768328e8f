"""Trainers are asked for fuller batches where frames come in crowds, and no longer after that."""

from __future__ import annotations

from gradwarden_server.api.pace import FULL_SECONDS, Pace


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(pace: Pace, clock: Clock, per_second: int, frames: int, seconds: int) -> float | None:
    """What the last of these requests was told."""
    told = None
    for _ in range(per_second * seconds):
        clock.now += 1 / per_second
        told = pace.batch_seconds(frames)
    return told


def test_a_handful_of_trainers_may_send_as_they_like() -> None:
    clock = Clock()
    assert run(Pace(clock), clock, per_second=200, frames=1, seconds=10) is None


def test_a_fast_trainer_alone_is_no_crowd() -> None:
    clock = Clock()
    assert run(Pace(clock), clock, per_second=4, frames=200, seconds=10) is None


def test_a_crowd_is_asked_and_stays_asked_while_it_obeys() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert run(pace, clock, per_second=1000, frames=1, seconds=5) == FULL_SECONDS
    assert run(pace, clock, per_second=500, frames=2, seconds=20) == FULL_SECONDS
    assert run(pace, clock, per_second=100, frames=1, seconds=5) is None
