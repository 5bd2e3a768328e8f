"""Links in messages: what they carry, that looking never acts, and who is refused."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gradwarden_server.model import Notification, Queued
from gradwarden_server.notify.links import (
    LIFETIME_SECONDS,
    BadLink,
    ExpiredLink,
    Informed,
    Link,
    labels_of,
    seal,
    unseal,
)
from gradwarden_server.notify.message import Outcome, Sent
from gradwarden_server.notify.payload import body
from tests.server.pager import SECOND, LocalReceiver, eventually, firing, local_receiver
from tests.server.test_silences import alert_of, poison
from tests.service import Service, gradwarden

NOW = 1_800_000_000 * SECOND
SECRET = b"s" * 32
LINK = Link("default", "ops", "ack", {"run": "r1", "alertname": "Ä"}, NOW // SECOND + 60)
_RECEIVERS = """\
receivers:
  - {{name: linked, type: webhook, url: "{url}", allow_private: true, links: true}}
  - {{name: plain, type: webhook, url: "{url}/plain", allow_private: true}}
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    with local_receiver() as listening:
        yield listening


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: LocalReceiver) -> Iterator[Service]:
    running = Service(
        tmp_path_factory.mktemp("links"), receivers=_RECEIVERS.format(url=receiver.url)
    )
    yield running
    running.close()


def annotations_of(receiver: LocalReceiver, run: str, path: str = "/hook") -> dict[str, str]:
    """What the first message of a run's page said of it."""

    def ask() -> Any:
        for request in list(receiver.requests):
            for alert in json.loads(request.body)["alerts"]:
                if request.path == path and alert["labels"].get("run") == run:
                    return alert["annotations"] | {"sent": "yes"}
        return None

    found: dict[str, str] = eventually(ask)
    return found


def visit(service: Service, method: str, url: str) -> httpx.Response:
    """A phone: no token, no cookie, no script."""
    return httpx.request(method, service.url + httpx.URL(url).raw_path.decode(), timeout=30)


def audited(service: Service, action: str) -> list[tuple[str, str]]:
    with sqlite3.connect(service.path) as db:
        return db.execute(
            "SELECT actor, subject FROM audit WHERE action = ? ORDER BY id", (action,)
        ).fetchall()


def link_secret(service: Service) -> bytes:
    with sqlite3.connect(service.path) as db:
        return bytes(db.execute("SELECT secret FROM link_secret").fetchone()[0])


def test_a_link_from_a_message_acknowledges_when_its_button_is_pressed(
    service: Service, receiver: LocalReceiver
) -> None:
    poison(service, "acked")
    url = annotations_of(receiver, "acked")["ack_url"]
    number = alert_of(service, "acked")["id"]
    for method in ("GET", "HEAD", "OPTIONS", "GET"):  # previews of chats, filters of mail
        visit(service, method, url)
    assert service.get(f"/v1/alerts/{number}")["acknowledged_by"] is None
    shown = visit(service, "GET", url)
    assert shown.status_code == 200
    assert "<button>Acknowledge</button>" in shown.text
    assert "<script" not in shown.text
    assert "NonFiniteGradient" in shown.text
    assert "name of " in shown.text, "a run is known by its name"
    assert shown.headers["referrer-policy"] == "no-referrer"
    assert shown.headers["cache-control"] == "no-store"
    done = visit(service, "POST", url)
    assert done.status_code == 200
    assert "Acknowledged" in done.text
    assert service.get(f"/v1/alerts/{number}")["acknowledged_by"] == "link in linked"
    assert audited(service, "alert.acknowledge") == [("link in linked", str(number))]
    for method in ("GET", "POST"):
        again = visit(service, method, url)
        assert "Already acknowledged by link in linked at 20" in again.text
        assert "<button>" not in again.text
    assert len(audited(service, "alert.acknowledge")) == 1
    token = url.rpartition("/")[2]
    assert token not in service.log_text()


