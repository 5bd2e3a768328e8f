"""What only time can tell: stalled and silent runs, and failed ones; the clock is a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from gradwarden_server.detect.base import Liveness, RankLiveness
from gradwarden_server.detect.engine import RunDetectors
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, RunFacts
from tests.server.detection import SECOND, carrier, engine, step

MINUTE = 60
LAST = 100  # seconds at which the last of a hundred one-second steps was done
FACTS = RunFacts(
    row=1,
    project="default",
    run="r",
    name="r",
    status="running",
    environment="prod",
    world_size=1,
    labels={},
    dashboard_url="",
    started_ns=0,
    last_seen_ns=0,
    last_step=LAST,
)


def alive(
    seen: float | Iterable[float],
    *,
    stepped: float | None = LAST,
    phase: str | None = None,
    service: float = 0,
    ended: bool = False,
    attempt: int = 1,
) -> Liveness:
    """Ranks that were last seen at these seconds, and stepped last at ``stepped``."""
    ranks = [seen] if isinstance(seen, (int, float)) else list(seen)
    return Liveness(
        attempt=attempt,
        attempt_started_ns=0,
        service_started_ns=round(service * SECOND),
        ranks=tuple(
            RankLiveness(
                rank=rank,
                last_seen_ns=round(at * SECOND),
                last_step=None if stepped is None else LAST,
                last_step_ns=None if stepped is None else round(stepped * SECOND),
                phase=phase,
                ended=ended,
                host=f"node{rank}",
            )
            for rank, at in enumerate(ranks)
        ),
    )


def trained(alert: str, *gaps: float) -> RunDetectors:
    """A run of one step a second, with these gaps on its way."""
    detectors = engine([alert])
    seconds = 0.0
    for n in range(LAST):
        seconds += 1 + (gaps[n] if n < len(gaps) else 0)
        detectors.advance([step(n, seconds=seconds)])
    return detectors


def said(
    detectors: RunDetectors, at: float, liveness: Liveness, facts: RunFacts = FACTS
) -> str | None:
    """The severity that is active at this second."""
    worst = condition(detectors, at, liveness, facts)
    return None if worst is None else worst.severity


def condition(
    detectors: RunDetectors, at: float, liveness: Liveness, facts: RunFacts = FACTS
) -> Condition | None:
    active = [c for c in detectors.tick(round(at * SECOND), facts, liveness) if c.active]
    assert len(active) <= 1
    return active[0] if active else None


@pytest.mark.parametrize(
    ("sentence", "standing", "expected"),
    [
        ("four minutes without a step are nothing", 4 * MINUTE, None),
        ("five are a ticket", 5 * MINUTE, "ticket"),
        ("ten are a page", 10 * MINUTE, "page"),
    ],
)
def test_stalled_between_steps(sentence: str, standing: float, expected: str | None) -> None:
    now = LAST + standing
    assert said(trained("RunStalled"), now, alive(now - 5)) == expected, sentence


def test_a_run_that_paused_and_healed_is_given_its_own_pace() -> None:
    now = LAST + 200 + 6 * MINUTE
    detectors = trained("RunStalled", 0, 200)
    assert said(detectors, now, alive(now, stepped=LAST + 200)) is None
    assert said(detectors, now + 60, alive(now + 60, stepped=LAST + 200)) == "ticket"


@pytest.mark.parametrize(
    ("minutes", "expected"), [(14, None), (15, "ticket"), (44, "ticket"), (45, "page")]
)
def test_a_known_phase_is_given_more_time(minutes: float, expected: str | None) -> None:
    now = LAST + minutes * MINUTE
    assert said(trained("RunStalled"), now, alive(now, phase="eval")) == expected


def test_a_phase_that_was_long_before_may_be_twice_as_long() -> None:
    detectors = trained("RunStalled")
    detectors.advance([carrier(LAST, {"kind": "phase", "name": "eval", "seconds": 1200}, 1300)])
    now = LAST + 39 * MINUTE
    assert said(detectors, now, alive(now, phase="eval")) is None
    assert said(detectors, now + 90, alive(now + 90, phase="eval")) == "ticket"


@pytest.mark.parametrize(("minutes", "expected"), [(29, None), (30, "ticket"), (60, "page")])
def test_a_run_may_take_half_an_hour_to_its_first_step(
    minutes: float, expected: str | None
) -> None:
    now = minutes * MINUTE
    assert said(engine(["RunStalled"]), now, alive(now, stepped=None)) == expected


def test_ten_minutes_of_own_downtime_are_no_evidence() -> None:
    started = LAST + 10 * MINUTE
    liveness = alive(LAST, service=started)
    for alert in ("RunStalled", "RankSilent", "RunFailed"):
        assert said(trained(alert), started + 100, liveness) is None, alert
    assert said(trained("RankSilent"), started + 2 * MINUTE, liveness) == "page"


def stack(rank: int, collective: str, *lines: str) -> Step:
    """What a rank tells of itself while no step ends."""
    event = {"kind": "stack", "stack": list(lines), "collective": collective, "phase": ""}
    return carrier(LAST, event, LAST + 120, rank)


def place(rank: int, node: str) -> Step:
    return carrier(0, {"kind": "start", "place": {"node": node}}, 0, rank)


IN_LOOP, IN_REDUCE = "/srv/loop.py:12 train", "/lib/distributed_c10d.py:2800 all_reduce"


def test_a_stall_names_stacks_collective_and_the_rank_that_is_not_in_it() -> None:
    detectors = trained("RunStalled")
    for rank in range(3):
        detectors.advance([place(rank, f"n{rank}")])
        waits = rank != 1
        lines = (IN_LOOP, IN_REDUCE) if waits else (IN_LOOP, "/srv/data.py:7 read")
        detectors.advance([stack(rank, "all-reduce 2 of 400 bytes" if waits else "", *lines)])
    detectors = restored(detectors, "RunStalled")
    now = LAST + 11 * MINUTE
    found = condition(detectors, now, alive([now] * 3))
    assert found is not None
    words = found.annotations
    assert words["step"] == str(LAST)
    assert words["rank"] == "1 (not in the collective)"
    assert words["node"] == "n1"
    assert words["stack"] == (
        "rank 0, 2: loop.py:12 train > distributed_c10d.py:2800 all_reduce; "
        "rank 1: loop.py:12 train > data.py:7 read"
    )
    assert words["collective"] == "rank 0, 2: all-reduce 2 of 400 bytes"


def test_of_two_ranks_the_one_outside_the_collective_is_waited_for() -> None:
    detectors = trained("RunStalled")
    detectors.advance([stack(0, "all-reduce 0 of 400 bytes", IN_LOOP, IN_REDUCE)])
    detectors.advance([stack(1, "", IN_LOOP)])
    now = LAST + 11 * MINUTE
    found = condition(detectors, now, alive([now] * 2))
    assert found is not None
    assert found.annotations["rank"] == "1 (not in the collective)"
    assert found.annotations["node"] == "node1"


def test_the_stacks_of_a_standstill_that_is_over_are_old() -> None:
    detectors = trained("RunStalled")
    detectors.advance([stack(0, "", IN_LOOP), step(LAST, seconds=LAST + 200)])
    now = LAST + 200 + 20 * MINUTE
    found = condition(detectors, now, alive(now, stepped=LAST + 200))
    assert found is not None
    assert "stack" not in found.annotations


def test_a_stall_names_what_each_rank_is_doing() -> None:
    now = LAST + 46 * MINUTE
    liveness = alive([now, now])
    first, second = liveness.ranks
    liveness = replace(liveness, ranks=(replace(first, phase="evaluation"), second))
    found = condition(trained("RunStalled"), now, liveness)
    assert found is not None
    assert found.annotations["phase"] == "evaluation on rank 0; train on rank 1"


def test_a_silent_rank_is_told_with_its_node_its_phase_and_its_last_stack() -> None:
    detectors = trained("RankSilent")
    detectors.advance([place(1, "rack3-n7"), stack(1, "barrier", IN_LOOP)])
    found = condition(detectors, 1000.0, alive([997, 700], stepped=999))
    assert found is not None
    words = found.annotations
    assert (words["node"], words["phase"]) == ("rack3-n7", "train")
    assert (words["stack"], words["collective"]) == ("rank 1: loop.py:12 train", "rank 1: barrier")


def test_a_run_of_which_nobody_is_heard_is_silent_and_not_stalled() -> None:
    now = LAST + 11 * MINUTE
    assert said(trained("RunStalled"), now, alive(LAST)) is None
    assert said(trained("RankSilent"), now, alive(LAST)) == "page"


@pytest.mark.parametrize(
    ("silence", "stepped_ago", "expected"),
    [(110, 1, None), (120, 1, "ticket"), (299, 1, "ticket"), (300, 1, "page"), (120, 120, "page")],
)
def test_a_silent_rank(silence: float, stepped_ago: float, expected: str | None) -> None:
    now = 1000.0
    liveness = alive([now - 3, now - silence], stepped=now - stepped_ago)
    found = condition(trained("RankSilent"), now, liveness)
    assert (found.severity if found else None) == expected
    if found:
        assert (found.annotations["rank"], found.annotations["node"]) == ("1", "node1")


def test_a_rank_that_said_goodbye_is_not_silent() -> None:
    assert said(trained("RankSilent"), 2000, alive(LAST, ended=True)) is None


def finish(status: str, error: str = "", at: float = LAST, rank: int = 0) -> RunDetectors:
    detectors = trained("RunFailed")
    event = {"kind": "finish", "status": status, "error": error}
    detectors.advance([carrier(LAST, event, at, rank)])
    return detectors


@pytest.mark.parametrize(
    ("status", "minutes", "environment", "expected"),
    [
        ("failed", 9, "prod", None),
        ("failed", 10, "prod", "page"),
        ("failed", 10, "dev", "ticket"),
        ("preempted", 0, "prod", "note"),
        ("cancelled", 20, "prod", None),
        ("finished", 20, "prod", None),
    ],
)
def test_how_a_run_ended(
    status: str, minutes: float, environment: str, expected: str | None
) -> None:
    facts = replace(FACTS, environment=environment)
    now = LAST + minutes * MINUTE
    assert said(finish(status), now, alive(LAST, ended=True), facts) == expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        ("DistBackendError: NCCL communicator was aborted", "a collective was aborted"),
        ("ValueError: boom", "an exception"),
    ],
)
def test_a_failed_run_names_its_cause(error: str, words: str) -> None:
    now = LAST + 11 * MINUTE
    found = condition(finish("failed", error), now, alive(LAST, ended=True))
    assert found is not None
    assert words in found.annotations["summary"]
    assert error in found.annotations["cause"]


def test_the_rank_that_failed_first_is_named_before_those_that_only_lost_it() -> None:
    detectors = finish("failed", "RuntimeError: Connection closed by peer", at=LAST)
    event = {"kind": "finish", "status": "failed", "error": "ValueError: boom"}
    detectors.advance([carrier(LAST, event, LAST + 1, rank=3)])
    found = condition(detectors, LAST + 11 * MINUTE, alive([LAST, LAST], ended=True))
    assert found is not None
    assert found.annotations["rank"] == "3"
    assert found.annotations["cause"].startswith("rank 3: ValueError: boom; rank 0")


def test_a_rank_that_died_without_a_word_is_named_before_the_one_that_noticed() -> None:
    error = "RuntimeError: Connection closed by peer"
    detectors = finish("failed", error)
    liveness = alive([LAST, LAST - 2])
    noticed, dead = liveness.ranks
    both = replace(liveness, ranks=(replace(noticed, ended=True), dead))
    found = condition(detectors, LAST + 11 * MINUTE, both)
    assert found is not None
    assert found.annotations["rank"] == "1"
    assert "rank 1 died, and a collective was aborted on rank 0" in found.annotations["summary"]
    living = replace(both, ranks=(both.ranks[0], replace(dead, last_seen_ns=noticed.last_seen_ns)))
    found = condition(finish("failed", error), LAST + 11 * MINUTE, living)
    assert found is not None
    assert found.annotations["rank"] == "0", "one that is heard after the failure is no suspect"


def test_a_killed_run_counts_as_failed_and_a_new_attempt_ends_it() -> None:
    detectors = trained("RunFailed")
    assert said(detectors, LAST + 9 * MINUTE, alive(LAST)) is None
    found = condition(detectors, LAST + 10 * MINUTE, alive(LAST))
    assert found is not None
    assert (found.severity, "died without a word" in found.annotations["summary"]) == ("page", True)
    later = LAST + 11 * MINUTE
    assert said(detectors, later, alive(later, attempt=2)) is None
    detectors.advance([step(LAST + 1, attempt=2)])
    assert said(detectors, later + 5, alive(later, attempt=2)) is None


def test_the_last_checkpoint_is_told_with_the_failure() -> None:
    detectors = finish("failed", "ValueError: boom")
    saved = {"kind": "checkpoint", "path": "/ck/90.pt", "seconds": 2, "ok": True}
    detectors.advance([carrier(90, saved, LAST)])
    found = condition(detectors, LAST + 11 * MINUTE, alive(LAST, ended=True))
    assert found is not None
    assert found.annotations["last_checkpoint"] == "/ck/90.pt (step 90)"


def test_a_failed_run_names_node_memory_and_the_chain_of_causes() -> None:
    detectors = trained("RunFailed")
    detectors.advance([place(0, "n7")])
    event = {
        "kind": "finish",
        "status": "failed",
        "error": "ValueError: bad batch",
        "causes": ["KeyError: 'image'"],
        "memory_bytes": 3 * 2**30,
        "gpu_memory_peak_bytes": 79 * 2**30,
    }
    detectors.advance([carrier(LAST, event, LAST)])
    detectors = restored(detectors, "RunFailed")
    found = condition(detectors, LAST + 11 * MINUTE, alive(LAST, ended=True))
    assert found is not None
    words = found.annotations
    assert words["cause"] == "rank 0: ValueError: bad batch because of KeyError: 'image'"
    assert words["node"] == "n7"
    assert words["memory"] == "at its peak 3.0 GiB of its process, 79.0 GiB on its GPU"


@pytest.mark.parametrize(
    ("sentence", "bad", "damaged", "expected"),
    [
        ("nothing was wrong before", None, "", "/ck/400.pt (step 400)"),
        ("NaN from step 450 on: 200 steps older", 450, "", "/ck/200.pt (step 200)"),
        ("the newest was found damaged", None, "/ck/400.pt", "/ck/300.pt (step 300)"),
    ],
)
def test_the_last_good_checkpoint_is_whole_finite_and_old_enough(
    sentence: str, bad: int | None, damaged: str, expected: str
) -> None:
    detectors = engine(["RunFailed"])
    for n in range(500):
        sick = bad is not None and n >= bad
        detectors.advance([step(n, loss=float("nan") if sick else 1.0)])
        if n and n % 100 == 0:
            event = {"kind": "checkpoint", "path": f"/ck/{n}.pt", "saved_step": n, "ok": True}
            event |= {"sha256": "a" * 64, "finite": True, "seconds": 2}
            detectors.advance([carrier(n, event, n)])
    if damaged:
        event = {"kind": "checkpoint", "path": damaged, "ok": False, "verified": False}
        detectors.advance([carrier(499, event, 499)])
    detectors.advance([carrier(500, {"kind": "finish", "status": "failed"}, 500)])
    found = condition(detectors, 500 + 11 * MINUTE, alive(500, ended=True))
    assert found is not None
    assert found.annotations["last_good_checkpoint"] == expected, sentence


def restored(detectors: RunDetectors, alert: str) -> RunDetectors:
    """The same, out of its snapshot."""
    after = engine([alert])
    after.restore(detectors.state())
    return after
