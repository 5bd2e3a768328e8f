"""The receivers file, the address guard, and each receiver against real HTTP servers."""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from standardwebhooks import Webhook as Verifier

from gradwarden_server.model import Queued
from gradwarden_server.notify.guard import Refused, Unresolved, admit, check_url, is_public
from gradwarden_server.notify.message import Failed, Sent, message_id
from gradwarden_server.notify.post import Poster, retry_after_seconds
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.spec import TYPES, Receiver, ReceiversError, load, parse
from gradwarden_server.notify.webhook import Webhook
from tests.needs import missing
from tests.server.pager import PATIENCE, SECOND, Answer, LocalReceiver, local_receiver, message

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_800_000_000 * SECOND
ROOT = Path(__file__).parents[2]
QUEUED = Queued(1, message(text="hello"), seq=3, attempts=1, created_ns=NOW)


@pytest.fixture
def far_end() -> Iterator[LocalReceiver]:
    with local_receiver() as receiver:
        yield receiver


def poster(url: str, timeout_seconds: float = PATIENCE, **options: Any) -> Poster:
    return Poster(url, allow_private=True, timeout_seconds=timeout_seconds, **options)


def test_a_full_receivers_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "receivers.yaml"
    path.write_text(
        f"""
receivers:
  - name: pager
    type: webhook
    url: https://hooks.example.com/gw
    severities: [page]
    secret_env: PAGER_SECRET
  - {{name: am, type: alertmanager, url: "http://10.0.0.4:9093", allow_private: true}}
  - name: deadman
    type: webhook
    url: https://dead.example.com/ping
    secret: {SECRET}
    watchdog_seconds: 60
    timeout_seconds: 5
"""
    )
    pager, am, deadman = load(path, {"PAGER_SECRET": SECRET})
    assert pager == Receiver(
        "pager", "webhook", "https://hooks.example.com/gw", ("page",), secrets=(KEY,)
    )
    assert am == Receiver("am", "alertmanager", "http://10.0.0.4:9093", allow_private=True)
    assert (deadman.watchdog_seconds, deadman.timeout_seconds) == (60, 5.0)
    assert "hooks.example" not in repr(pager)
    assert "0123" not in repr(pager)


