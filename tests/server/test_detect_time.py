"""What only time can tell: stalled and silent runs, and failed ones; the clock is a number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from gradwarden_server.detect.base import Liveness, RankLiveness
from gradwarden_server.detect.engine import RunDetectors
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
