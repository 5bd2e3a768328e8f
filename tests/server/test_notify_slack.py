"""What Slack shows, against a stand-in that keeps its contract."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.model import Alert, Notification, Queued
from gradwarden_server.notify.message import Failed, Outcome, Sent
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.post import Poster
from gradwarden_server.notify.slack import Options, Pace, SlackBot, SlackHook
from gradwarden_server.notify.spec import ReceiversError, parse
from gradwarden_server.notify.threads import HeldThreads, Threads
from gradwarden_server.store.alerts.threads import ReceiverThreads
from tests.server.fake_slack import CHANNEL, HOOK, TOKEN, FakeSlack, fake_slack
from tests.server.pager import PATIENCE, SECOND, eventually, firing, open_database, sqlite_url
from tests.server.test_silences import poison
from tests.service import Service, gradwarden

NOW = 1_800_000_000 * SECOND
GROUP = {"project": "default", "run": "r1", "alertname": "NonFiniteGradient"}


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> Iterator[FakeSlack]:
    with fake_slack(clock) as slack:
        yield slack


def bot(
    fake: FakeSlack, clock: Clock, threads: Threads | None = None, token: str = TOKEN
) -> SlackBot:
    poster = Poster(fake.url, allow_private=True, timeout_seconds=PATIENCE)
    pace = Pace(clock=clock, sleep=clock.sleep)
    return SlackBot(poster, Options(token, "#ops"), threads or HeldThreads(), pace)


def message(*alerts: Alert) -> Queued:
    payload = body("ops", GROUP, alerts, "https://gw.example")
    return Queued(1, Notification("default", "ops", group_key(GROUP), "page", payload), 1, 1, NOW)


def send(sender: SlackBot | SlackHook, *alerts: Alert) -> Outcome:
    return sender.send(message(*alerts), NOW)


def over(alert: Alert) -> Alert:
    return replace(alert, state="resolved", resolved_ns=2 * SECOND)


def acked(alert: Alert) -> Alert:
    return replace(alert, annotations={**alert.annotations, "acknowledged_by": "ada"})


def colour(told: dict[str, Any]) -> str:
    found: str = told["attachments"][0]["color"]
    return found


def text(told: dict[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False)


def test_an_incident_is_one_thread_and_its_head_says_what_holds(
    fake: FakeSlack, clock: Clock
) -> None:
    sender = bot(fake, clock)
    alert = firing(
        summary="NaN in <fc2>",
        layer="fc2",
        step="40",
        first_action="Resume.",
        runbook_url="https://gw.example/runbooks/x",
        dashboard_url="https://gw.example/runs/r1",
        ack_url="https://gw.example/l/a",
        silence_url="https://gw.example/l/b",
    )
    assert send(sender, alert) == Sent("HTTP 200: message 1800000000.000001")
    (head,) = fake.messages.values()
    first = head.body
    assert first["text"] == "[FIRING] NonFiniteGradient on r1: NaN in &lt;fc2&gt;"
    assert "*First:* Resume." in text(first)
    buttons = first["attachments"][0]["blocks"][-1]["elements"]
    assert [(b["text"]["text"], b["url"]) for b in buttons] == [
        ("Acknowledge", "https://gw.example/l/a"),
        ("Silence 1 h", "https://gw.example/l/b"),
        ("Runbook", "https://gw.example/runbooks/x"),
        ("Open", "https://gw.example/runs/r1"),
    ]
    send(sender, acked(alert))
    assert "Acknowledged by ada" in text(head.body)
    assert head.replies[0]["reply_broadcast"] is False
    send(sender, over(alert))
    assert [reply["text"][:14] for reply in head.replies] == ["[ACKNOWLEDGED]", "[RESOLVED] Non"]
    assert "Resolved" in text(head.body)
    assert len({colour(first), colour(head.replies[0]), colour(head.body)}) == 3
    assert list(fake.messages) == [head.ts]
    send(sender, alert)
    assert len(fake.messages) == 2, "what comes back is a new incident"


def test_more_alerts_of_a_group_are_told_under_it_and_in_the_channel(
    fake: FakeSlack, clock: Clock
) -> None:
    sender = bot(fake, clock)
    one, two = firing(summary="a"), firing(name="NonFiniteLoss", summary="b")
    send(sender, one)
    send(sender, one, two)
    (head,) = fake.messages.values()
    assert head.replies[0]["reply_broadcast"] is True
    assert "NonFiniteLoss on r1: b" in text(head.replies[0])
    assert "NonFiniteGradient and 1 more on r1" in text(head.body)


def test_a_second_stands_between_messages(fake: FakeSlack, clock: Clock) -> None:
    sender = bot(fake, clock)
    alert = firing()
    send(sender, alert)
    send(sender, over(alert))
    assert clock.waits == [1.0, 1.0]
    assert fake.limited == 0


def test_when_it_is_limited_it_is_asked_again_when_it_says(fake: FakeSlack, clock: Clock) -> None:
    send(bot(fake, clock), firing())
    outcome = send(bot(fake, clock), firing(run="r2"))  # another process, of another pace
    assert outcome == Failed("HTTP 429", retry=True, retry_after_seconds=1.0)
    assert fake.limited == 1


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        ("internal_error", True),
        ("service_unavailable", True),
        ("channel_not_found", False),
        ("not_in_channel", False),
        ("token_revoked", False),
        ("Look at <https://evil.example>", False),
    ],
)
def test_what_it_refuses_with_200_is_no_success(
    fake: FakeSlack, clock: Clock, error: str, retry: bool
) -> None:
    fake.fail(error)
    told = error if "<" not in error else "an answer that is not Slack's"
    assert send(bot(fake, clock), firing()) == Failed(f"HTTP 200: {told}", retry)


def test_a_wrong_token_is_final(fake: FakeSlack, clock: Clock) -> None:
    assert send(bot(fake, clock, token="xoxb-old"), firing()) == Failed(
        "HTTP 200: invalid_auth", retry=False
    )


def test_a_try_that_failed_half_way_is_repeated_without_a_second_thread(
    fake: FakeSlack, clock: Clock
) -> None:
    sender = bot(fake, clock)
    alert = firing()
    send(sender, alert)
    fake.fail("internal_error")
    assert isinstance(send(sender, over(alert)), Failed)
    assert isinstance(send(sender, over(alert)), Sent)
    (head,) = fake.messages.values()
    assert (head.edits, len(head.replies)) == (1, 1)


def test_an_incident_that_somebody_deleted_is_told_anew(fake: FakeSlack, clock: Clock) -> None:
    sender = bot(fake, clock)
    alert = firing()
    send(sender, alert)
    fake.messages.clear()
    assert isinstance(send(sender, acked(alert)), Sent)
    assert len(fake.messages) == 1


def test_an_incident_too_old_to_be_changed_keeps_its_thread(fake: FakeSlack, clock: Clock) -> None:
    sender = bot(fake, clock)
    alert = firing()
    send(sender, alert)
    fake.fail("edit_window_closed")
    assert isinstance(send(sender, over(alert)), Sent)
    (head,) = fake.messages.values()
    assert (head.edits, len(head.replies)) == (0, 1)


def test_limits_are_kept_whatever_the_alerts_say(fake: FakeSlack, clock: Clock) -> None:
    sender = bot(fake, clock)
    huge = "<&>" * 4000
    notes = dict.fromkeys(("summary", "layer", "node", "step", "first_action"), huge)
    notes |= dict.fromkeys(("ack_url", "runbook_url"), "https://gw.example/" + "x" * 4000)
    alerts = [firing(run=f"r{i}", name="A" * 300, **notes) for i in range(70)]
    for told in ((alerts[0],), alerts, [over(a) for a in alerts]):
        outcome = send(sender, *told)
        assert isinstance(outcome, Sent), outcome


def test_a_thread_outlives_the_process(fake: FakeSlack, clock: Clock, tmp_path: Path) -> None:
    database = open_database(sqlite_url(tmp_path))
    alert = firing()
    try:
        send(bot(fake, clock, ReceiverThreads(database)), alert)
        clock.now += 60
        send(bot(fake, clock, ReceiverThreads(database)), over(alert))
        threads = ReceiverThreads(database)
        assert threads.find("default", "ops", group_key(GROUP)) is None
    finally:
        database.close()
    (head,) = fake.messages.values()
    assert len(head.replies) == 1


def test_an_incoming_webhook_shows_the_same_without_threads(fake: FakeSlack, clock: Clock) -> None:
    poster = Poster(fake.url + HOOK, allow_private=True, timeout_seconds=PATIENCE)
    sender = SlackHook(poster, Pace(clock=clock, sleep=clock.sleep))
    alert = firing(summary="NaN")
    assert send(sender, alert) == Sent("HTTP 200")
    assert send(sender, over(alert)) == Sent("HTTP 200")
    assert [told["text"][:10] for told in fake.hooked] == ["[FIRING] N", "[RESOLVED]"]
    clock.now += 60
    fake.fail("no_service")
    assert send(sender, alert) == Failed("HTTP 404: no_service", retry=False)


def test_the_fields_of_its_two_forms() -> None:
    (by_bot,) = parse(
        {"receivers": [{"name": "a", "type": "slack", "token_env": "T", "channel": "#ops"}]},
        "r",
        {"T": TOKEN},
    )
    assert by_bot.url == "https://slack.com/api"
    assert TOKEN not in repr(by_bot.options) + repr(by_bot)
    hook = "https://hooks.slack.com/services/T0/B0/s3cr3t"
    (by_hook,) = parse(
        {"receivers": [{"name": "a", "type": "slack", "url_env": "H"}]}, "r", {"H": hook}
    )
    assert (by_hook.url, by_hook.options) == (hook, Options())
    assert "s3cr3t" not in repr(by_hook)
    wrong: list[dict[str, Any]] = [
        {"name": "a", "type": "slack"},
        {"name": "b", "type": "slack", "url": hook, "channel": "#ops"},
        {"name": "c", "type": "slack", "token": "hunter2"},
    ]
    with pytest.raises(ReceiversError) as caught:
        parse({"receivers": wrong}, "r", {})
    assert [re.sub(r"; type.*", "", m) for m in caught.value.mistakes] == [
        "r: receiver 'a': url: expected a URL",
        "r: receiver 'b': channel: unknown field",
        "r: receiver 'c': token: expected a bot token (xoxb-...)",
        "r: receiver 'c': channel: expected a channel, by its name or better by its id",
    ]
    assert "hunter2" not in str(caught.value)


def test_from_a_run_to_a_thread_that_says_who_takes_care(tmp_path: Path) -> None:
    ticks = iter(range(10**9))
    with fake_slack(lambda: float(next(ticks))) as fake:
        receivers = f"""
receivers:
  - {{name: ops, type: slack, token: {TOKEN}, channel: "#ops", url: "{fake.url}",
     allow_private: true}}
"""
        service = Service(tmp_path / "slack", receivers=receivers)
        try:
            poison(service, "sick")
            (head,) = eventually(lambda: list(fake.messages.values()))
            eventually(lambda: '"delivered"' in service.log_text())
            service.restart()
            buttons = head.body["attachments"][0]["blocks"][-1]["elements"]
            url = next(b["url"] for b in buttons if b["text"]["text"] == "Acknowledge")
            pressed = service.call("POST", url.removeprefix(service.url))
            assert pressed.status_code == 200, pressed.text
            eventually(lambda: any("Acknowledged by link in ops" in text(r) for r in head.replies))
            assert list(fake.messages) == [head.ts]
            assert head.body["channel"] == CHANNEL
            tried = gradwarden("receivers", "test", "ops", "--url", service.url)
            assert "ops took the test message" in tried.stdout
        finally:
            service.close()
