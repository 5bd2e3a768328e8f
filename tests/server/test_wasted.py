"""GPU-hours that came to nothing, case by case; and the report that tells of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pytest

from gradwarden_server.slo import report, wasted
from gradwarden_server.slo.budget import told_left
from gradwarden_server.slo.outcome import Ended, judge
from gradwarden_server.slo.wasted import REDONE, Attempt, Incident, Training

HOUR = 3600 * 1_000_000_000
MINUTE = HOUR // 60


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (0.614, "61 %"),
        (0.0, "0 %"),
        (-0.4, "gone, spent 1.4 times"),
        (-666.0, "gone, spent 667 times"),
    ],
)
def test_a_budget_that_is_gone_says_how_often_it_was_spent(left: float, words: str) -> None:
    assert told_left(left) == words


def training(attempts: Sequence[Attempt], *incidents: Incident, gpus: int = 8) -> Training:
    return Training("r", "mei", gpus, attempts, incidents)


def by_cause(*trainings: Training, since: int = 0, until: int = 100 * HOUR) -> dict[str, float]:
    return {w.cause: round(w.gpu_hours, 6) for w in wasted.wasted(trainings, since, until)}


def page(begin: int, found: int, over: int | None = None, cause: str = "Nan") -> Incident:
    return Incident(cause, "page", begin, found, over)


def ticket(begin: int, found: int, over: int | None = None, cause: str = "Slow") -> Incident:
    return Incident(cause, "ticket", begin, found, over)


FAILED = Attempt("failed", 0, 10 * HOUR, steps=1000)
GOOD = Attempt("finished", 0, 10 * HOUR, steps=1000)


@pytest.mark.parametrize(
    ("why", "held", "wanted"),
    [
        ("a healthy run wastes nothing", training([GOOD]), {}),
        ("a page counts until the stop", training([FAILED], page(8 * HOUR, 9 * HOUR)), {"Nan": 16}),
        (
            "a page that healed, until found",
            training([FAILED], page(2 * HOUR, 3 * HOUR, 4 * HOUR)),
            {"Nan": 8},
        ),
        (
            "a run that ended well, until found",
            training([GOOD], page(2 * HOUR, 3 * HOUR)),
            {"Nan": 8},
        ),
        (
            "a ticket counts until found",
            training([FAILED], ticket(2 * HOUR, 4 * HOUR)),
            {"Slow": 16},
        ),
        (
            "steps that were redone",
            training([Attempt("failed", 0, 10 * HOUR, 1000, 100), GOOD]),
            {REDONE: 8},
        ),
        (
            "an hour counts once, for what began first",
            training([FAILED], page(8 * HOUR, 9 * HOUR), page(7 * HOUR, 9 * HOUR, cause="First")),
            {"First": 24},
        ),
        (
            "a page goes before a ticket",
            training([FAILED], ticket(6 * HOUR, 10 * HOUR), page(8 * HOUR, 9 * HOUR)),
            {"Slow": 16, "Nan": 16},
        ),
        (
            "what was told goes before steps redone",
            training([Attempt("failed", 0, 10 * HOUR, 1000, 300)], page(9 * HOUR, 9 * HOUR)),
            {REDONE: 16, "Nan": 8},
        ),
    ],
)
def test_what_was_wasted(why: str, held: Training, wanted: dict[str, float]) -> None:
    assert by_cause(held) == wanted, why


def test_a_report_counts_what_lies_within_its_time() -> None:
    held = training([FAILED], page(4 * HOUR, 5 * HOUR))
    assert by_cause(held, since=9 * HOUR) == {"Nan": 8}
    assert by_cause(held, until=5 * HOUR) == {"Nan": 8}
    assert by_cause(held, since=11 * HOUR) == {}
    assert wasted.held(held, 5 * HOUR, 7 * HOUR) == 16


@pytest.mark.parametrize(
    ("status", "minutes", "waited_minutes", "good", "reason"),
    [
        ("finished", 20, 0, True, "finished"),
        ("finished", 9, 0, None, "shorter than ten minutes"),
        ("failed", 20, 9, "open", ""),
        ("failed", 20, 11, False, "failed"),
        ("cancelled", 20, 0, None, "cancelled"),
        ("preempted", 20, 23 * 60, "open", ""),
        ("preempted", 20, 25 * 60, False, "preempted, and not resumed within a day"),
        ("running", 20, 59, "open", ""),
        ("running", 20, 61, False, "no sign of life for an hour"),
    ],
)
def test_how_a_run_counts(
    status: str, minutes: int, waited_minutes: int, good: object, reason: str
) -> None:
    end = minutes * MINUTE
    run = Ended(status, 0, None if status == "running" else end, end)
    found = judge(run, end + waited_minutes * MINUTE)
    if good == "open":
        assert found is None
    else:
        assert found is not None
        assert (found.good, found.reason, found.ended_ns) == (good, reason, end)


def told(cause: str = "NonFiniteGradient") -> report.Report:
    times = report.Times(2, 3.5, 90.0)
    return report.Report(
        project="vision",
        since_ns=0,
        until_ns=7 * 24 * HOUR,
        incidents=5,
        incidents_before=9,
        pages=4,
        tickets=1,
        pages_acted=3,
        detect=times,
        acknowledge=times,
        resolve=report.Times(0, None, None),
        currency="USD",
        wasted=report.Spent("wasted", 412.0, 1030.0),
        held=report.Spent("held", 824.0, 2060.0),
        causes=[report.Spent(cause, 400.0, 1000.0, 3)],
        owners=[report.Spent("mei", 412.0, None, 5)],
        models=[
            report.ModelCost("vit", 4, 2, 800.0, 2000.0),
            report.ModelCost("moe", 1, 0, 24.0, None),
        ],
        runs=38,
        runs_watched=30,
        runs_partly=8,
        objectives=[report.Objective("Finite steps", 0.61, "lasts")],
    )


def test_a_report_reads_as_text_page_and_sheet() -> None:
    text = report.markdown(told())
    assert "# Training report of vision: 1970-01-01 to 1970-01-08" in text
    assert "5 incidents (before: 9), 412.0 GPU-hours wasted (1,030.00 USD)" in text
    assert "| NonFiniteGradient | 3 | 400.0 | 1000.00 USD |" in text
    assert "| vit | 4 | 2 | 800.0 | 1000.00 USD |" in text
    assert "| to detect | 2 | 3.5 s | 1.5 min |" in text
    rows = list(csv.DictReader(io.StringIO(report.sheet(told()))))
    assert {
        "section": "Coverage",
        "name": "runs partly watched",
        "measure": "value",
        "value": "8",
    } in rows
    assert report.page(told()).count("<table>") == text.count("\n## ")


def test_names_of_strangers_stay_text() -> None:
    bad = told("<b>|x")
    assert "<script>" not in report.page(told("<script>alert(1)</script>"))
    assert "| \\<b\\>\\|x | 3 |" in report.markdown(bad)
    assert report.sheet(told("=1+1")).count("'=1+1") > 0
    assert report.sheet(told("\t=1+1")).count("'\t=1+1") > 0


def test_a_week_is_monday_to_monday_where_its_people_are() -> None:
    sunday_ns = 1_772_323_200 * 1_000_000_000  # 2026-03-01T00:00Z
    since, until = report.week_before(sunday_ns)
    assert until - since == 7 * 24 * HOUR
    assert until == sunday_ns - 6 * 24 * HOUR
    _, berlin = report.week_before(sunday_ns, "Europe/Berlin")
    assert berlin == until - HOUR