def test_all_mistakes_are_told_at_once_with_file_receiver_and_field() -> None:
    document = {
        "receivers": [
            {"name": "a", "type": "pigeon"},
            {"name": "a", "type": "webhook", "url": "http://a.example", "severities": ["note"]},
            {"type": "webhook", "url": "https://u:p@a.example", "secret": "hunter2"},
            {"name": "s", "type": "webhook", "url": 5, "secret_env": "ABSENT", "secret": SECRET},
            {"name": "e", "type": "webhook", "url": "https://e.example", "secret_env": "ABSENT"},
            {"name": "w", "type": "webhook", "url": "https://w.example", "watchdog_seconds": 0},
            {"name": "v", "type": "alertmanager", "url": "https://v", "watchdog_seconds": 9},
            {"name": "p", "type": "webhook", "url": "https://127.0.0.1/x", "timeout_seconds": 99},
            {"name": "b", "type": "webhook", "url": "https://b.example", "allow_private": "yes"},
            {
                "name": "short",
                "type": "webhook",
                "url": "https://c.example",
                "secret": "whsec_YQ==",
            },
            {"name": "k", "type": "pagerduty", "routing_key": "hunter2", "channel": "#ops"},
            {"name": "l", "type": "pagerduty", "region": "mars"},
            {"name": "r", "type": "webhook", "url": "https://d.example", "secret": ["hunter2", 5]},
            {"name": "d", "type": "webhook", "url": "https://d.example", "watchdog_seconds": 9}
            | {"links": True},
            "just a word",
            {"name": "nobody", "type": "webhook", "url": "https://n.example"},
        ],
        "colours": [],
    }
    with pytest.raises(ReceiversError) as caught:
        parse(document, "r.yaml", {})
    assert caught.value.mistakes == [
        "r.yaml: unknown key 'colours'",
        "r.yaml: receiver 'a': type: 'pigeon' is not one of " + ", ".join(TYPES),
        "r.yaml: receiver 'a': severities: expected a list of page and ticket",
        "r.yaml: receiver 'a': url: http is refused unless allow_private is true",
        "r.yaml: receiver 'a': name: used twice",
        "r.yaml: receiver 3: name: expected a text",
        "r.yaml: receiver 3: secret: expected a text that begins with whsec_",
        "r.yaml: receiver 3: url: user and password in a URL are refused",
        "r.yaml: receiver 's': secret_env: give this or secret, not both",
        "r.yaml: receiver 's': url: expected a URL",
        "r.yaml: receiver 'e': secret_env: the environment variable 'ABSENT' is empty",
        "r.yaml: receiver 'w': watchdog_seconds: expected a whole number of seconds from 1 up",
        "r.yaml: receiver 'v': watchdog_seconds: unknown field; type alertmanager knows "
        "name, type, severities, timeout_seconds, allow_private, url, url_env",
        "r.yaml: receiver 'p': timeout_seconds: expected a number up to 30",
        "r.yaml: receiver 'p': url: an internal address is refused unless allow_private is true",
        "r.yaml: receiver 'b': allow_private: expected true or false",
        "r.yaml: receiver 'short': secret: expected 24 to 64 bytes in base64",
        "r.yaml: receiver 'k': channel: unknown field; type pagerduty knows name, type, "
        "severities, timeout_seconds, allow_private, links, routing_key, routing_key_env, region, "
        "url, url_env",
        "r.yaml: receiver 'k': routing_key: expected 32 letters and digits",
        "r.yaml: receiver 'l': routing_key: expected the integration key of an Events API v2 "
        "integration",
        "r.yaml: receiver 'l': region: 'mars' is not one of us, eu",
        "r.yaml: receiver 'r': secret: expected a text, or a list of texts",
        "r.yaml: receiver 'd': links: the Watchdog is not to be acknowledged or silenced",
        "r.yaml: receiver 15: expected a mapping",
        "r.yaml: receiver 'nobody': name: 'nobody' is what a route says to tell no one; "
        "take another name",
    ]
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["receivers: [", "- a list", "receivers: {a: b}"])
def test_a_file_of_another_shape_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ReceiversError, match=r"broken\.yaml"):
        load(path, {})
    with pytest.raises(ReceiversError, match="cannot be read"):
        load(tmp_path / "absent.yaml", {})


def test_the_examples_of_the_documentation_and_of_the_deployment_are_read() -> None:
    environ = {
        "APPRISE_URLS": "json://chat.example.com/x",
        "HOOK_SECRET": SECRET,
        "HOOK_SECRET_OLD": SECRET,
        "PAGERDUTY_KEY": "k" * 32,
        "SLACK_TOKEN": "xoxb-1",
        "SLACK_WEBHOOK": "https://hooks.slack.com/services/T/B/x",
        "SMTP_PASSWORD": "hunter2",
    }
    pages = [ROOT / "docs" / "alerts.md", ROOT / "docs" / "configuration.md"]
    blocks = [b for page in pages for b in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)]
    deployed = (ROOT / "deploy" / "gradwarden" / "receivers.yml").read_text()
    blocks += [deployed, re.sub(r"(?m)^  # ", "  ", deployed)]
    seen = set()
    for block in blocks:
        document = yaml.safe_load(block)
        entries = document.get("receivers", []) if isinstance(document, dict) else document
        if not all("type" in entry for entry in entries):
            continue
        found = parse({"receivers": entries}, "docs", {**environ, "PAGER_SECRET": SECRET})
        seen |= {receiver.type for receiver in found}
    assert seen == set(TYPES)


def test_an_empty_file_has_no_receivers(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# none yet\n")
    assert load(path, {}) == ()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::a01:203",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)
def test_internal_addresses_are_known_in_every_disguise(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(Refused):
        admit("https://rebound.example/", False, lambda host, port: ["93.184.216.34", address])


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111"])
def test_public_addresses_pass_and_are_pinned(address: str) -> None:
    target = admit("https://hooks.example:8443/a?b=c", False, lambda host, port: [address])
    assert target.url.host == address
    assert (target.url.port, target.url.raw_path) == (8443, b"/a?b=c")
    assert (target.host_header, target.sni) == ("hooks.example:8443", "hooks.example")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "ftp://hooks.example/",
        "https:///x",
        "file:///etc/passwd",
        "https://a:b@hooks.example/",
        "https://[::1]/",
        "https://127.0.0.1/",
        "nonsense",
    ],
)
def test_urls_that_need_no_network_to_be_refused(url: str) -> None:
    with pytest.raises(Refused):
        check_url(url, allow_private=False)


