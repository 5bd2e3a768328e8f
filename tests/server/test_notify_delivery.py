"""The courier against real receivers and a real SQLite file: retries, order, crashes."""

from __future__ import annotations

import base64
import json
import logging
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden_server.model import Queued
from gradwarden_server.notify.delivery import (
    HANDS,
    MAX_RETRY_AFTER_SECONDS,
    PATIENT_SECONDS,
    QUICK_TRIES,
    receipt_for,
    retry_delay_seconds,
)
from gradwarden_server.notify.message import Failed, Sender, Sent
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store.alerts.outbox import LEASE_NS, enqueue
from tests.server.pager import (
    PATIENCE,
    SECOND,
    Answer,
    Desk,
    LocalReceiver,
    local_receiver,
    message,
    sqlite_url,
)

DAY = 86_400 * SECOND


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(sqlite_url(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def pager() -> Iterator[LocalReceiver]:
    with local_receiver() as receiver:
        yield receiver


def to(**receivers: LocalReceiver) -> dict[str, Sender]:
    return connect(
        Receiver(name, "webhook", far.url, allow_private=True, timeout_seconds=30)
        for name, far in receivers.items()
    )


def texts(far: LocalReceiver) -> list[str]:
    return [json.loads(request.body)["text"] for request in far.requests]


def test_a_committed_message_is_delivered_and_written_down(
    desk: Desk, pager: LocalReceiver
) -> None:
    desk.courier(to(pager=pager))
    desk.post("hello")
    desk.until(sent=1)
    assert texts(pager) == ["hello"]
    assert desk.receipts() == [(True, "HTTP 200")]


def test_a_lost_wake_is_found_by_the_poll(desk: Desk, pager: LocalReceiver) -> None:
    desk.courier(to(pager=pager))
    desk.write(lambda conn: enqueue("default", conn, message(text="quiet"), desk.now_ns))
    desk.until(sent=1)


def test_a_failing_receiver_is_tried_again_with_the_same_id_and_order_holds(
    desk: Desk, pager: LocalReceiver
) -> None:
    pager.answers.extend([Answer(500), Answer(503), Answer(200)])
    desk.courier(to(pager=pager))
    desk.post("trigger", "resolve")
    desk.until_tried(1)
    assert texts(pager) == ["trigger"]
    desk.later(1)
    desk.until_tried(2)
    desk.later(2)
    desk.until(sent=2)
    assert texts(pager) == ["trigger", "trigger", "trigger", "resolve"]
    ids = [request.headers["webhook-id"] for request in pager.requests]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert [ok for ok, _ in desk.receipts()] == [False, False, True, True]


def test_retry_after_is_honoured(desk: Desk, pager: LocalReceiver) -> None:
    pager.answers.append(Answer(429, {"Retry-After": "100"}))
    desk.courier(to(pager=pager))
    desk.post("page")
    desk.until_tried(1)
    began = desk.now_ns
    desk.now_ns = began + 99 * SECOND
    assert not desk.outbox.due(desk.now_ns)
    desk.later(1)
    desk.until(sent=1)
    assert texts(pager) == ["page", "page"]


def test_a_gone_endpoint_is_not_asked_twice(desk: Desk, pager: LocalReceiver) -> None:
    pager.answers.append(Answer(410))
    desk.courier(to(pager=pager))
    desk.post("first", "second")
    desk.until(dead=1, sent=1)
    assert texts(pager) == ["first", "second"]


def test_a_receiver_that_never_answers_well_ends_in_a_dead_letter(
    desk: Desk, pager: LocalReceiver
) -> None:
    tries = QUICK_TRIES + len(PATIENT_SECONDS)
    pager.answers.extend([Answer(500)] * tries)
    desk.courier(to(pager=pager))
    desk.post("page")
    for number in range(1, tries):
        desk.until_tried(number)
        desk.later(86_400)
    desk.until(dead=1)
    assert len(pager.requests) == tries


def test_a_slow_receiver_holds_up_nobody_else(desk: Desk, pager: LocalReceiver) -> None:
    hold = threading.Event()
    pager.answers.extend([Answer(hold=hold)] * HANDS)
    with local_receiver() as chat:
        desk.courier(to(pager=pager, chat=chat))
        for number in range(HANDS + 2):
            desk.post("slow", key=f"g{number}")
        pager.wait(HANDS)
        desk.post("quick", receiver="chat")
        chat.wait(1)
        assert len(pager.requests) == HANDS
        hold.set()
        desk.until(sent=HANDS + 3)


def test_order_and_completeness_under_random_failures(desk: Desk, pager: LocalReceiver) -> None:
    chance = random.Random(7)
    for _ in range(30):
        # Every second one fails: hardly a message meets as many in a row as make it dead.
        pager.answers.append(Answer(200))
        pager.answers.append(Answer(chance.choice([500, 503, 429])))
    desk.courier(to(pager=pager), jitter=0.0)
    posted: dict[str, list[str]] = {f"g{number}": [] for number in range(4)}
    for number in range(24):
        key = f"g{number % 4}"
        posted[key].append(f"{key}:{number}")
        desk.post(posted[key][-1], key=key)
    while desk.quiet().outbox.counts() != {"sent": 24}:
        desk.later(90_000)
    got = texts(pager)
    for key, wanted in posted.items():
        mine = [text for text in got if text.startswith(key + ":")]
        once = [text for at, text in enumerate(mine) if at == 0 or mine[at - 1] != text]
        assert once == wanted


def test_a_database_that_is_away_for_a_while_loses_nothing(
    desk: Desk, pager: LocalReceiver
) -> None:
    courier = desk.courier(to(pager=pager))
    looked = threading.Event()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "outbox could not be read" in record.getMessage():
                looked.set()

    handler = Seen()
    logging.getLogger("gradwarden_server.notify.delivery").addHandler(handler)
    desk.database.write(
        lambda conn: enqueue("default", conn, message(text="page"), desk.now_ns)
    ).result(PATIENCE)
    desk.broken = True
    courier.wake()
    assert looked.wait(PATIENCE)
    desk.broken = False
    courier.wake()
    desk.until(sent=1)
    logging.getLogger("gradwarden_server.notify.delivery").removeHandler(handler)


def test_messages_of_a_receiver_that_left_the_file_are_dead_letters(
    desk: Desk, pager: LocalReceiver
) -> None:
    desk.post("lost", receiver="gone")
    desk.courier(to(pager=pager))
    desk.until(dead=1)
    assert desk.receipts() == [(False, "the receiver is not in the receivers file")]


class Raises:
    """A sender with a bug, whose exception holds a credential."""

    def send(self, queued: Queued, now_ns: int) -> Sent | Failed:
        raise RuntimeError("https://hooks.example/s3cr3t")


def test_a_bug_in_a_sender_loses_no_page_and_tells_no_secret(desk: Desk) -> None:
    desk.courier({"pager": Raises()})
    desk.post("page")
    desk.until_tried(1)
    assert desk.receipts() == [(False, "internal error: RuntimeError")]
    assert desk.outbox.counts() == {"waiting": 1}


def test_secrets_and_urls_stay_out_of_logs_and_receipts(
    desk: Desk, pager: LocalReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with local_receiver() as gone:
        urls = {"gone": gone.url + "/s3cr3t", "pager": pager.url + "/s3cr3t"}
    secret = b"k3y" * 9
    desk.courier(
        connect(
            Receiver(name, "webhook", url, secrets=(secret,), allow_private=True)
            for name, url in urls.items()
        )
    )
    desk.post("page", receiver="gone")
    desk.post("page")
    desk.until(sent=1, waiting=1)
    desk.until_tried(2)
    told = caplog.text + repr([vars(record) for record in caplog.records]) + repr(desk.receipts())
    assert "delivered" in told
    assert "s3cr3t" not in told
    assert "k3y" not in told
    assert base64.b64encode(secret).decode() not in told


def test_a_test_message_goes_past_the_outbox_and_leaves_nothing_open(
    desk: Desk, pager: LocalReceiver
) -> None:
    courier = desk.courier(to(pager=pager))
    receipt = courier.test("pager", "default")
    assert (receipt.ok, receipt.detail) == (True, "HTTP 200")
    pager.answers.append(Answer(500))
    receipt = courier.test("pager", "default")
    assert (receipt.ok, receipt.detail, receipt.retry_at_ns) == (False, "HTTP 500", None)
    sent = [json.loads(request.body) for request in pager.requests]
    assert [x["status"] for x in sent] == ["firing", "resolved", "firing"]
    assert {x["groupLabels"]["alertname"] for x in sent} == {"GradwardenTest"}
    assert desk.outbox.counts() == {}
    with pytest.raises(KeyError):
        courier.test("nobody", "default")


def test_a_stopped_courier_leaves_the_rest_in_the_outbox(desk: Desk, pager: LocalReceiver) -> None:
    courier = desk.courier(to(pager=pager))
    courier.stop()
    desk.post("page")
    assert desk.outbox.counts() == {"waiting": 1}
    desk.courier(to(pager=pager))
    desk.until(sent=1)


COMMIT_AND_DIE = """
import os, signal, sys
from tests.server.pager import add_run, message, open_database, run_facts, sick
from gradwarden_server.alerting.lifecycle import advance
from gradwarden_server.notify.routes import Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store.alerts.ledger import AlertLedger

database = open_database(sys.argv[1])
routing = Routing([Receiver("pager", "webhook", "https://pager.example")])

def evaluate(conn):
    row = add_run(conn)
    changes = advance({}, run_facts(row=row), [sick(step="40")], 1)
    AlertLedger(database.engine, routing.lanes).apply("default", conn, row, changes, 1)

database.write(evaluate).result()
os.kill(os.getpid(), signal.SIGKILL)
"""

SEND_AND_WAIT = """
import sys, threading
from tests.server.pager import message, open_database
from gradwarden_server.notify.delivery import Courier
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store.alerts.outbox import Outbox, enqueue

database = open_database(sys.argv[1])
database.write(lambda conn: enqueue("default", conn, message(text="page"), 1)).result()
senders = connect([Receiver("pager", "webhook", sys.argv[2], allow_private=True)])
Courier(database, Outbox(database.engine), senders, lambda: int(sys.argv[3])).start()
threading.Event().wait()
"""


def child(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=Path(__file__).parents[2]
    )


def test_a_kill_between_commit_and_delivery_delivers_after_the_restart(
    tmp_path: Path, pager: LocalReceiver
) -> None:
    url = sqlite_url(tmp_path)
    died = child(COMMIT_AND_DIE, url)
    assert died.wait(PATIENCE) == -signal.SIGKILL
    desk = Desk(url, new=False)
    desk.courier(to(pager=pager))
    desk.herald(Receiver("pager", "webhook", pager.url)).round(desk.now_ns)
    desk.until(sent=1)
    (alert,) = json.loads(pager.requests[0].body)["alerts"]
    assert (alert["status"], alert["annotations"]) == ("firing", {"step": "40"})
    desk.close()


def test_a_kill_before_the_receipt_delivers_again_under_the_same_id(
    tmp_path: Path, pager: LocalReceiver
) -> None:
    url = sqlite_url(tmp_path)
    hold = threading.Event()
    pager.answers.append(Answer(hold=hold))
    courier = child(SEND_AND_WAIT, url, pager.url, str(DAY))
    pager.wait(1)
    courier.kill()
    courier.wait(PATIENCE)
    hold.set()
    desk = Desk(url, new=False)
    desk.courier(to(pager=pager))
    assert not desk.outbox.due(DAY), "the dead process still has its lease"
    desk.later(LEASE_NS / SECOND)
    desk.until(sent=1)
    first, second = pager.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    desk.close()


def test_the_first_tries_fit_in_a_minute_and_the_rest_follow_the_standard() -> None:
    quick = [retry_delay_seconds(tries, lambda: 1.0) or 0.0 for tries in range(1, QUICK_TRIES)]
    assert quick == [1, 2, 4, 8]
    tries = range(QUICK_TRIES, QUICK_TRIES + len(PATIENT_SECONDS))
    assert [retry_delay_seconds(n, lambda: 1.0) for n in tries] == list(PATIENT_SECONDS)
    assert retry_delay_seconds(QUICK_TRIES + len(PATIENT_SECONDS), lambda: 1.0) is None


@given(
    tries=st.integers(1, 20),
    jitter=st.floats(0, 1),
    asked=st.none() | st.floats(0, 1e12),
    took=st.integers(-SECOND, 60 * SECOND),
)
def test_a_receipt_never_comes_too_soon_nor_waits_for_ever(
    tries: int, jitter: float, asked: float | None, took: int
) -> None:
    outcome = Failed("HTTP 503", retry=True, retry_after_seconds=asked)
    receipt = receipt_for(outcome, tries, DAY, DAY + took, lambda: jitter)
    assert receipt.duration_seconds >= 0
    if receipt.retry_at_ns is None:
        assert tries >= QUICK_TRIES + len(PATIENT_SECONDS)
        return
    wait = (receipt.retry_at_ns - receipt.at_ns) / SECOND
    assert min(asked or 0.0, MAX_RETRY_AFTER_SECONDS) - 1e-6 <= wait
    assert wait <= max(PATIENT_SECONDS)
