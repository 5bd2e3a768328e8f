"""A host that does not answer is left alone; one that answers at all is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradwarden_server.notify.breaker import FAILURES, FIRST_SECONDS, Breakers, place
from gradwarden_server.notify.message import Failed, Sent
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.spec import Receiver
from tests.server.pager import SECOND, Answer, Desk, LocalReceiver, local_receiver, sqlite_url

NO_ANSWER = Failed("no answer in time", retry=True)
LATER = Failed("HTTP 429", retry=True, retry_after_seconds=30.0)
NEVER = Failed("HTTP 400", retry=False)


def broken() -> Breakers:
    breakers = Breakers({"pager": "far.example", "chat": "far.example", "boss": "boss.example"})
    for _ in range(FAILURES):
        assert breakers.allowed("pager", 4, 0) == 4
        breakers.note("pager", NO_ANSWER, 0)
    return breakers


def test_failures_in_a_row_open_the_circuit_of_all_behind_the_host() -> None:
    breakers = broken()
    assert [breakers.allowed(name, 4, SECOND) for name in ("pager", "chat", "boss")] == [0, 0, 4]
    assert breakers.open() == {
        "pager": "far.example does not answer (no answer in time)",
        "chat": "far.example does not answer (no answer in time)",
    }


def test_one_try_at_a_time_finds_out_whether_it_is_back() -> None:
    breakers = broken()
    back_ns = round(FIRST_SECONDS * SECOND)
    assert breakers.allowed("pager", 4, back_ns) == 1
    breakers.begins("pager")
    assert breakers.allowed("chat", 4, back_ns) == 0
    assert not breakers.note("pager", NO_ANSWER, back_ns)
    assert breakers.allowed("pager", 4, 2 * back_ns) == 0, "it waits twice as long now"
    assert breakers.allowed("pager", 4, 3 * back_ns) == 1
    assert breakers.note("pager", Sent("HTTP 200"), 3 * back_ns)
    assert breakers.allowed("chat", 4, 3 * back_ns) == 4
    assert breakers.open() == {}


@pytest.mark.parametrize("answer", [LATER, NEVER, Sent("HTTP 200")])
def test_a_host_that_answers_is_there(answer: Failed | Sent) -> None:
    breakers = Breakers({"pager": "far.example"})
    for _ in range(3 * FAILURES):
        breakers.note("pager", NO_ANSWER, 0)
        breakers.note("pager", answer, 0)
    assert breakers.allowed("pager", 4, 0) == 4


def test_hosts_are_told_apart_by_their_address() -> None:
    assert place(Receiver("a", "webhook", "https://far.example:8443/x?k=secret")) == (
        "far.example:8443"
    )
    assert place(Receiver("mail", "email")) == "mail"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(sqlite_url(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def pager() -> Iterator[LocalReceiver]:
    with local_receiver() as receiver:
        yield receiver


def test_messages_wait_for_a_broken_host_and_go_when_it_is_back(
    desk: Desk, pager: LocalReceiver
) -> None:
    pager.answers.extend([Answer(500)] * FAILURES)
    courier = desk.courier(
        connect([Receiver("pager", "webhook", pager.url, allow_private=True)]), jitter=0.0
    )
    desk.post("trigger")
    for number in range(1, FAILURES + 1):
        desk.until_tried(number)
        if number < FAILURES:
            desk.later(1)
    assert courier.broken() == {"pager": True}
    desk.post("another", key="g2")
    desk.later(FIRST_SECONDS)
    desk.until(sent=2)
    assert courier.broken() == {"pager": False}
    texts = [json.loads(request.body)["text"] for request in pager.requests]
    assert texts == ["trigger"] * FAILURES + ["trigger", "another"]