def test_a_link_says_who_without_a_token_took_care(
    service: Service, receiver: LocalReceiver
) -> None:
    poison(service, "theirs")
    url = annotations_of(receiver, "theirs")["ack_url"]
    service.call("POST", f"/v1/alerts/{alert_of(service, 'theirs')['id']}/ack")
    assert "Already acknowledged by someone on this machine at" in visit(service, "GET", url).text


def test_a_receiver_that_asked_for_none_gets_no_links(
    service: Service, receiver: LocalReceiver
) -> None:
    poison(service, "plain")
    told = annotations_of(receiver, "plain", "/hook/plain")
    assert told["sent"] == "yes"
    assert not {"ack_url", "silence_url"} & set(told)
    listed = {r["name"]: r["links"] for r in service.get("/v1/receivers")["items"]}
    assert listed == {"linked": True, "plain": False}


def test_a_link_silences_for_an_hour_and_twice_is_once(
    service: Service, receiver: LocalReceiver
) -> None:
    poison(service, "loud")
    url = annotations_of(receiver, "loud")["silence_url"]
    assert "<button>Silence for 1 hour</button>" in visit(service, "GET", url).text
    assert service.get("/v1/silences")["items"] == []
    for _ in range(2):
        assert "Silenced" in visit(service, "POST", url).text
    (silence,) = service.get("/v1/silences")["items"]
    assert silence["author"] == "link in linked"
    assert 'run="loud"' in silence["matchers"]
    assert eventually(lambda: alert_of(service, "loud")["muted"])


def test_a_link_does_nothing_for_what_is_over(service: Service) -> None:
    labels = {"run": "never", "alertname": "NonFiniteGradient"}
    service.call("POST", "/v1/receivers/linked/test")  # the first message makes the secret
    for action in ("ack", "silence"):
        link = replace(LINK, action=action, labels=labels, expires_seconds=2**40)
        url = f"/l/{seal(link_secret(service), link)}"
        for method in ("GET", "POST"):
            answer = visit(service, method, url)
            assert (answer.status_code, "Nothing to do" in answer.text) == (200, True)
            assert "<button" not in answer.text


