"""Apprise's URLs, against a real HTTP server behind its json:// kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gradwarden_server.model import Notification, Queued
from gradwarden_server.notify.message import Failed, Sent
from gradwarden_server.notify.payload import body
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.spec import ReceiversError, parse
from tests.server.pager import SECOND, Answer, firing, local_receiver
from tests.service import Service, gradwarden

NOW = 1_800_000_000 * SECOND


def test_each_url_is_told_and_a_failure_is_tried_again() -> None:
    with local_receiver() as far:
        entry = {"name": "a", "type": "apprise", "urls_env": "URLS"}
        url = f"json://127.0.0.1:{far.port}/s3cr3t"
        (receiver,) = parse({"receivers": [entry]}, "r", {"URLS": url})
        assert "s3cr3t" not in repr(receiver) + repr(receiver.options)
        assert not receiver.links
        sender = connect([receiver])["a"]
        alert = firing(summary="NaN", layer="fc2", first_action="Resume.")
        over = replace(alert, state="resolved", resolved_ns=2 * SECOND)
        for told in (alert, over):
            payload = body("a", {"run": "r1"}, [told], "https://gw.example")
            queued = Queued(1, Notification("default", "a", "g", "page", payload), 1, 1, NOW)
            assert sender.send(queued, NOW) == Sent("apprise: taken by 1")
        first, second = (json.loads(request.body) for request in far.requests)
        assert (first["title"], first["type"]) == ("FIRING: NonFiniteGradient on r1", "failure")
        assert first["message"] == "NaN (layer fc2)\nFirst: Resume.\nOpen: https://gw.example"
        assert second["type"] == "success"
        far.answers.append(Answer(500))
        outcome = sender.send(queued, NOW)
        assert outcome == Failed("apprise: not taken by all; it gives no reason", retry=True)


def test_what_it_does_not_understand_is_told_by_its_number() -> None:
    entry = {"name": "a", "type": "apprise", "urls": ["json://x", "hunter2://s3cr3t"], "url": "x"}
    with pytest.raises(ReceiversError) as caught:
        parse({"receivers": [entry, {"name": "b", "type": "apprise"}]}, "r", {})
    assert caught.value.mistakes == [
        "r: receiver 'a': url: unknown field; type apprise knows name, type, severities, links, "
        "urls, urls_env",
        "r: receiver 'a': urls: apprise does not understand number 2",
        "r: receiver 'b': urls: expected a list of apprise's URLs",
    ]


def test_the_command_tries_it(tmp_path: Path) -> None:
    with local_receiver() as far:
        receivers = f"""
receivers:
  - {{name: chat, type: apprise, urls: ["json://127.0.0.1:{far.port}/"]}}
"""
        service = Service(tmp_path / "apprise", receivers=receivers)
        try:
            tried = gradwarden("receivers", "test", "chat", "--url", service.url)
        finally:
            service.close()
    assert "chat took the test message" in tried.stdout
    assert len(far.requests) == 2
