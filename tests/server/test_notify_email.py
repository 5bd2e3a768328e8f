"""E-mail through a real SMTP server, as a mail program would show it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword

from gradwarden_server.model import Alert, Notification, Queued
from gradwarden_server.notify.email import Email, Options
from gradwarden_server.notify.message import Failed, Outcome, Sent
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.spec import ReceiversError, parse
from gradwarden_server.notify.threads import HeldThreads
from tests.needs import missing
from tests.server.pager import PATIENCE, SECOND, firing
from tests.service import Service, gradwarden

NOW = 1_800_000_000 * SECOND
GROUP = {"project": "default", "run": "r1", "alertname": "NonFiniteGradient"}


@dataclass
class Mailbox:
    """What a relay took; ``answers`` are given before it takes anything more."""

    mails: list[EmailMessage] = field(default_factory=list)
    readers: list[list[str]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    unknown: str = "nobody@example.com"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == self.unknown:
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        if self.answers:
            return self.answers.pop(0)
        content = envelope.content
        assert isinstance(content, bytes)
        found = message_from_bytes(content, policy=policy.default)
        assert isinstance(found, EmailMessage)
        self.mails.append(found)
        self.readers.append(list(envelope.rcpt_tos))
        return "250 taken"


def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    assert isinstance(data, LoginPassword)
    right = (data.login, data.password) == (b"gw", b"hunter2")
    return AuthResult(success=right, handled=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=mail.example", "-addext", "subjectAltName=DNS:mail.example"]
    try:
        subprocess.run([*words, "-keyout", key, "-out", pem], check=True, capture_output=True)
    except FileNotFoundError:
        missing("openssl", "apt-get install -y openssl")
    return key, pem


class Relay:
    """A real SMTP server on loopback: plain, with STARTTLS and a login, or in TLS."""

    def __init__(self, certificate: tuple[Path, Path], tls: str) -> None:
        self.box = Mailbox()
        self.tls = tls
        key, pem = certificate
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(pem, key)
        self.ours = ssl.create_default_context(cafile=str(pem))
        more: dict[str, Any] = {}
        if tls == "starttls":
            more = {
                "tls_context": theirs,
                "require_starttls": True,
                "auth_required": True,
                "authenticator": authenticate,
            }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = self._loop.create_server(
            lambda: SMTP(self.box, hostname="relay", loop=self._loop, **more),
            "127.0.0.1",
            0,
            ssl=theirs if tls == "tls" else None,
        )
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(PATIENCE)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def sender(self, host: str = "mail.example", **more: Any) -> Email:
        options = Options(
            host, self.port, self.tls, "gradwarden <gw@gw.example>", ("ada@example.com",)
        )
        if self.tls == "starttls":
            options = replace(options, username="gw", password="hunter2")
        return Email(
            replace(options, **more),
            HeldThreads(),
            allow_private=True,
            timeout_seconds=PATIENCE,
            context=self.ours,
            resolve=lambda host, port: ["127.0.0.1"],
        )

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)


@pytest.fixture(scope="module")
def relays(certificate: tuple[Path, Path]) -> Iterator[dict[str, Relay]]:
    running = {tls: Relay(certificate, tls) for tls in ("none", "starttls", "tls")}
    yield running
    for relay in running.values():
        relay.close()


@pytest.fixture
def relay(relays: dict[str, Relay]) -> Relay:
    box = relays["none"].box
    box.mails.clear()
    box.readers.clear()
    box.answers.clear()
    return relays["none"]


def send(sender: Email, *alerts: Alert, seq: int = 1, attempts: int = 1) -> Outcome:
    payload = body("On-Call EU", GROUP, alerts, "https://gw.example")
    told = Notification("default", "On-Call EU", group_key(GROUP), "page", payload)
    return sender.send(Queued(1, told, seq, attempts, NOW), NOW)


def over(alert: Alert) -> Alert:
    return replace(alert, state="resolved", resolved_ns=2 * SECOND)


def parts(mail: EmailMessage) -> tuple[str, str]:
    text, page = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert page is not None
    return text.get_content(), page.get_content()


def test_an_incident_is_one_thread_with_all_that_somebody_needs(relay: Relay) -> None:
    sender = relay.sender(to=("ada@example.com", "bob@example.com"))
    alert = firing(
        summary="NaN in <fc2> & ünï",
        layer="fc2",
        step="40",
        first_action="Resume.",
        runbook_url="https://gw.example/runbooks/x",
        ack_url="https://gw.example/l/a?b&c",
    )
    assert send(sender, alert) == Sent("SMTP 250: taken for 2 of 2")
    send(sender, over(alert), seq=2)
    send(sender, alert, seq=3)
    first, second, third = relay.box.mails
    assert relay.box.readers[0] == ["ada@example.com", "bob@example.com"]
    assert first["Subject"] == "[page] NonFiniteGradient on r1"
    assert first["From"] == "gradwarden <gw@gw.example>"
    assert first["List-Id"] == "<on-call-eu.gradwarden.gw.example>"
    assert first["Auto-Submitted"] == "auto-generated"
    assert first["Date"].datetime.timestamp() == NOW / SECOND
    assert (first["References"], first["In-Reply-To"]) == (None, None)
    text, page = parts(first)
    assert text.splitlines()[0] == "Firing: NonFiniteGradient on r1"
    assert "NonFiniteGradient: NaN in <fc2> & ünï (layer fc2, step 40)" in text
    assert "First: Resume." in text
    assert "Acknowledge: https://gw.example/l/a?b&c" in text
    assert "NaN in &lt;fc2&gt; &amp; ünï" in page
    assert '<a href="https://gw.example/l/a?b&amp;c">Acknowledge</a>' in page
    assert second["Subject"] == "Re: [page] NonFiniteGradient on r1"
    assert second["References"] == second["In-Reply-To"] == first["Message-ID"]
    assert parts(second)[0].startswith("Resolved: ")
    assert third["References"] is None, "what comes back is a new incident"
    assert len({mail["Message-ID"] for mail in relay.box.mails}) == 3


def test_a_second_try_is_the_same_message(relay: Relay) -> None:
    for attempts in (1, 2):
        send(relay.sender(), firing(), attempts=attempts)
    first, second = relay.box.mails
    assert first["Message-ID"] == second["Message-ID"]


@pytest.mark.parametrize(
    ("answer", "retry"),
    [("451 4.3.0 try later", True), ("552 5.3.4 message too big", False)],
)
def test_4xx_is_asked_again_and_5xx_is_final(relay: Relay, answer: str, retry: bool) -> None:
    relay.box.answers.append(answer)
    assert send(relay.sender(), firing()) == Failed(f"SMTP {answer[:3]}: {answer[4:]}", retry)


def test_a_reader_who_is_refused_does_not_keep_the_others_from_it(relay: Relay) -> None:
    nobody = relay.box.unknown
    assert send(relay.sender(to=(nobody, "ada@example.com")), firing()) == Sent(
        "SMTP 250: taken for 1 of 2"
    )
    assert send(relay.sender(to=(nobody,)), firing()) == Failed(
        "SMTP 550: every reader refused: 5.1.1 no such mailbox", retry=False
    )


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_tls_and_login(relays: dict[str, Relay], tls: str) -> None:
    relay = relays[tls]
    assert isinstance(send(relay.sender(), firing()), Sent)
    wrong = send(relay.sender(host="other.example"), firing())
    assert isinstance(wrong, Failed), "the certificate is of another name"
    assert "certificate" in wrong.detail
    if tls == "starttls":
        refused = send(relay.sender(password="guess"), firing())
        assert isinstance(refused, Failed)
        assert (refused.retry, refused.detail[:8]) == (False, "SMTP 535")
        assert "guess" not in refused.detail


def test_a_relay_without_tls_is_not_told_anything(relay: Relay) -> None:
    outcome = send(relay.sender(tls="starttls"), firing())
    assert isinstance(outcome, Failed)
    assert (outcome.retry, "STARTTLS" in outcome.detail) == (False, True)
    assert relay.box.mails == []


def test_an_internal_relay_needs_to_be_allowed(relay: Relay) -> None:
    guarded = Email(
        Options("mail.example", relay.port, "none", "gw@gw.example", ("ada@example.com",)),
        HeldThreads(),
        allow_private=False,
        timeout_seconds=PATIENCE,
        resolve=lambda host, port: ["127.0.0.1"],
    )
    outcome = send(guarded, firing())
    assert isinstance(outcome, Failed)
    assert not outcome.retry
    assert "internal address" in outcome.detail


def test_what_an_alert_says_cannot_write_headers(relay: Relay) -> None:
    alert = firing(name="Evil\r\nBcc: eve@example.com", summary="a\r\n\r\n.\r\nQUIT\r\n")
    assert isinstance(send(relay.sender(), alert), Sent)
    (mail,) = relay.box.mails
    assert mail["Bcc"] is None
    assert mail["Subject"] == "[page] Evil Bcc: eve@example.com on r1"
    assert relay.box.readers == [["ada@example.com"]]


def test_the_fields() -> None:
    entry = {
        "name": "mail",
        "type": "email",
        "host": "smtp.example.com",
        "from": "gradwarden <gw@example.com>",
        "to": ["ada@example.com"],
        "username": "gw",
        "password_env": "P",
    }
    (receiver,) = parse({"receivers": [entry]}, "r", {"P": "hunter2"})
    assert receiver.options == Options(
        "smtp.example.com",
        587,
        "starttls",
        "gradwarden <gw@example.com>",
        ("ada@example.com",),
        "gw",
        "hunter2",
    )
    assert "hunter2" not in repr(receiver) + repr(receiver.options)
    assert receiver.links
    wrong = {**entry, "tls": "none", "to": ["ada"], "from": "me", "port": 0, "url": "https://x"}
    with pytest.raises(ReceiversError) as caught:
        parse({"receivers": [wrong]}, "r", {"P": "hunter2"})
    assert [
        m.partition(": receiver 'mail': ")[2].partition(";")[0] for m in caught.value.mistakes
    ] == [
        "url: unknown field",
        "tls: none is refused unless allow_private is true",
        "port: expected a port",
        "from: expected an address, such as gradwarden <gw@example.com>",
        "to: expected a list of addresses",
        "username: a password is not sent without TLS",
    ]


def test_the_command_tries_it(relay: Relay, tmp_path: Path) -> None:
    receivers = f"""
receivers:
  - {{name: mail, type: email, host: 127.0.0.1, port: {relay.port}, tls: none,
     allow_private: true, from: gw@gw.example, to: [ada@example.com]}}
"""
    service = Service(tmp_path / "mail", receivers=receivers)
    try:
        tried = gradwarden("receivers", "test", "mail", "--url", service.url)
    finally:
        service.close()
    assert "mail took the test message" in tried.stdout
    assert "SMTP 250: taken for 1 of 1" in tried.stdout
    first, second = relay.box.mails
    assert second["References"] == first["Message-ID"]