def test_a_host_without_an_address_is_worth_another_try() -> None:
    def nothing(host: str, port: int) -> list[str]:
        raise Unresolved("the name of the host does not resolve")

    post = Poster(
        "https://hooks.example/", allow_private=False, timeout_seconds=1, resolve=nothing
    ).post
    assert post(b"", {}, NOW) == Failed("the name of the host does not resolve", retry=True)


def test_a_private_address_is_refused_at_delivery_without_a_connection(
    far_end: LocalReceiver,
) -> None:
    guarded = Poster(
        "https://hooks.example/",
        allow_private=False,
        timeout_seconds=PATIENCE,
        resolve=lambda host, port: ["127.0.0.1"],
    )
    outcome = guarded.post(b"{}", {}, NOW)
    assert isinstance(outcome, Failed)
    assert not outcome.retry
    assert "internal address" in outcome.detail
    assert far_end.requests == []


def test_the_connection_goes_to_the_judged_address_under_the_original_name(
    far_end: LocalReceiver,
) -> None:
    url = f"http://hooks.example:{far_end.port}/hook"
    outcome = poster(url, resolve=lambda host, port: ["127.0.0.1"]).post(b"{}", {}, NOW)
    assert outcome == Sent("HTTP 200")
    assert far_end.requests[0].headers["Host"] == f"hooks.example:{far_end.port}"


