"""The services of docker-compose.yml without Docker: the same processes, started by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import free_port
from tests.deploy import stack


def environment(settings: dict[str, str]) -> dict[str, str]:
    """This environment without settings of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GRADWARDEN_", "OTEL_"))}
    return {**kept, **settings}


def serve(folder: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """`gradwarden serve`, as the image starts it."""
    with (folder / "service.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gradwarden_server.cli", "serve"],
            env=environment(settings),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def call(url: str, token: str | None = None, body: object = None) -> tuple[int, Any]:
    """Status and JSON of one request."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """What compose sets, with addresses of this machine; secrets by the stack's own script."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    stack.make_secrets(secrets)
    return {
        "GRADWARDEN_HOST": "0.0.0.0",
        "GRADWARDEN_PORT": str(free_port()),
        "GRADWARDEN_DB": f"sqlite:///{tmp_path / 'fresh.sqlite'}",
        "GRADWARDEN_ADMIN_TOKEN_FILE": str(secrets / "admin_token"),
        "GRADWARDEN_LOG_FORMAT": "json",
    }


def test_the_stack_stands(tmp_path: Path, settings: dict[str, str], postgres_url: str) -> None:
    """The service on PostgreSQL behind its token, scraped, and heard by Alertmanager."""
    settings["GRADWARDEN_DB"] = f"{postgres_url}?passfile={tmp_path / 'secrets' / 'pgpass'}"
    token = Path(settings["GRADWARDEN_ADMIN_TOKEN_FILE"]).read_text()
    address = f"127.0.0.1:{settings['GRADWARDEN_PORT']}"
    with stack.running(tmp_path, address, token) as (prometheus, alertmanager):
        receivers = yaml.safe_load((stack.ROOT / "deploy/gradwarden/receivers.yml").read_text())
        receivers["receivers"][0]["url"] = alertmanager
        (tmp_path / "receivers.yml").write_text(yaml.safe_dump(receivers))
        settings["GRADWARDEN_RECEIVERS"] = str(tmp_path / "receivers.yml")
        service = serve(tmp_path, settings)
        try:
            url = f"http://{address}"
            stack.until("a ready service", lambda: call(f"{url}/-/ready")[0] == 200)
            assert call(f"{url}/-/healthy")[0] == 200
            assert call(f"{url}/v1/runs")[0] == 401
            assert call(f"{url}/v1/runs", token) == (200, {"items": [], "next_cursor": None})
            status, answer = call(f"{url}/v1/receivers/alertmanager/test", token, {})
            assert (status, answer["ok"]) == (200, True), answer
            stack.until(
                "a scrape with the token",
                lambda: stack.ask(prometheus, 'up{job="gradwarden"}') == [1.0],
            )
            assert stack.ask(prometheus, "gradwarden_build_info") == [1.0]
            # The test message ends at once, so Alertmanager counts it and lists it no more.
            heard = 'sum(alertmanager_alerts_received_total{status="resolved"}) > 0'
            stack.until("the test message", lambda: stack.ask(prometheus, heard))
        finally:
            service.terminate()
            assert service.wait(30) == 0, (tmp_path / "service.log").read_text()


def test_an_open_address_without_a_token_is_refused(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    del settings["GRADWARDEN_ADMIN_TOKEN_FILE"]
    service = serve(tmp_path, settings)
    assert service.wait(60) == 2
    assert "gradwarden token create" in (tmp_path / "service.log").read_text()


@pytest.mark.parametrize("content", ["", "password"])
def test_an_empty_or_weak_admin_token_is_refused(
    tmp_path: Path, settings: dict[str, str], content: str
) -> None:
    """deploy/kubernetes.yaml ships its Secret empty, and counts on this."""
    weak = tmp_path / "weak"
    weak.write_text(content)
    settings["GRADWARDEN_ADMIN_TOKEN_FILE"] = str(weak)
    service = serve(tmp_path, settings)
    assert service.wait(60) == 2, (tmp_path / "service.log").read_text()