def test_expired_forged_and_renewed_links_get_a_page_that_says_so(
    service: Service, receiver: LocalReceiver
) -> None:
    poison(service, "forged")
    url = annotations_of(receiver, "forged")["ack_url"]
    secret = link_secret(service)
    labels = {"run": "forged", "alertname": "NonFiniteGradient"}
    old = seal(secret, replace(LINK, labels=labels, expires_seconds=1))
    fake = seal(b"x" * 32, replace(LINK, labels=labels, expires_seconds=2**40))
    stranger = seal(secret, replace(LINK, project="nobody", expires_seconds=2**40))
    head, _, mac = url.rpartition("/")[2].partition(".")
    wanted = {
        old: (410, "expired"),
        fake: (403, "not valid"),
        stranger: (403, "not valid"),
        f"{head}.": (403, "not valid"),
        f"{head[:-4]}.{mac}": (403, "not valid"),
        "nonsense": (403, "not valid"),
        "%00%ff": (403, "not valid"),
    }
    for token, (status, words) in wanted.items():
        for method in ("GET", "POST"):
            answer = visit(service, method, f"http://x/l/{token}")
            assert (answer.status_code, words in answer.text) == (status, True), token
    done = gradwarden("receivers", "rotate-links", "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert visit(service, "POST", url).status_code == 403
    assert service.get(f"/v1/alerts/{alert_of(service, 'forged')['id']}")["acknowledged_by"] is None
    assert audited(service, "links.rotate") == [("loopback", "default")]


def test_what_is_sealed_is_what_is_unsealed() -> None:
    token = seal(SECRET, LINK)
    assert unseal(token, lambda project: SECRET, NOW) == LINK
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    with pytest.raises(ExpiredLink):
        unseal(token, lambda project: SECRET, NOW + 60 * SECOND)
    for secret in (None, b"other" * 8):
        with pytest.raises(BadLink):
            unseal(token, lambda project, secret=secret: secret, NOW)  # type: ignore[misc]
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        try:
            assert unseal(changed, lambda project: SECRET, NOW) == LINK
        except (BadLink, ExpiredLink):
            continue
        # Base64 has spare bits in its last character, and they mean nothing.
        assert at == len(token) - 1


@pytest.mark.parametrize("facts", ["5", "[1,2]", "{}", '["p","r","ack",{},"x"]', "[" * 5000])
def test_a_body_of_another_shape_is_no_link(facts: str) -> None:
    text = base64.urlsafe_b64encode(facts.encode()).rstrip(b"=").decode()
    with pytest.raises(BadLink):
        unseal(f"{text}.AAAA", lambda project: SECRET, NOW)


class Kept:
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.payload: dict[str, Any] = {}

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        self.payload = dict(queued.notification.payload)
        return Sent("kept")


def queued(*alerts: Any, group: dict[str, str] | None = None) -> Queued:
    payload = body("ops", group or {"run": "r1"}, alerts, "http://gw")
    return Queued(1, Notification("default", "ops", "g", "page", payload), 1, 1, NOW)


def test_a_message_carries_links_that_name_its_group_and_are_the_same_at_every_try() -> None:
    kept, made = Kept(), []

    def sign(link: Link) -> str:
        made.append(link)
        return f"http://gw/l/{link.action}"

    sender = Informed(kept, lambda project, prints: {}, sign)
    one, two = firing(summary="a"), firing(name="NonFiniteLoss")
    over = replace(firing(run="r1", name="Over"), state="resolved", resolved_ns=2 * SECOND)
    sender.send(queued(one, two, over), NOW + SECOND)
    sender.send(queued(one, two, over), NOW + 2 * SECOND)
    assert made[:2] == made[2:]
    assert [link.action for link in made[:2]] == ["ack", "silence"]
    labels = {"project": "default", "run": "r1", "severity": "page"}
    assert made[0] == Link("default", "ops", "ack", labels, NOW // SECOND + LIFETIME_SECONDS)
    first, second, third = kept.payload["alerts"]
    urls = {"ack_url": "http://gw/l/ack", "silence_url": "http://gw/l/silence"}
    assert first["annotations"] == {"summary": "a", **urls}
    assert second["annotations"] == urls
    assert third["annotations"] == {}
    assert kept.payload["commonAnnotations"] == {}
    sender.send(queued(one), NOW)
    assert kept.payload["commonAnnotations"] == {"summary": "a", **urls}


def test_a_message_says_who_takes_care_and_asks_for_nobody_more() -> None:
    kept = Kept()
    alert = firing()
    sender = Informed(
        kept, lambda project, prints: {alert.fingerprint: "ada"}, lambda link: "http://u"
    )
    sender.send(queued(alert), NOW)
    told = {"acknowledged_by": "ada", "silence_url": "http://u"}
    assert kept.payload["alerts"][0]["annotations"] == told
    assert kept.payload["commonAnnotations"] == told


def test_a_storm_is_acknowledged_and_never_silenced_by_a_link() -> None:
    kept = Kept()
    storm = firing(name="AlertStorm")
    Informed(kept, lambda project, prints: {}, lambda link: f"http://gw/{link.action}").send(
        queued(storm, group={"alertname": "AlertStorm", "project": "default"}), NOW
    )
    assert kept.payload["alerts"][0]["annotations"] == {"ack_url": "http://gw/ack"}


def test_a_page_goes_out_when_the_database_is_away() -> None:
    def away(project: str, prints: list[str]) -> dict[str, str]:
        raise OSError("the disk is away")

    kept = Kept()
    assert Informed(kept, away, None).send(queued(firing()), NOW) == Sent("kept")
    assert kept.payload["status"] == "firing"


def test_a_whole_project_is_never_silenced_by_a_link() -> None:
    alerts = [firing(run="a"), firing(run="b", name="Other")]
    assert labels_of(body("ops", {}, alerts, "")) == {}
    assert labels_of(body("ops", {"project": "default"}, alerts, "")) == {}
