"""Receiver ``email``: one thread for each incident, by SMTP.

A mailbox joins messages by References, and some only where the subject stays the same too: so
later messages answer the first one under its subject, and say their state in the first line.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from html import escape

from gradwarden_server.model import Queued, Thread
from gradwarden_server.notify.brief import Brief, brief, place, shortened
from gradwarden_server.notify.fields import Fields
from gradwarden_server.notify.guard import Refused, Resolve, Unresolved, pin, system_resolve
from gradwarden_server.notify.message import Failed, Outcome, Sent, message_id
from gradwarden_server.notify.post import printable
from gradwarden_server.notify.threads import Threads

PORTS: Mapping[str, int] = {"starttls": 587, "tls": 465, "none": 25}
MOST_SUBJECT = 200
_LISTED = 50
_COLOURS = {"firing": "#c81e3c", "acknowledged": "#2f6fd0", "resolved": "#2a9d61"}
_ADDRESS = re.compile(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+\Z")


@dataclass(frozen=True, slots=True)
class Options:
    """The relay, and between whom."""

    host: str
    port: int
    tls: str
    sender: str
    to: tuple[str, ...]
    username: str = ""
    password: str = field(default="", repr=False)


class Email:
    """Sends each message to all its readers in one transaction with the relay."""

    def __init__(
        self,
        options: Options,
        threads: Threads,
        *,
        allow_private: bool,
        timeout_seconds: float,
        context: ssl.SSLContext | None = None,
        resolve: Resolve = system_resolve,
    ) -> None:
        self._options = options
        self._threads = threads
        self._allow_private = allow_private
        self._timeout = timeout_seconds / 2  # of each step, and a try has several
        self._context = context
        self._resolve = resolve

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        notification = queued.notification
        key = (notification.project, notification.receiver, notification.group_key)
        told = brief(notification.payload)
        thread = self._threads.find(*key)
        message = compose(told, queued, self._options, thread)
        outcome = self._deliver(message)
        if isinstance(outcome, Sent):
            if told.state == "resolved":
                self._threads.forget(*key)
            elif thread is None:
                first = Thread(str(message["Subject"]), str(message["Message-ID"]))
                self._threads.keep(*key, first)
        return outcome

    def _deliver(self, message: EmailMessage) -> Outcome:
        options = self._options
        try:
            address = pin(options.host, options.port, self._allow_private, self._resolve)
            with self._connected(address) as relay:
                if options.tls == "starttls":
                    relay.starttls(context=self._context or ssl.create_default_context())
                if options.username:
                    relay.login(options.username, options.password)
                refused = relay.send_message(message, to_addrs=list(options.to))
        except Refused as error:
            return Failed(f"refused: {error}", retry=False)
        except Unresolved as error:
            return Failed(str(error), retry=True)
        except smtplib.SMTPRecipientsRefused as error:
            return _answered(*next(iter(error.recipients.values())), what="every reader refused")
        except smtplib.SMTPResponseException as error:
            return _answered(error.smtp_code, error.smtp_error)
        except smtplib.SMTPNotSupportedError as error:
            return Failed(f"SMTP: {printable(str(error))}", retry=False)
        except TimeoutError:
            return Failed("no answer in time", retry=True)
        except (OSError, smtplib.SMTPException) as error:
            return Failed(f"SMTP: {type(error).__name__}: {printable(str(error))}", retry=True)
        taken = len(options.to) - len(refused)
        return Sent(f"SMTP 250: taken for {taken} of {len(options.to)}")

    def _connected(self, address: str) -> smtplib.SMTP:
        options = self._options
        if options.tls == "tls":
            context = self._context or ssl.create_default_context()
            return _PinnedTls(address, options.host, options.port, self._timeout, context)
        return _Pinned(address, options.host, options.port, self._timeout)


class _Pinned(smtplib.SMTP):
    """Connects to a judged address under the relay's name."""

    def __init__(self, address: str, host: str, port: int, timeout: float) -> None:
        self._address = address
        super().__init__(host, port, socket.gethostname(), timeout)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return socket.create_connection((self._address, port), timeout)


class _PinnedTls(_Pinned):
    """The same, in TLS from its first byte."""

    def __init__(
        self, address: str, host: str, port: int, timeout: float, context: ssl.SSLContext
    ) -> None:
        self._tls = context
        super().__init__(address, host, port, timeout)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        plain = super()._get_socket(host, port, timeout)
        return self._tls.wrap_socket(plain, server_hostname=host)


