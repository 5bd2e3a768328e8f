"""Tokens and logins: scopes, projects, expiry, revocation, and who gets through the open door."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from gradwarden import wire
from gradwarden_server.api.access import COOKIE
from tests.server.traffic import batch, frame, problem, send, start_body
from tests.service import Service, gradwarden

ADMIN = "an-admin-token-from-a-file-0123456789"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on every address, with an admin token from a file."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(ADMIN + "\n")
    environment = {"GRADWARDEN_ADMIN_TOKEN_FILE": str(folder / "token")}
    running = Service(folder, host="0.0.0.0", env=environment, token=ADMIN)
    yield running
    running.close()


def make(service: Service, scope: str, **more: object) -> dict[str, str]:
    """A token made over HTTP."""
    answer = service.call("POST", "/v1/tokens", json={"name": "t", "scope": scope} | more)
    assert answer.status_code == 201, answer.text
    made: dict[str, str] = answer.json()
    return made


def bearer(secret: str) -> dict[str, str]:
    """The header that carries a secret."""
    return {"Authorization": f"Bearer {secret}"}


def test_beyond_loopback_the_service_refuses_to_start_until_a_token_exists(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path}/gw.sqlite"
    refused = gradwarden("serve", "--host", "0.0.0.0", "--port", "0", "--db", db)
    assert refused.returncode == 2
    assert "gradwarden token create" in refused.stderr
    assert db in refused.stderr
    made = gradwarden("token", "create", "--name", "ops", "--scope", "admin", "--db", db)
    assert made.returncode == 0
    secret = made.stdout.strip()
    assert secret.startswith("gw_")
    service = Service(tmp_path, db=db, host="0.0.0.0")
    try:
        problem(service.call("GET", "/v1/runs"), 401, "unauthenticated")
        assert service.call("GET", "/v1/runs", headers=bearer(secret)).status_code == 200
    finally:
        service.close()


def test_only_the_hash_of_a_secret_is_stored(guarded: Service) -> None:
    secret = make(guarded, "read")["secret"]
    with sqlite3.connect(guarded.path) as connection:
        dump = "\n".join(connection.iterdump())
    assert secret not in dump
    assert ADMIN not in dump
    assert secret[:9] in dump
    listed = guarded.get("/v1/tokens")["items"]
    assert all("secret" not in token and "hash" not in token for token in listed)


def test_each_scope_opens_its_own_doors(guarded: Service) -> None:
    secrets = {scope: make(guarded, scope)["secret"] for scope in ("ingest", "read", "admin")}
    start = start_body("scoped")
    allowed = {
        ("POST", "/v1/start"): {"ingest", "admin"},
        ("GET", "/v1/runs"): {"read", "admin"},
        ("GET", "/v1/alerts"): {"read", "admin"},
        ("GET", "/v1/tokens"): {"admin"},
    }
    for (method, path), scopes in allowed.items():
        for scope, secret in secrets.items():
            body = start if method == "POST" else None
            answer = guarded.call(method, path, json=body, headers=bearer(secret))
            if scope in scopes:
                assert answer.status_code == 200, (path, scope)
            else:
                assert problem(answer, 403, "forbidden")["needed"]


def test_a_token_sees_its_own_project_alone(guarded: Service) -> None:
    guarded.call("POST", "/v1/start", json=start_body("mine"))
    secret = gradwarden_token(guarded, "other")
    assert guarded.get("/v1/runs", headers=bearer(secret))["items"] == []
    problem(guarded.call("GET", "/v1/runs/mine", headers=bearer(secret)), 404, "not-found")
    foreign = bearer(secret) | {"Gradwarden-Project": "default"}
    refusal = problem(guarded.call("GET", "/v1/runs", headers=foreign), 403, "forbidden-project")
    assert refusal["project"] == "other"
    asked = guarded.call("GET", "/v1/runs?project=default", headers=bearer(secret))
    problem(asked, 403, "forbidden-project")


def gradwarden_token(service: Service, project: str) -> str:
    """An admin token of another project, made on the database while the service is down."""
    service.kill()
    made = gradwarden("token", "create", "--name", "x", "--scope", "admin",
                      "--project", project, "--db", service.db)  # fmt: skip
    service.start()
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_an_unknown_expired_or_revoked_token_is_told_so(guarded: Service) -> None:
    problem(guarded.call("GET", "/v1/runs", headers=bearer("gw_x")), 401, "unauthenticated")
    strange = {"Authorization": "Basic Zm9vOmJhcg=="}
    problem(guarded.call("GET", "/v1/runs", headers=strange), 401, "unauthenticated")
    with httpx.Client(base_url=guarded.url) as client:
        refusal = client.get("/v1/runs")
        problem(refusal, 401, "unauthenticated")
        assert refusal.headers["www-authenticate"].startswith("Bearer")
    made = make(guarded, "read")
    assert guarded.call("GET", "/v1/runs", headers=bearer(made["secret"])).status_code == 200
    assert guarded.call("DELETE", f"/v1/tokens/{made['id']}").status_code == 204
    problem(guarded.call("GET", "/v1/runs", headers=bearer(made["secret"])), 401, "unauthenticated")
    problem(guarded.call("DELETE", f"/v1/tokens/{made['id']}"), 404, "not-found")
    brief = make(guarded, "read", expires_in_days=1e-9)["secret"]
    problem(guarded.call("GET", "/v1/runs", headers=bearer(brief)), 401, "unauthenticated")


def test_runs_are_named_on_the_metrics_page_to_those_who_may_read_them(guarded: Service) -> None:
    guarded.call("POST", "/v1/start", json=start_body("named"))
    own, trainer = make(guarded, "read")["secret"], make(guarded, "ingest")["secret"]
    other = gradwarden_token(guarded, "third")
    for secret, shown in ((own, True), (trainer, False), (other, False)):
        page = guarded.call("GET", "/metrics", headers=bearer(secret))
        assert page.status_code == 200
        assert ('run="named"' in page.text) is shown
        assert "gradwarden_evaluator_lag_seconds" in page.text
    stranger = httpx.get(f"{guarded.url}/metrics")
    assert stranger.status_code == 200
    assert 'run="named"' not in stranger.text


def test_the_dashboard_logs_in_over_plain_http_and_out_again(guarded: Service) -> None:
    secret = make(guarded, "read")["secret"]
    with httpx.Client(base_url=guarded.url) as browser:
        before = browser.get("/v1/session").json()
        assert (before["authenticated"], before["login_required"]) == (False, True)
        problem(browser.post("/v1/session", json={"token": "gw_wrong"}), 401, "unauthenticated")
        login = browser.post("/v1/session", json={"token": secret})
        assert login.json()["scope"] == "read"
        cookie = login.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie, "plain HTTP would never send it back"
        assert secret not in cookie
        assert browser.get("/v1/runs").status_code == 200
        guarded.restart()
        assert browser.get("/v1/session").json()["authenticated"], "a login outlives a restart"
        stolen = browser.cookies[COOKIE]
        assert browser.delete("/v1/session").status_code == 204
        assert COOKIE not in browser.cookies
        problem(browser.get("/v1/runs"), 401, "unauthenticated")
        again = browser.get("/v1/runs", headers={"Cookie": f"{COOKIE}={stolen}"})
        problem(again, 401, "unauthenticated")


def test_behind_tls_the_cookie_is_secure(guarded: Service) -> None:
    secret = make(guarded, "read")["secret"]
    login = guarded.call(
        "POST", "/v1/session", json={"token": secret}, headers={"X-Forwarded-Proto": "https"}
    )
    assert "secure" in login.headers["set-cookie"].lower()


def test_a_session_ends_with_its_token(guarded: Service) -> None:
    made = make(guarded, "admin")
    with httpx.Client(base_url=guarded.url) as browser:
        assert browser.post("/v1/session", json={"token": made["secret"]}).status_code == 200
        session = browser.cookies[COOKIE]
        problem(browser.post("/v1/session", json={"token": session}), 401, "unauthenticated")
        assert guarded.call("DELETE", f"/v1/tokens/{made['id']}").status_code == 204
        problem(browser.get("/v1/runs"), 401, "unauthenticated")
    names = [token["name"] for token in guarded.get("/v1/tokens")["items"]]
    assert not any(name.startswith("session:") for name in names)


def test_trainers_tokens_do_not_log_in_and_reserved_names_are_refused(guarded: Service) -> None:
    secret = make(guarded, "ingest")["secret"]
    problem(guarded.call("POST", "/v1/session", json={"token": secret}), 403, "forbidden")
    body = {"name": "session:1", "scope": "read"}
    assert problem(guarded.call("POST", "/v1/tokens", json=body), 400, "malformed")["field"]


def test_a_foreign_page_cannot_use_a_login(guarded: Service) -> None:
    with httpx.Client(base_url=guarded.url) as browser:
        assert browser.post("/v1/session", json={"token": ADMIN}).status_code == 200
        body = {"name": "evil", "scope": "admin"}
        foreign = browser.post("/v1/tokens", json=body, headers={"Origin": "http://evil.example"})
        problem(foreign, 403, "forbidden-origin")
        own = browser.post("/v1/tokens", json=body, headers={"Origin": guarded.url})
        assert own.status_code == 201


def test_every_act_is_audited(guarded: Service) -> None:
    made = make(guarded, "read")
    guarded.call("DELETE", f"/v1/tokens/{made['id']}")
    with sqlite3.connect(guarded.path) as connection:
        acts = connection.execute("SELECT action, actor, subject FROM audit ORDER BY id").fetchall()
    assert ("token.register", "settings", ADMIN[:9]) in acts
    assert ("token.create", ADMIN[:9], made["prefix"]) in acts
    assert ("token.revoke", ADMIN[:9], str(made["id"])) in acts


def test_the_open_door_of_a_laptop_lets_no_stranger_through(service: Service) -> None:
    session = service.get("/v1/session")
    assert (session["authenticated"], session["login_required"]) == (True, False)
    assert "no token is asked for" in service.log_text()
    proxied = service.call("GET", "/v1/runs", headers={"X-Forwarded-For": "203.0.113.9"})
    problem(proxied, 401, "unauthenticated")
    rebound = service.call("GET", "/v1/runs", headers={"Host": "evil.example:8321"})
    problem(rebound, 401, "unauthenticated")
    foreign = {"Origin": "http://evil.example"}
    posted = service.call("POST", "/v1/start", json=start_body("evil"), headers=foreign)
    problem(posted, 403, "forbidden-origin")
    wrong = service.call("GET", "/v1/runs", headers=bearer("gw_wrong"))
    problem(wrong, 401, "unauthenticated")
    odd = service.call("GET", "/v1/runs?project=a%20b")
    assert problem(odd, 400, "malformed")["field"] == "project"


def test_a_login_ends_by_itself_and_use_is_noted(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path}/gradwarden.sqlite"
    made = gradwarden("token", "create", "--name", "x", "--scope", "admin", "--db", db)
    secret = made.stdout.strip()
    brief = {"GRADWARDEN_SESSION_HOURS": str(2 / 3600)}
    service = Service(tmp_path, host="0.0.0.0", env=brief, token=secret)
    try:
        (token,) = service.get("/v1/tokens")["items"]
        deadline = time.monotonic() + 20
        while (token := service.get("/v1/tokens")["items"][0])["last_used_at"] is None:
            assert time.monotonic() < deadline
        assert token["last_used_at"] > token["created_at"]
        with httpx.Client(base_url=service.url) as browser:
            login = browser.post("/v1/session", json={"token": secret})
            assert "Max-Age=2" in login.headers["set-cookie"]
            kept = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
            assert httpx.get(f"{service.url}/v1/runs", headers=kept).status_code == 200
            while httpx.get(f"{service.url}/v1/runs", headers=kept).status_code == 200:
                assert time.monotonic() < deadline, "the cookie outlives its session"
                time.sleep(0.05)
    finally:
        service.close()


def test_more_requests_than_the_house_holds_are_told_to_come_back(tmp_path: Path) -> None:
    service = Service(tmp_path, env={"GRADWARDEN_MAX_IN_FLIGHT": "1"})
    try:
        service.call("POST", "/v1/start", json=start_body("full"))
        at = urlsplit(service.url)
        head = f"POST /v1/ingest HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: 10\r\n"
        body = wire.encode(batch("full", [frame(1, values=b"")]))
        with socket.create_connection((at.hostname, at.port)) as slow:
            slow.sendall(head.encode() + f"Content-Type: {wire.MEDIA_TYPE}\r\n\r\n".encode())
            deadline = time.monotonic() + 20
            while (answer := send(service, body)).status_code == 200:
                assert time.monotonic() < deadline
            problem(answer, 503, "unavailable")
            assert answer.headers["retry-after"] == "1"
            assert service.get("/v1/runs")["items"], "people are served all the same"
        while send(service, body).status_code != 200:
            assert time.monotonic() < deadline, "the place is free again"
    finally:
        service.close()


def test_one_token_has_a_rate_and_the_refusal_says_when_to_come_back(tmp_path: Path) -> None:
    service = Service(tmp_path, env={"GRADWARDEN_RATE_PER_SECOND": "3"})
    try:
        service.call("POST", "/v1/start", json=start_body("fast"))
        answers = [send(service, batch("fast", [frame(i, values=b"")])) for i in range(1, 12)]
        refused = [a for a in answers if a.status_code == 429]
        assert refused
        problem(refused[0], 429, "rate-limited")
        assert int(refused[0].headers["retry-after"]) >= 1
        stored = sum(a.json()["stored"] for a in answers if a.status_code == 200)
        assert stored == len(answers) - len(refused)
    finally:
        service.close()