def test_tls_is_checked_against_the_name_not_the_pinned_address(
    far_end: LocalReceiver, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example"]
    try:
        subprocess.run(
            [*words, "-keyout", key, "-out", certificate], check=True, capture_output=True
        )
    except FileNotFoundError:
        missing("openssl", "apt-get install -y openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    far_end.server.socket = context.wrap_socket(far_end.server.socket, server_side=True)
    trusting = httpx.Client(verify=ssl.create_default_context(cafile=str(certificate)))
    for name, expected in (("hooks.example", Sent), ("other.example", Failed)):
        outcome = poster(
            f"https://{name}:{far_end.port}/",
            client=trusting,
            resolve=lambda host, port: ["127.0.0.1"],
        ).post(b"{}", {}, NOW)
        assert isinstance(outcome, expected), outcome
    assert asked == ["hooks.example", "other.example"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(200), Sent("HTTP 200")),
        (Answer(204), Sent("HTTP 204")),
        (Answer(500), Failed("HTTP 500", True)),
        (Answer(503, {"Retry-After": "7"}), Failed("HTTP 503", True, 7.0)),
        (Answer(429, {"Retry-After": "120"}), Failed("HTTP 429", True, 120.0)),
        (Answer(408), Failed("HTTP 408", True)),
        (Answer(425), Failed("HTTP 425", True)),
        (Answer(400), Failed("HTTP 400", False)),
        (Answer(404), Failed("HTTP 404", False)),
        (
            Answer(410),
            Failed("HTTP 410: the endpoint is gone; remove it from the receivers file", False),
        ),
        (
            Answer(302, {"Location": "http://127.0.0.1:1/"}),
            Failed("HTTP 302: redirects are not followed; give the final URL", False),
        ),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_what_each_answer_means(
    far_end: LocalReceiver, answer: Answer, outcome: Sent | Failed
) -> None:
    far_end.answers.append(answer)
    assert poster(far_end.url).post(b"{}", {}, NOW) == outcome
    assert len(far_end.requests) == 1


def test_a_slow_receiver_is_given_up_and_tried_again(far_end: LocalReceiver) -> None:
    hold = threading.Event()
    far_end.answers.append(Answer(hold=hold))
    outcome = poster(far_end.url, timeout_seconds=0.05).post(b"{}", {}, NOW)
    hold.set()
    assert outcome == Failed("no answer in time (ReadTimeout)", retry=True)


def test_a_refused_connection_is_tried_again_and_its_url_is_not_told() -> None:
    with local_receiver() as gone:
        url = gone.url + "/s3cr3t-token"
    outcome = poster(url).post(b"{}", {}, NOW)
    assert isinstance(outcome, Failed)
    assert outcome.retry
    assert "s3cr3t" not in outcome.detail


def test_retry_after_is_read_in_both_forms() -> None:
    assert retry_after_seconds("12", NOW) == 12
    assert retry_after_seconds(formatdate(NOW / 1e9 + 90, usegmt=True), NOW) == 90
    assert retry_after_seconds(formatdate(NOW / 1e9 - 90, usegmt=True), NOW) == 0
    assert retry_after_seconds("soon", NOW) is None
    assert retry_after_seconds(None, NOW) is None


def test_a_webhook_is_signed_as_the_standard_says(far_end: LocalReceiver) -> None:
    now = time.time_ns()  # the verifier has a clock of its own
    (sender,) = connect(
        [Receiver("pager", "webhook", far_end.url, secrets=(KEY,), allow_private=True)]
    ).values()
    assert isinstance(sender.send(QUEUED, now), Sent)
    request = far_end.requests[0]
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert Verifier(SECRET).verify(request.body.decode(), headers) == QUEUED.notification.payload
    assert headers["content-type"] == "application/json"
    headers["webhook-id"] = "msg_other"
    with pytest.raises(Exception, match="signature"):
        Verifier(SECRET).verify(request.body.decode(), headers)


def test_a_secret_is_rotated_by_signing_with_both(far_end: LocalReceiver) -> None:
    now = time.time_ns()
    old = "whsec_" + base64.b64encode(b"an-older-key-of-24-bytes").decode()
    document = {"name": "w", "type": "webhook", "url": far_end.url, "allow_private": True}
    environ = {"NEW": SECRET, "OLD": old}
    (receiver,) = parse(
        {"receivers": [{**document, "secret_env": ["NEW", "OLD"]}]}, "r.yaml", environ
    )
    (sender,) = connect([receiver]).values()
    assert isinstance(sender.send(QUEUED, now), Sent)
    request = far_end.requests[0]
    headers = {name.lower(): value for name, value in request.headers.items()}
    for known in (SECRET, old):
        assert Verifier(known).verify(request.body.decode(), headers)
    with pytest.raises(Exception, match="signature"):
        Verifier("whsec_" + base64.b64encode(b"x" * 24).decode()).verify(
            request.body.decode(), headers
        )
    assert "whsec" not in repr(receiver)


def test_every_try_judges_the_address_again(far_end: LocalReceiver) -> None:
    answers = [["93.184.216.34", "10.0.0.1"], ["127.0.0.1"]]
    guarded = Poster(
        f"https://hooks.example:{far_end.port}/",
        allow_private=False,
        timeout_seconds=PATIENCE,
        resolve=lambda host, port: answers.pop(0),
    )
    for _ in range(2):
        outcome = guarded.post(b"{}", {}, NOW)
        assert outcome == Failed(
            "refused: the host has an internal address, refused unless allow_private is true",
            retry=False,
        )
    assert answers == []
    assert far_end.requests == []


def test_the_id_of_a_message_is_stable_over_tries_and_differs_between_messages(
    far_end: LocalReceiver,
) -> None:
    sender = Webhook(poster(far_end.url))
    again = Queued(1, QUEUED.notification, QUEUED.seq, attempts=2, created_ns=NOW)
    later = Queued(1, QUEUED.notification, QUEUED.seq + 1, attempts=1, created_ns=NOW)
    for queued in (QUEUED, again, later):
        sender.send(queued, NOW)
    ids = [request.headers["webhook-id"] for request in far_end.requests]
    assert ids[0] == ids[1] == message_id(QUEUED)
    assert ids[2] != ids[0]
    assert "webhook-signature" not in far_end.requests[0].headers
    assert json.loads(far_end.requests[0].body)["text"] == "hello"
