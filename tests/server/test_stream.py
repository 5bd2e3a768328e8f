"""News over an open connection: what changed, in order, to everybody who may read, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gradwarden_server.api.news import changed
from tests.server.traffic import batch, begin, frame, problem, send
from tests.service import Service, gradwarden


@dataclass
class Told:
    """One message."""

    id: str
    event: str
    data: dict[str, Any]
    size: int


@contextmanager
def listening(service: Service, topics: str, after: str | None = None) -> Iterator[Iterator[Told]]:
    """The messages of a stream, as they arrive."""
    headers = {"Last-Event-ID": after} if after else {}
    if service.token:
        headers["Authorization"] = f"Bearer {service.token}"
    address = f"{service.url}/v1/stream"
    with httpx.stream(
        "GET", address, params={"topics": topics}, headers=headers, timeout=30
    ) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer)


def messages(answer: httpx.Response) -> Iterator[Told]:
    fields: dict[str, str] = {}
    size = 0
    for line in answer.iter_lines():
        size += len(line) + 1
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Told(fields["id"], fields["event"], json.loads(fields["data"]), size)
            fields, size = {}, 0


def until(told: Iterator[Told], true: Callable[[Told], bool]) -> Told:
    """The next message of which it is so."""
    return next(message for message in told if true(message))


def test_a_run_that_goes_on_is_told_in_a_line_and_never_its_past(service: Service) -> None:
    begin(service, "moving")
    send(service, batch("moving", [frame(seq) for seq in range(1, 201)]))
    with listening(service, "run:moving") as told:
        assert next(told).event == "resync"
        send(service, batch("moving", [frame(201)]))
        news = until(told, lambda m: m.event == "run.update" and m.data["items"][0]["step"] == 200)
    assert news.data["topic"] == "run:moving"
    assert news.data["gone"] == []
    assert "spark" not in news.data["items"][0]
    assert news.size < 1000


def test_the_fleet_is_told_of_the_runs_that_changed_and_of_no_other(service: Service) -> None:
    for run in ("still", "restless"):
        begin(service, run)
        send(service, batch(run, [frame(1)]))
    with listening(service, "fleet") as told:
        next(told)
        send(service, batch("restless", [frame(2), frame(3)]))
        news = until(
            told,
            lambda m: any(i["run"] == "restless" and i["step"] == 2 for i in m.data["items"]),
        )
        begin(service, "newcomer")
        until(told, lambda m: "newcomer" in [item["run"] for item in m.data["items"]])
    assert [item["step"] for item in news.data["items"] if item["run"] == "restless"] == [2]


def test_an_alert_is_told_when_it_fires_and_when_somebody_takes_it(service: Service) -> None:
    begin(service, "ill")
    with listening(service, "alerts,run:ill") as told:
        next(told)
        send(service, batch("ill", [frame(1), frame(2, bad_row=1), frame(3, bad_row=1)]))
        mine = until(
            told,
            lambda m: (
                m.event == "alert.update"
                and any(i["run"] == "ill" and i["state"] == "firing" for i in m.data["items"])
            ),
        )
        alert = next(item for item in mine.data["items"] if item["run"] == "ill")
        assert alert["quiet"] is False
        assert mine.data["counts"]["firing"] >= 1
        service.call("POST", f"/v1/alerts/{alert['id']}/ack").raise_for_status()
        until(
            told,
            lambda m: (
                m.event == "alert.update"
                and any(i["id"] == alert["id"] and i["quiet"] for i in m.data["items"])
            ),
        )


def test_a_stream_goes_on_after_the_last_message_that_was_seen(service: Service) -> None:
    begin(service, "resumed")
    with listening(service, "run:resumed") as told:
        start = next(told)
        send(service, batch("resumed", [frame(1)]))
        seen = until(told, lambda m: m.data["items"][0]["step"] == 0)
    with listening(service, "run:resumed") as other:
        next(other)
        send(service, batch("resumed", [frame(2)]))
        until(other, lambda m: m.data["items"][0]["step"] == 1)
    with listening(service, "run:resumed", after=seen.id) as told:
        again = next(told)
        assert (again.event, again.id.partition(".")[0]) == (
            "run.update",
            start.id.partition(".")[0],
        )
    with listening(service, "run:resumed", after="0000abcd.7") as told:
        assert next(told).event == "resync", "another life of the service told that one"


def test_after_a_restart_everything_is_to_be_read_anew(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        begin(service, "r")
        with listening(service, "fleet") as told:
            seen = next(told)
        service.restart()
        with listening(service, "fleet", after=seen.id) as told:
            again = next(told)
        assert again.event == "resync"
        assert again.id.partition(".")[0] != seen.id.partition(".")[0]
    finally:
        service.close()


def test_open_streams_do_not_hold_up_the_end_of_the_service(tmp_path: Path) -> None:
    service = Service(tmp_path)
    with listening(service, "fleet,alerts") as told:
        next(told)
        assert service.stop() == 0
        assert list(told) == []
    assert "Cancel" not in service.log_text()


def test_only_so_many_streams_are_open_and_one_that_left_makes_room(tmp_path: Path) -> None:
    service = Service(tmp_path, env={"GRADWARDEN_MAX_STREAMS": "1"})
    try:
        with listening(service, "fleet") as told:
            next(told)
            refused = service.call("GET", "/v1/stream?topics=fleet")
            said = problem(refused, 503, "unavailable")
            assert "1 streams are open" in said["detail"]
            assert refused.headers["retry-after"] == "15"
        while True:  # the service hears of the leaving in its own time
            with httpx.stream("GET", f"{service.url}/v1/stream?topics=fleet") as answer:
                if answer.status_code == 200:
                    break
    finally:
        service.close()


@pytest.mark.parametrize(
    ("topics", "said"),
    [("", "name 1 to 32"), ("weather", "'weather'"), ("run:a b", "any of fleet")],
)
def test_a_topic_that_nobody_tells_is_refused(service: Service, topics: str, said: str) -> None:
    refused = service.call("GET", "/v1/stream", params={"topics": topics})
    document = problem(refused, 400, "malformed")
    assert document["field"] == "topics"
    assert said in document["detail"]


def test_a_stranger_hears_nothing_and_a_project_only_of_itself(tmp_path: Path) -> None:
    db = {"GRADWARDEN_DB": f"sqlite:///{tmp_path / 'gradwarden.sqlite'}"}
    made = gradwarden("token", "create", "--scope", "admin", "--name", "x", env=db)
    service = Service(tmp_path, host="0.0.0.0")
    try:
        problem(service.call("GET", "/v1/stream?topics=fleet"), 401, "unauthenticated")
        service.token = made.stdout.strip()
        asked = service.call("GET", "/v1/stream?topics=fleet&project=other")
        problem(asked, 403, "forbidden-project")
        with listening(service, "fleet") as told:
            assert next(told).event == "resync"
    finally:
        service.close()


def test_one_process_tells_what_another_took_in(postgres_url: str, tmp_path: Path) -> None:
    one, two = (Service(tmp_path / name, db=postgres_url) for name in ("one", "two"))
    try:
        begin(one, "shared")
        with listening(two, "run:shared,alerts") as told:
            next(told)
            bad = [frame(2, bad_row=1), frame(3, bad_row=1)]
            send(one, batch("shared", [frame(1), *bad]))
            until(told, lambda m: m.event == "run.update" and m.data["items"][0]["step"] == 2)
            until(told, lambda m: m.event == "alert.update" and m.data["counts"]["firing"] >= 1)
    finally:
        one.close()
        two.close()


def test_silence_that_grows_is_no_news() -> None:
    silent = {"run": "r", "health": "silent", "reason": "nothing heard for 61 s"}
    later = {**silent, "reason": "nothing heard for 62 s"}
    assert changed("fleet", {"r": silent}, {"r": later}) is None
    assert changed("fleet", {"r": silent}, {"r": {**later, "health": "ok"}}) is not None
    gone = changed("fleet", {"r": silent}, {})
    assert gone is not None
    assert gone.data["gone"] == ["r"]
