"""Signed links from messages: a small page that asks, and a form that acts, without a login.

Chats and mail filters fetch every link that they see, so only the form's POST acts. The pages
need no JavaScript and say nothing beyond what the message said.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api.access import ANONYMOUS
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep
from gradwarden_server.api.pages import page
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.silences import added
from gradwarden_server.matchers import Matcher
from gradwarden_server.model import Alert
from gradwarden_server.notify.groups import STORM_ALERT
from gradwarden_server.notify.links import SECOND_NS, BadLink, ExpiredLink, Link, unseal

router = APIRouter()

SILENCE_SECONDS = 3600
_SHOWN = 20
_PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
_DOES = {"ack": "Acknowledge", "silence": "Silence for 1 hour"}
_FORGED = (
    "This link was not made by this service, or was cut on its way, or the project's links were "
    "renewed since. Open the alert in the dashboard instead."
)
_EXPIRED = "This link is too old. Open the alert in the dashboard instead."

Token = Annotated[str, Path(max_length=16_384)]


@router.get("/l/{token}", include_in_schema=False)
async def ask(token: Token, parts: PartsDep) -> HTMLResponse:
    """What the link would do now, and a button that does it."""
    link = await _opened(token, parts)
    if not isinstance(link, Link):
        return link
    alerts = await run_in_threadpool(_meant, link, parts)
    if not alerts:
        return _over(link)
    if _cared_for(link, alerts):
        return _already(link, alerts)
    does = _DOES[link.action]
    button = f'<form method="post"><button>{does}</button></form>'
    return _answer(f"{does}?", f"{_said(link)}{_listed(alerts)}{button}")


@router.post("/l/{token}", include_in_schema=False)
async def act(token: Token, parts: PartsDep) -> HTMLResponse:
    """Do it. Audited under the name of the receiver that the link was sent to."""
    link = await _opened(token, parts)
    if not isinstance(link, Link):
        return link
    alerts = await run_in_threadpool(_meant, link, parts)
    if not alerts:
        return _over(link)
    if _cared_for(link, alerts):
        return _already(link, alerts)
    actor = f"link in {link.receiver}"
    if link.action == "ack":
        numbers = [alert.id for alert in alerts if alert.id is not None]
        await parts.written(parts.care.acknowledge(link.project, numbers, actor, time.time_ns()))
        return _answer("Acknowledged", f"{_said(link)}{_listed(alerts)}")
    until = rfc3339(await _silenced(link, parts, actor)) or ""
    told = f"<p>Nothing of this is told until {html.escape(until[:16])} UTC.</p>"
    return _answer("Silenced", f"{told}{_said(link)}{_listed(alerts)}")


@router.post(
    "/v1/links/rotate",
    tags=["alerts"],
    dependencies=CREDENTIALS,
    status_code=204,
    summary="Make all links that were sent worthless",
)
async def rotate(who: Admin, parts: PartsDep) -> None:
    """Messages from now on carry links of a new secret. Audited."""
    await parts.written(parts.link_secrets.rotate(who.project, who.actor, time.time_ns()))


async def _opened(token: str, parts: Parts) -> Link | HTMLResponse:
    try:
        return await run_in_threadpool(unseal, token, parts.link_secrets.known, time.time_ns())
    except BadLink:
        return _answer("This link is not valid", f"<p>{html.escape(_FORGED)}</p>", 403)
    except ExpiredLink:
        return _answer("This link has expired", f"<p>{html.escape(_EXPIRED)}</p>", 410)


def _meant(link: Link, parts: Parts) -> list[Alert]:
    """The firing alerts that a link is about; a storm is those that it speaks for."""
    if link.labels.get("alertname") == STORM_ALERT:
        return parts.care.stormed(link.project)
    return parts.care.matching(link.project, link.labels)


async def _silenced(link: Link, parts: Parts, actor: str) -> int:
    """When the silence ends; pressing twice makes one silence."""
    now_ns = time.time_ns()
    wanted = tuple(Matcher(name, value) for name, value in sorted(link.labels.items()))
    standing = await run_in_threadpool(parts.silences.current, link.project, now_ns)
    for silence in standing:
        if silence.matchers == wanted and silence.state(now_ns) == "active":
            return silence.ends_ns
    ends_ns = now_ns + SILENCE_SECONDS * SECOND_NS
    comment = f"By a link that was sent to {link.receiver}"
    await added(parts, link.project, wanted, (now_ns, ends_ns), actor, comment)
    return ends_ns


def _over(link: Link) -> HTMLResponse:
    return _answer("Nothing to do", f"<p>Nothing of this fires any more.</p>{_said(link)}")


def _cared_for(link: Link, alerts: Sequence[Alert]) -> bool:
    """Whether there is nothing left to acknowledge."""
    return link.action == "ack" and all(alert.acked_ns is not None for alert in alerts)


def _already(link: Link, alerts: Sequence[Alert]) -> HTMLResponse:
    last = max(alerts, key=lambda alert: alert.acked_ns or 0)
    words = f"<p>Already {html.escape(_acknowledged(last))}.</p>"
    return _answer("Already acknowledged", f"{words}{_said(link)}{_listed(alerts)}")


def _acknowledged(alert: Alert) -> str:
    who = "someone on this machine" if alert.acked_by == ANONYMOUS else alert.acked_by
    at = rfc3339(alert.acked_ns) or ""
    return f"acknowledged by {who} at {at[:16].replace('T', ' ')} UTC"


def _said(link: Link) -> str:
    rows = (f"<li>{html.escape(k)}: {html.escape(v)}</li>" for k, v in sorted(link.labels.items()))
    return f"<ul>{''.join(rows)}</ul>"


def _listed(alerts: Sequence[Alert]) -> str:
    rows = "".join(f"<li>{html.escape(_line(alert))}</li>" for alert in alerts[:_SHOWN])
    more = f"<p>and {len(alerts) - _SHOWN} more</p>" if len(alerts) > _SHOWN else ""
    return f"<h2>Firing now</h2><ul>{rows}</ul>{more}"


def _line(alert: Alert) -> str:
    text = f"{alert.alertname}: {alert.annotations.get('summary', '')}".removesuffix(": ")
    if run := alert.labels.get("run_name"):
        text = f"{run}: {text}"
    return f"{text} ({_acknowledged(alert)})" if alert.acked_by else text


def _answer(title: str, body: str, status: int = 200) -> HTMLResponse:
    return page(title, body, status, _PRIVATE)
