"""The score is strict: what is early, wrongly named or uncalled-for does not count as found."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gradwarden import wire
from gradwarden.outbox import Record
from gradwarden.spool import pack, read_segment
from tests.zoo.cases import Case, Must, layer, rank, says
from tests.zoo.clock import EVEN, SECOND, Clock, Pause, rewrite
from tests.zoo.ground import Ground
from tests.zoo.score import Raised, Scored, add, bound, score


def nothing(ground: Ground) -> None:
    raise AssertionError("never trained")


SICK = Case(
    "sick", nothing, must=(Must("DeadLayer", ("ticket",), layer("4")),), may=("LossDivergence",)
)
HEALTHY = Case("healthy", nothing)


def scored(case: Case, *heard: Raised, began: int | None = 100, **more: Any) -> Scored:
    facts = {"began": began, "steps": 500, "troubles": [], **more}
    return score(case, "plain", case.name, 0, heard, **facts)


def dead(step: int = 150, severity: str = "ticket", **words: str) -> Raised:
    return Raised("DeadLayer", severity, step, {"layer": "4", **words})


def test_the_right_alert_with_the_right_layer_is_found_and_timed() -> None:
    one = scored(SICK, dead(150))
    assert one.short == []
    assert one.found[0].steps == 50


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ((), "missed DeadLayer"),
        ((dead(layer="2"),), "named wrongly: layer: 2"),
        ((dead(99),), "false ticket DeadLayer at step 99"),
        ((dead(), dead(severity="page")), "false page DeadLayer"),
        ((dead(), Raised("VanishingGradient", "ticket", 150, {})), "false ticket Vanishing"),
        ((dead(), Raised("LossDivergence", "page", 90, {})), "false page LossDivergence"),
    ],
)
def test_what_falls_short_is_said(heard: tuple[Raised, ...], said: str) -> None:
    assert any(said in text for text in scored(SICK, *heard).short)


def test_what_may_be_said_and_notes_are_not_false() -> None:
    after = Raised("LossDivergence", "page", 160, {}), Raised("ExplodingGradient", "note", 5, {})
    assert scored(SICK, dead(), *after).short == []


def test_a_healthy_run_is_let_alone() -> None:
    note, ticket = Raised("LossSpike", "note", 5, {}), Raised("InputBound", "ticket", 5, {})
    assert scored(HEALTHY, note, began=None).short == []
    assert scored(HEALTHY, ticket, began=None).short == ["false ticket InputBound at step 5"]


def test_a_run_whose_fault_never_came_counts_for_nothing() -> None:
    held = [scored(SICK, began=None), scored(SICK, dead())]
    sums = add(held)
    assert (sums.runs, sums.wanted, sums.raised, sums.troubles) == (1, 1, 1, 1)
    assert held[0].short


@pytest.mark.parametrize(
    ("named", "words", "right"),
    [
        (layer("blocks.2"), {"layer": "blocks.2"}, True),
        (layer("blocks.2"), {"parameters": "blocks.1.fc.weight, blocks.2.fc.weight"}, True),
        (layer("blocks.2"), {"layer": "blocks.21"}, False),
        (rank(1), {"rank": "1"}, True),
        (rank(1), {"rank": "1 (behind the others)"}, True),
        (rank(1), {"rank": "0, 1"}, False),
        (rank(1), {}, False),
        (says("memory"), {"cause": "out of Memory"}, True),
    ],
)
def test_names_are_whole_words(named: Any, words: dict[str, str], right: bool) -> None:
    assert named(words) is right


def test_the_bound_is_three_over_the_chances_where_nothing_was_seen() -> None:
    assert bound(0, 100) == pytest.approx(0.03, rel=0.01)
    assert bound(1, 100) > bound(0, 100) > bound(0, 1000)


def test_the_recorded_clock_is_stretched_and_paused(tmp_path: Path) -> None:
    """A pause is in the times of the frames behind it, and in the phase that accounts for it."""
    spool = tmp_path / "spool" / "zoo.r0"
    spool.mkdir(parents=True)
    frames = tuple(
        wire.Frame(seq=i, step=i, time_ns=(10 + i) * SECOND, scalars={"step_seconds": 1.0})
        for i in range(4)
    )
    batch = wire.Batch(wire.StreamKey("zoo", "A", 0, "N"), frames, sent_ns=14 * SECOND)
    (spool / "000001.spool").write_bytes(pack(Record("batch", wire.encode(batch), 4)))
    clock = Clock(stretch=10, pauses=(Pause(2, 300.0, "evaluation"),))
    made = rewrite(tmp_path / "spool", clock, tmp_path / "clocked")
    batches = [
        wire.decode(record.body) for record in read_segment(made / "zoo.r0" / "000001.spool")
    ]
    held = [frame for batch in batches for frame in batch.frames]
    assert all(0 < b.sent_ns - b.frames[-1].time_ns < SECOND for b in batches)
    assert [f.time_ns // SECOND for f in held] == [10, 20, 330, 340]
    assert [f.scalars["step_seconds"] for f in held] == [10.0, 10.0, 310.0, 10.0]
    assert [f.scalars.get("evaluation_seconds") for f in held] == [None, None, 300.0, None]


def test_an_even_clock_takes_the_busy_machine_out(tmp_path: Path) -> None:
    """Steps of 1, 1, 7 and 1 s by one rank and a checkpoint of 5 s among three of 2 s."""
    spool = tmp_path / "spool" / "zoo.r0"
    spool.mkdir(parents=True)
    ends, seconds = (11, 12, 19, 20), (1.0, 1.0, 7.0, 1.0)
    frames = tuple(
        wire.Frame(
            seq=i,
            step=i,
            time_ns=ends[i] * SECOND,
            scalars={"step_seconds": seconds[i]},
            events=({"kind": "checkpoint", "seconds": 5.0 if i == 2 else 2.0},),
        )
        for i in range(4)
    )
    batch = wire.Batch(wire.StreamKey("zoo", "A", 0, "N"), frames, sent_ns=21 * SECOND)
    (spool / "000001.spool").write_bytes(pack(Record("batch", wire.encode(batch), 4)))
    made = rewrite(tmp_path / "spool", EVEN, tmp_path / "clocked")
    written = read_segment(made / "zoo.r0" / "000001.spool")
    held = [frame for record in written for frame in wire.decode(record.body).frames]
    assert {b.time_ns - a.time_ns for a, b in pairwise(held)} == {SECOND}
    assert {f.scalars["step_seconds"] for f in held} == {1.0}
    assert {f.events[0]["seconds"] for f in held} == {2.0}
