"""The report of each week reaches its receiver once, whoever was alive when it was due."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.notify import spec, weekly
from gradwarden_server.notify.weekly import Weekly
from tests.server.pager import eventually, local_receiver
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, gradwarden

DAY_NS = 86_400 * 1_000_000_000
RECEIVERS = spec.parse(
    {
        "receivers": [
            {"name": "chat", "type": "webhook", "url": "https://chat.example/hook"},
            {"name": "am", "type": "alertmanager", "url": "https://am.example"},
        ]
    },
    "receivers.yaml",
    {},
)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("schedule", "now", "week"),
    [
        (Weekly("chat"), "2026-11-16T07:59:59", None),
        (Weekly("chat"), "2026-11-16T08:00:00", "2026-11-09"),
        (Weekly("chat"), "2026-11-19T07:59:00", "2026-11-09"),
        (Weekly("chat"), "2026-11-19T08:00:00", None),
        (Weekly("chat", weekday=4, hour=17), "2026-11-20T17:30:00", "2026-11-09"),
        # Summer time ended on 2026-10-25: eight in Berlin is seven in UTC from then on.
        (Weekly("chat", timezone="Europe/Berlin"), "2026-10-26T07:00:00", "2026-10-19"),
        (Weekly("chat", timezone="Europe/Berlin"), "2026-10-26T06:59:00", None),
        (Weekly("chat", timezone="Europe/Berlin"), "2026-10-19T06:00:00", "2026-10-12"),
    ],
)
def test_when_a_report_is_due(schedule: Weekly, now: str, week: str | None) -> None:
    assert schedule.due(at(now)) == week


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("monday", "expected receiver"),
        ({"receiver": "nobody"}, "receiver: 'nobody'; there are chat, am"),
        ({"receiver": "am"}, "'am' takes alerts alone"),
        ({"receiver": "chat", "weekday": "someday"}, "weekday: 'someday'; one of monday"),
        ({"receiver": "chat", "hour": 24}, "hour: 24; a whole number"),
        ({"receiver": "chat", "timezone": "Mars/Base"}, "timezone: 'Mars/Base'"),
        ({"receiver": "chat", "day": 1}, "day: unknown field"),
    ],
)
def test_a_mistake_in_the_schedule_is_told(held: Any, words: str) -> None:
    with pytest.raises(spec.ReceiversError) as told:
        weekly.parse(held, "receivers.yaml", RECEIVERS)
    assert all(line.startswith("receivers.yaml: report: ") for line in told.value.mistakes)
    assert words in str(told.value)


def test_check_reads_the_schedule(tmp_path: Path) -> None:
    path = tmp_path / "receivers.yaml"
    path.write_text(
        "receivers:\n  - {name: chat, type: webhook, url: https://chat.example/hook}\n"
        "report: {receiver: chat, hour: 25}\n"
    )
    done = gradwarden("check", "receivers", str(path))
    assert done.returncode == 1
    assert "report: hour: 25" in done.stderr
    path.write_text(path.read_text().replace("25", "9"))
    assert gradwarden("check", "receivers", str(path)).returncode == 0


@pytest.mark.parametrize(
    "store_url", [pytest.param("sqlite", marks=pytest.mark.full), "postgresql"], indirect=True
)
def test_a_report_is_sent_once_over_restarts_and_processes(store_url: str, tmp_path: Path) -> None:
    """Due since this morning: every process that starts finds it due, and one of them sends it."""
    today = weekly.DAYS[datetime.now(UTC).weekday()]
    with local_receiver() as chat:
        receivers = (
            f"receivers:\n  - name: chat\n    type: webhook\n    url: {chat.url}\n"
            "    allow_private: true\n    severities: [ticket]\n"
            f"report: {{receiver: chat, weekday: {today}, hour: 0}}\n"
        )
        first = Service(tmp_path / "a", receivers=receivers, db=store_url)
        services = [first]
        try:
            old_ns = time.time_ns() - 8 * DAY_NS
            begin(first, "r1", started_ns=old_ns)
            send(first, batch("r1", [frame(n + 1, time_ns=old_ns + n) for n in range(3)]))
            told = [json.loads(r.body) for r in chat.wait(1)]
            if first.db.startswith("postgresql"):
                services.append(Service(tmp_path / "b", receivers=receivers, db=store_url))
            first.restart()
            page = eventually(lambda: first.get("/v1/runs")["items"])
            assert page
            begin(first, "sick")
            send(first, batch("sick", [frame(1), frame(2, bad_row=1)]))
            # Something later went through the same line, so a second report would be here.
            eventually(lambda: first.get("/v1/alerts?state=firing")["items"])
            # A receipt that the kill took is asked for again, under the same id.
            ids = {r.headers["webhook-id"] for r in chat.requests if b"WeeklyReport" in r.body}
            assert len(ids) == 1
        finally:
            for service in services:
                service.close()
    [report] = told[0]["alerts"]
    assert report["labels"]["alertname"] == "WeeklyReport"
    assert report["labels"]["project"] == "default"
    assert "GPU-hours wasted" in report["annotations"]["summary"]
    assert report["annotations"]["description"].startswith("# Training report of default")
