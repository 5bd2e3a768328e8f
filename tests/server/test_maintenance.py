"""Planned work holds messages back once or every week, by the clocks of any time zone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from datetime import time as TimeOfDay
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.matchers import parse
from gradwarden_server.model import Maintenance
from gradwarden_server.weekly import Weekly
from tests.server.pager import LocalReceiver, eventually, local_receiver
from tests.server.test_silences import _RECEIVERS, alert_of, poison, told_of
from tests.server.traffic import problem
from tests.service import Service, gradwarden

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # whose clocks move by half an hour
    "Asia/Kathmandu",
    "Pacific/Apia",  # which had no 30 December 2011
    "America/Sao_Paulo",
    "Asia/Tehran",
)
SPRING = datetime(2026, 3, 29, tzinfo=ZoneInfo("Europe/Berlin"))


def ns(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) * SECOND


def weeklies() -> st.SearchStrategy[Weekly]:
    return st.builds(
        Weekly,
        days=st.frozensets(st.integers(0, 6), min_size=1),
        at=st.builds(TimeOfDay, st.integers(0, 23), st.sampled_from((0, 15, 30, 59))),
        seconds=st.integers(60, 7 * 86_400),
        zone=st.sampled_from(ZONES),
    )


# Through many changes of clocks, and 2011 for Samoa's missing day.
MOMENTS = st.integers(
    ns(datetime(2011, 1, 1, tzinfo=UTC)) // SECOND, ns(datetime(2027, 12, 31, tzinfo=UTC)) // SECOND
).map(lambda seconds: seconds * SECOND)


def begins(weekly: Weekly, since_ns: int, until_ns: int) -> list[int]:
    """The slow twin: every day of the calendar, whether its beginning lies in the time."""
    zone = ZoneInfo(weekly.zone)
    day = datetime.fromtimestamp(since_ns // SECOND, UTC).date() - timedelta(days=3)
    last = datetime.fromtimestamp(until_ns // SECOND, UTC).date() + timedelta(days=3)
    found = []
    while day <= last:
        if day.weekday() in weekly.days:
            found.append(ns(datetime.combine(day, weekly.at, tzinfo=zone).astimezone(UTC)))
        day += timedelta(days=1)
    return sorted(at for at in found if since_ns <= at <= until_ns)


@settings(max_examples=300, deadline=None)
@given(weeklies(), MOMENTS)
def test_windows_are_those_that_the_calendar_has(weekly: Weekly, moment: int) -> None:
    length = weekly.seconds * SECOND
    start, end = weekly.following(moment)
    assert end - start == length, "a window lasts as long as it says, whatever the clocks do"
    assert start == min(begins(weekly, moment + 1, moment + 20 * 24 * HOUR))
    open_ = [at for at in begins(weekly, moment - length, moment) if at > moment - length]
    covering = weekly.covering(moment)
    assert (covering is not None) == bool(open_)
    if covering is not None:
        assert covering == (max(open_), max(open_) + length)
    assert weekly.covering(start) == (start, end)
    local = datetime.fromtimestamp(start // SECOND, ZoneInfo(weekly.zone))
    jumped = local.replace(fold=0).astimezone(UTC) != local.astimezone(UTC)
    gap = local.time().replace(second=0) != weekly.at
    assert not jumped, "of a time that comes twice the first counts"
    assert gap or local.weekday() in weekly.days


def test_a_window_keeps_its_time_on_the_wall_when_clocks_change() -> None:
    weekly = Weekly(frozenset({6}), TimeOfDay(4, 0), 3600, "Europe/Berlin")
    before, _ = weekly.following(ns(SPRING - timedelta(days=8)))
    after, _ = weekly.following(ns(SPRING - timedelta(days=1)))
    assert datetime.fromtimestamp(before // SECOND, UTC).hour == 3
    assert datetime.fromtimestamp(after // SECOND, UTC).hour == 2
    assert after - before == 7 * 24 * HOUR - HOUR
    skipped = Weekly(frozenset({6}), TimeOfDay(2, 30), 3600, "Europe/Berlin")
    start, _ = skipped.following(ns(SPRING - timedelta(days=1)))
    assert datetime.fromtimestamp(start // SECOND, ZoneInfo("Europe/Berlin")).hour == 3


def planned(**more: Any) -> Maintenance:
    made: dict[str, Any] = {
        "id": 3,
        "project": "default",
        "matchers": (parse("cluster=a"),),
        "starts_ns": 100 * HOUR,
        "ends_ns": 110 * HOUR,
        "weekly": None,
        "author": "sre",
        "comment": "storage",
    }
    return Maintenance(**made | more)


def test_work_holds_back_what_it_names_while_it_lasts() -> None:
    once = planned()
    labels = {"cluster": "a"}
    assert [once.covers(labels, at * HOUR) for at in (99, 100, 109, 110)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert not once.covers({"cluster": "b"}, 105 * HOUR)
    assert [once.state(at * HOUR) for at in (99, 105, 111)] == ["scheduled", "active", "ended"]
    stopped = planned(ended_ns=104 * HOUR)
    assert [stopped.covers(labels, at * HOUR) for at in (103, 104)] == [True, False]
    # The epoch was a Thursday; this comes every Friday from 02:00 to 06:00 UTC.
    weekly = Weekly(frozenset({4}), TimeOfDay(2, 0), 4 * 3600, "UTC")
    often = planned(starts_ns=3 * 24 * HOUR, ends_ns=16 * 24 * HOUR, weekly=weekly)
    friday = 24 * HOUR
    assert not often.covers(labels, friday + 3 * HOUR), "it begins to hold behind that Friday"
    assert often.covers(labels, friday + 7 * 24 * HOUR + 3 * HOUR)
    assert often.next_window(friday + 14 * 24 * HOUR + 3 * HOUR) is None
    assert often.state(friday + 14 * 24 * HOUR + 7 * HOUR) == "ended"


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    with local_receiver() as listening:
        yield listening


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, receiver: LocalReceiver) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("maintenance")
    running = Service(folder, receivers=_RECEIVERS.format(url=receiver.url))
    yield running
    running.close()


def test_a_page_waits_for_the_end_of_planned_work(house: Service, receiver: LocalReceiver) -> None:
    now = datetime.now(UTC)
    body = {
        "matchers": ["run=planned"],
        "comment": "a switch is changed",
        "weekly": {
            "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
            "at": f"{now - timedelta(hours=1):%H:%M}",
            "duration_seconds": 4 * 3600,
            "time_zone": "UTC",
        },
    }
    made = house.call("POST", "/v1/maintenance", json=body)
    assert made.status_code == 201, made.text
    assert (made.json()["state"], made.json()["weekly"]) == ("active", body["weekly"])
    number = made.json()["id"]
    poison(house, "planned")
    assert alert_of(house, "planned")["muted"] == f"maintenance {number}"
    poison(house, "unplanned")
    eventually(lambda: told_of(receiver, "unplanned"))
    assert told_of(receiver, "planned") == []
    house.restart()
    assert alert_of(house, "planned")["muted"], "a restart forgets no window"
    over = house.call("DELETE", f"/v1/maintenance/{number}")
    assert over.json()["state"] == "ended"
    eventually(lambda: told_of(receiver, "planned"))
    detail = house.get(f"/v1/alerts/{alert_of(house, 'planned')['id']}")
    texts = [line["text"] for line in detail["timeline"] if line["kind"] == "unmuted"]
    assert texts == [f"over: maintenance {number} of loopback: a switch is changed"]


def test_planned_work_by_command(house: Service) -> None:
    at = ("--url", house.url)
    made = gradwarden(
        "maintenance", "add", "cluster=a", "--days", "sat,sun", "--at", "02:00", "--for", "4h",
        "--zone", "Europe/Berlin", "--comment", "storage moves", *at,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    number = made.stdout.split()[1].rstrip(",")
    assert "sat,sun 02:00 Europe/Berlin for 4 h" in gradwarden("maintenance", "list", *at).stdout
    once = gradwarden(
        "maintenance", "add", "queue=gpu", "--from", f"{time.gmtime().tm_year + 1}-06-01T02:00",
        "--zone", "Europe/Berlin", "--for", "3h", "--comment", "upgrade", *at,
    )  # fmt: skip
    assert once.returncode == 0, once.stderr
    assert "-06-01T00:00:00Z to" in once.stdout
    assert gradwarden("maintenance", "end", number, *at).returncode == 0
    assert house.get(f"/v1/maintenance/{number}")["state"] == "ended"


WEEKLY = {"days": ["sat"], "at": "02:00", "duration_seconds": 3600, "time_zone": "UTC"}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({}, "ends_at"),
        ({"duration_seconds": 60, "matchers": ["run=~.*"]}, "matchers"),
        ({"ends_at": "2001-01-01T00:00:00Z"}, "ends_at"),
        ({"duration_seconds": 60, "starts_at": "9999-12-31T00:00:00Z"}, "starts_at"),
        ({"weekly": WEEKLY, "duration_seconds": 60}, "duration_seconds"),
        ({"weekly": WEEKLY | {"time_zone": "Mars/Olympus"}}, "time_zone"),
        ({"weekly": WEEKLY | {"time_zone": "../../etc/passwd"}}, "time_zone"),
        ({"weekly": WEEKLY | {"at": "24:00"}}, "at"),
        ({"weekly": WEEKLY | {"days": []}}, "days"),
        ({"weekly": WEEKLY | {"duration_seconds": 8 * 86_400}}, "duration_seconds"),
    ],
)
def test_a_wrong_plan_is_refused_and_changes_nothing(
    house: Service, more: dict[str, Any], field: str
) -> None:
    before = house.get("/v1/maintenance")
    body = {"matchers": ["run=x"], "comment": "c"} | more
    refused = house.call("POST", "/v1/maintenance", json=body)
    assert field in problem(refused, 400, "malformed")["detail"]
    assert house.get("/v1/maintenance") == before
    problem(house.call("DELETE", "/v1/maintenance/999999"), 404, "not-found")
    other = {"Gradwarden-Project": "elsewhere"}
    assert house.get("/v1/maintenance", headers=other)["items"] == []