def read(fields: Fields, allow_private: bool) -> Options:
    """The fields of this type."""
    tls = fields.choice("tls", tuple(PORTS), "starttls")
    if tls == "none" and not allow_private:
        fields.mistakes.append("tls: none is refused unless allow_private is true")
    host = fields.text("host", "the name of a mail relay")
    port = fields.whole("port", "a port", 65_535) or PORTS[tls]
    sender = fields.text("from", "an address, such as gradwarden <gw@example.com>")
    if sender and not _ADDRESS.match(parseaddr(sender)[1]):
        fields.mistakes.append("from: expected an address, such as gradwarden <gw@example.com>")
    to = fields.texts("to", "a list of addresses")
    if not all(_ADDRESS.match(one) for one in to):
        fields.mistakes.append("to: expected a list of addresses")
    username = password = ""
    if fields.has("username"):
        username = fields.text("username", "a text")
        password = fields.secret("password", "the password of username")
        if tls == "none":
            fields.mistakes.append("username: a password is not sent without TLS")
    return Options(host, port, tls, sender, to, username, password)


def compose(told: Brief, queued: Queued, options: Options, thread: Thread | None) -> EmailMessage:
    """The message for a v4 body; an answer to the thread's first where there is one."""
    name, address = parseaddr(options.sender)
    local, _, domain = address.rpartition("@")
    message = EmailMessage()
    subject = f"[{told.severity}] {told.title}"
    message["Subject"] = _one_line(subject) if thread is None else f"Re: {thread.place}"
    message["From"] = Address(name or "gradwarden", local, domain)
    message["To"] = ", ".join(options.to)
    message["Date"] = format_datetime(datetime.fromtimestamp(queued.created_ns // 10**9, UTC))
    message["Message-ID"] = f"<{message_id(queued)}@{domain}>"
    if thread is not None:
        message["In-Reply-To"] = thread.anchor
        message["References"] = thread.anchor
    receiver = re.sub(r"[^a-z0-9-]+", "-", queued.notification.receiver.lower())
    message["List-Id"] = f"<{receiver}.gradwarden.{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(told))
    message.add_alternative(_html(told), subtype="html")
    return message


def _state(told: Brief) -> str:
    if told.state == "acknowledged":
        return f"Acknowledged by {told.acknowledged_by}"
    if told.state == "resolved":
        return "Resolved"
    firing = len(told.alerts) + told.truncated
    return (
        "Firing"
        if firing == 1 and not told.resolved
        else (f"Firing: {firing}, resolved: {told.resolved}")
    )


def _text(told: Brief) -> str:
    lines = [f"{_state(told)}: {told.title}", ""]
    lines += [_line(alert) for alert in told.alerts[:_LISTED]]
    rest = len(told.alerts) - _LISTED + told.truncated
    if rest > 0:
        lines.append(f"and {rest} more")
    if told.first_action and told.state != "resolved":
        lines += ["", f"First: {told.first_action}"]
    lines += ["", *(f"{title}: {url}" for title, url in told.links.items())]
    return "\n".join(lines) + "\n"


def _html(told: Brief) -> str:
    lines = "".join(f"<li>{escape(_line(alert))}</li>" for alert in told.alerts[:_LISTED])
    first = ""
    if told.first_action and told.state != "resolved":
        first = f"<p><b>First:</b> {escape(told.first_action)}</p>"
    links = " &middot; ".join(
        f'<a href="{escape(url)}">{escape(title)}</a>' for title, url in told.links.items()
    )
    colour = _COLOURS[told.state]
    return (
        f'<div style="border-left:4px solid {colour};padding-left:12px;font-family:sans-serif">'
        f"<p><b>{escape(_state(told))}</b>: {escape(told.title)}</p>"
        f"<ul>{lines}</ul>{first}<p>{links}</p></div>\n"
    )


def _line(alert: Mapping[str, Mapping[str, str]]) -> str:
    where = ", ".join(f"{name} {value}" for name, value in place(alert).items())
    text = f"{alert['labels'].get('alertname', '')}: {alert['annotations'].get('summary', '')}"
    return _one_line(f"{text.removesuffix(': ')} ({where})" if where else text, 1000)


def _one_line(text: str, most: int = MOST_SUBJECT) -> str:
    return shortened(" ".join(text.split()), most)


def _answered(code: int, said: bytes | str, what: str = "") -> Failed:
    """4xx may be asked again, 5xx is final (RFC 5321, 4.2.1)."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    words = ": ".join(part for part in (f"SMTP {code}", what, printable(text)) if part)
    return Failed(words, retry=code < 500)
