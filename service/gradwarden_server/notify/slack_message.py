"""What Slack shows of a message: blocks under a colour, within Slack's limits.

Limits are those of https://docs.slack.dev/reference/block-kit/blocks/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradwarden_server.notify.brief import Brief, place, shortened

MOST_TEXT = 3000
MOST_HEADER = 150
MOST_FIELDS = 10
MOST_FIELD = 2000
MOST_URL = 3000

_COLOURS = {"page": "#c81e3c", "ticket": "#e8871e", "note": "#5b7083"}
_STATE_COLOURS = {"acknowledged": "#2f6fd0", "resolved": "#2a9d61"}
_MARKS = {"firing": "\N{LARGE RED CIRCLE}", "acknowledged": "\N{EYES}"}
_RESOLVED = "\N{WHITE HEAVY CHECK MARK}"
_LISTED = 20


def incident(told: Brief) -> dict[str, Any]:
    """The message that stands for the whole incident, as it is now."""
    blocks: list[dict[str, Any]] = []
    if told.summary:
        blocks.append(_section(escaped(told.summary)))
    if told.where:
        fields = [f"*{name}*\n{escaped(value)}" for name, value in told.where.items()]
        texts = [_mrkdwn(shortened(text, MOST_FIELD)) for text in fields[:MOST_FIELDS]]
        blocks.append({"type": "section", "fields": texts})
    if told.first_action and told.state != "resolved":
        blocks.append(_section(f"*First:* {escaped(told.first_action)}"))
    if len(told.alerts) > 1:
        blocks.append(_section(_lines(told)))
    blocks.append({"type": "context", "elements": [_mrkdwn(_state(told))]})
    buttons = _buttons(told)
    if buttons:
        blocks.append({"type": "actions", "elements": buttons})
    title = f"{_MARKS.get(told.state, _RESOLVED)} {told.title}"
    header = {"type": "plain_text", "text": shortened(title, MOST_HEADER), "emoji": True}
    return {
        "text": fallback(told),
        "blocks": [{"type": "header", "text": header}],
        "attachments": [{"color": _colour(told), "blocks": blocks}],
    }


def change(told: Brief) -> dict[str, Any]:
    """The message under the incident that says how it is now."""
    text = _state(told)
    if told.state == "firing":
        text += "\n" + _lines(told)
    return {
        "text": fallback(told),
        "attachments": [{"color": _colour(told), "blocks": [_section(text)]}],
    }


def fallback(told: Brief) -> str:
    """What a phone's notification shows."""
    text = f"[{told.state.upper()}] {told.title}: {told.summary}".removesuffix(": ")
    return shortened(escaped(text), MOST_TEXT)


def escaped(text: str) -> str:
    """Text that mentions nobody and links nowhere."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _state(told: Brief) -> str:
    words = {
        "firing": f"Firing, {told.severity}",
        "acknowledged": f"Acknowledged by {told.acknowledged_by}",
        "resolved": "Resolved",
    }[told.state]
    firing = len(told.alerts) + told.truncated
    if told.state != "resolved" and (firing > 1 or told.resolved):
        words += f": {firing} firing, {told.resolved} resolved"
    return shortened(escaped(words), MOST_FIELD)


def _lines(told: Brief) -> str:
    lines = [_line(alert) for alert in told.alerts[:_LISTED]]
    rest = len(told.alerts) - _LISTED + told.truncated
    if rest > 0:
        lines.append(f"and {rest} more")
    return "\n".join(lines)


def _line(alert: Mapping[str, Any]) -> str:
    labels, notes = alert["labels"], alert["annotations"]
    where = ", ".join(f"{name} {value}" for name, value in place(alert).items())
    run = labels.get("run_name") or labels.get("run", "")
    text = f"{labels.get('alertname', '')} on {run}".removesuffix(" on ")
    for more in (notes.get("summary", ""), where):
        text += f": {more}" if more else ""
    return "\N{BULLET} " + escaped(shortened(text, MOST_TEXT // _LISTED))


def _buttons(told: Brief) -> list[dict[str, Any]]:
    return [
        {
            "type": "button",
            "text": {"type": "plain_text", "text": title},
            "url": url,
            "action_id": title.lower().replace(" ", "_"),
            **({"style": "primary"} if title == "Acknowledge" else {}),
        }
        for title, url in told.links.items()
        if len(url) <= MOST_URL
    ]


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(shortened(text, MOST_TEXT))}


def _mrkdwn(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text}


def _colour(told: Brief) -> str:
    return _STATE_COLOURS.get(told.state) or _COLOURS.get(told.severity, _COLOURS["note"])
