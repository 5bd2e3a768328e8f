"""Frames of several ranks become steps, whatever the order in which they arrive."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden import wire
from gradwarden_server.detect.assembler import WAIT_NS, Assembler
from gradwarden_server.detect.steps import Step
from tests.server.detection import LAYOUT, ROWS, SECOND, matrix


def frame(
    seq: int, step: int, norms: Any = None, nan: Iterable[int] = (), **said: Any
) -> wire.Frame:
    values = b"" if norms is None else matrix(norms, nan).tobytes()
    said.setdefault("scalars", {"loss": float(step)})
    return wire.Frame(seq=seq, step=step, time_ns=step * SECOND, values=values, **said)


def batch(rank: int, *frames: wire.Frame, group: int = 0) -> wire.Batch:
    stream = wire.StreamKey(run="r", attempt="a", rank=rank, nonce="n", group=group)
    return wire.Batch(stream, frames, layout=LAYOUT.hash, parameters=ROWS)


def told(steps: Sequence[Step]) -> list[tuple[Any, ...]]:
    """All that matters of steps, in a form that can be compared."""
    return [
        (
            s.attempt,
            s.step,
            s.time_ns,
            {g: (m.values.tobytes(), m.rank, m.capture, m.stepped) for g, m in s.groups.items()},
            dict(s.ranks),
            s.events,
            s.missing,
        )
        for s in steps
    ]


def test_one_rank_alone_waits_for_nobody() -> None:
    assembler = Assembler(world_size=1)
    assembler.add(batch(0, frame(1, 0, 1.0), frame(2, 1, 2.0)), 1, 0)
    assert [s.step for s in assembler.release(0)] == [0, 1]


def test_a_step_waits_for_its_last_rank_and_no_longer_than_two_seconds() -> None:
    assembler = Assembler(world_size=2)
    assembler.add(batch(0, frame(1, 0, 1.0)), 1, 5)
    assert assembler.release(5) == []
    assert assembler.deadline_ns == 5 + WAIT_NS
    assert assembler.release(4 + WAIT_NS) == []
    (step,) = assembler.release(5 + WAIT_NS)
    assert (step.step, step.missing, step.first_received_ns) == (0, (1,), 5)
    assembler.add(batch(1, frame(1, 0)), 1, 6 + WAIT_NS)
    assert assembler.late == 1


def test_a_rank_that_was_waited_for_in_vain_is_not_waited_for_again_until_it_speaks() -> None:
    assembler = Assembler(world_size=2)
    assembler.add(batch(0, frame(1, 0, 1.0)), 1, 0)
    assembler.release(WAIT_NS)
    assembler.add(batch(0, frame(2, 1, 1.0)), 1, WAIT_NS)
    assert [(s.step, s.missing) for s in assembler.release(WAIT_NS)] == [(1, (1,))]
    assembler.add(batch(1, frame(1, 0), frame(2, 1)), 1, WAIT_NS)
    assembler.add(batch(0, frame(3, 2, 1.0)), 1, WAIT_NS)
    assert assembler.release(WAIT_NS) == []
    assembler.add(batch(1, frame(3, 2)), 1, WAIT_NS)
    assert [(s.step, s.missing) for s in assembler.release(WAIT_NS)] == [(2, ())]


def test_a_rank_that_said_goodbye_is_not_waited_for() -> None:
    assembler = Assembler(world_size=2)
    goodbye = frame(2, 0, scalars={}, events=({"kind": "finish", "status": "finished"},))
    assembler.add(batch(1, frame(1, 0), goodbye), 1, 0)
    assembler.add(batch(0, frame(1, 0, 1.0), frame(2, 1, 1.0)), 1, 0)
    steps = assembler.release(0)
    assert [(s.step, bool(s.events)) for s in steps] == [(0, False), (0, True), (1, False)]
    assert steps[1].events[0][0] == 1


def test_an_open_frame_does_not_close_its_step() -> None:
    assembler = Assembler(world_size=1)
    assembler.add(batch(0, frame(1, 0, 1.0, scalars={}, open=True)), 1, 0)
    assert assembler.release(0) == []
    assembler.add(batch(0, frame(2, 0, stepped=True)), 1, 0)
    (step,) = assembler.release(0)
    assert step.groups[0].stepped is True
    assert step.scalar("loss") == 0.0


def test_an_event_before_the_first_step_does_not_stand_for_the_step() -> None:
    assembler = Assembler(world_size=1)
    start = frame(1, 0, scalars={}, events=({"kind": "start"},))
    assembler.add(batch(0, start), 1, 0)
    (carrier,) = assembler.release(0)
    assert carrier.eventful
    assembler.add(batch(0, frame(2, 0, 1.0)), 1, 60 * SECOND)
    assert [s.eventful for s in assembler.release(60 * SECOND)] == [False]
    assert assembler.late == 0


def test_an_unobserved_row_covers_nothing() -> None:
    norms = np.full(ROWS, np.nan)
    first, second = norms.copy(), norms.copy()
    first[:4], second[4:] = 1.0, 2.0
    assembler = Assembler(world_size=1)
    assembler.add(batch(0, frame(1, 0, first, open=True), frame(2, 0, second)), 1, 0)
    (step,) = assembler.release(0)
    assert step.groups[0].column("l2").tolist() == [1.0] * 4 + [2.0] * (ROWS - 4)


def test_the_fullest_matrix_of_a_group_wins() -> None:
    partial = np.ones(ROWS)
    partial[0] = np.nan
    assembler = Assembler(world_size=2)
    assembler.add(batch(0, frame(1, 0, partial)), 1, 0)
    assembler.add(batch(1, frame(1, 0, 2.0)), 1, 0)
    (step,) = assembler.release(0)
    assert (step.groups[0].rank, step.groups[0].values[0, 0]) == (1, 2.0)


def test_a_bad_step_is_looked_at_early_once_and_only_when_it_is_decided() -> None:
    assembler = Assembler(world_size=2)
    assembler.add(batch(0, frame(1, 0, 1.0, nan=[3], scalars={}, open=True)), 1, 0)
    assert assembler.urgent() == []
    assembler.add(batch(0, frame(2, 0, stepped=True)), 1, 0)
    assert assembler.release(0) == []
    (early,) = assembler.urgent()
    assert (early.partial, early.step, early.stepped) == (True, 0, True)
    assert early.groups[0].bad.nonzero()[0].tolist() == [3]
    assert assembler.urgent() == []
    assembler.add(batch(1, frame(1, 0, scalars={"loss": float("nan")})), 1, 1)
    (full,) = assembler.release(1)
    assert (full.partial, full.ranks[1].bad_loss) == (False, True)


def test_a_gap_in_the_frames_of_a_rank_is_waited_for() -> None:
    assembler = Assembler(world_size=1)
    assembler.add(batch(0, frame(2, 1, 1.0)), 1, 0)
    assert assembler.release(0) == []
    assembler.add(batch(0, frame(1, 0, 1.0)), 1, 1)
    assert [s.step for s in assembler.release(1)] == [0, 1]
    assembler.add(batch(0, frame(5, 4, 1.0)), 1, 2)
    assert [s.step for s in assembler.release(2 + WAIT_NS)] == [4]


def test_a_new_attempt_opens_a_new_assembler_and_the_old_one_drains() -> None:
    assembler = Assembler(world_size=2)
    assembler.add(batch(0, frame(1, 7, 1.0)), 1, 0)
    assembler.add(batch(0, frame(1, 3, 1.0)), 2, 1)
    assembler.add(batch(1, frame(1, 3)), 2, 1)
    assert [(s.attempt, s.step) for s in assembler.release(1)] == [(2, 3)]
    assert [(s.attempt, s.step) for s in assembler.release(WAIT_NS)] == [(1, 7)]
    assembler.add(batch(1, frame(1, 7)), 1, WAIT_NS)
    assert (assembler.release(WAIT_NS), assembler.late) == ([], 1)


def test_a_host_clock_is_corrected() -> None:
    assembler = Assembler(world_size=1)
    assembler.add(batch(0, frame(1, 2, 1.0)), 1, 0, shift_ns=-SECOND)
    assert assembler.release(0)[0].time_ns == SECOND


WORLD = 3


def story(bad: set[int], split: set[tuple[int, int]]) -> list[tuple[int, list[wire.Frame]]]:
    """Each rank's frames over eight steps; the speaker's are open first where asked."""
    ranks = []
    for rank in range(WORLD):
        frames: list[wire.Frame] = []
        for step in range(8):
            norms = 1.0 + step if rank == 0 else None
            nan = [2] if step in bad and rank == 0 else []
            if (rank, step) in split:
                frames.append(frame(len(frames) + 1, step, norms, nan, scalars={}, open=True))
                frames.append(frame(len(frames) + 1, step, stepped=True))
            else:
                frames.append(frame(len(frames) + 1, step, norms, nan, stepped=True))
        ranks.append((rank, frames))
    return ranks


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[wire.Batch], list[wire.Batch]]:
    """The frames of a run, one by one in order; and cut, doubled and shuffled."""
    steps = st.integers(0, 7)
    split = draw(st.sets(st.tuples(st.integers(0, WORLD - 1), steps)))
    plain, mixed = [], []
    for rank, frames in story(draw(st.sets(steps)), split):
        plain += [batch(rank, f) for f in frames]
        cuts = sorted(draw(st.sets(st.integers(1, len(frames) - 1))))
        edges = [0, *cuts, len(frames)]
        pieces = [frames[a:b] for a, b in itertools.pairwise(edges)]
        mixed += [batch(rank, *piece) for piece in pieces]
    doubled = draw(st.lists(st.sampled_from(mixed), max_size=4))
    return plain, draw(st.permutations([*mixed, *doubled]))


@given(deliveries(), st.data())
@settings(max_examples=150, deadline=None)
def test_delivery_does_not_matter(
    delivery: tuple[list[wire.Batch], list[wire.Batch]], data: st.DataObject
) -> None:
    plain, mixed = delivery
    expected = Assembler(world_size=WORLD)
    for held in plain:
        expected.add(held, 1, 0)
    assembler = Assembler(world_size=WORLD)
    steps: list[Step] = []
    at = data.draw(st.integers(0, len(mixed)))
    for number, held in enumerate(mixed):
        if number == at:
            other = Assembler()
            other.restore(assembler.state())
            assembler = other
        assembler.add(held, 1, number)
        steps += assembler.release(number)
        assembler.urgent()
    assert told(steps) == told(expected.release(0))
    assert (len(steps), assembler.late) == (8, 0)


def test_steps_carry_what_detectors_read() -> None:
    assert {f.name for f in dataclasses.fields(Step)} >= {"groups", "ranks", "events", "missing"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Step(1, 0, 0, 0).step = 1  # type: ignore[misc]
