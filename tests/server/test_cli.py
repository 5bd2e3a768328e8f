"""The ``gradwarden`` command as a user types it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.server.pager import Answer, LocalReceiver
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, clean_environment, gradwarden

RECEIVERS = """\
receivers:
  - name: oncall
    type: webhook
    url: {url}
    allow_private: true
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    """Somebody to tell."""
    listening = LocalReceiver()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, receiver: LocalReceiver) -> Iterator[Service]:
    """A service with a receiver and a run."""
    running = Service(
        tmp_path_factory.mktemp("house"), receivers=RECEIVERS.format(url=receiver.url)
    )
    begin(running, "r1")
    send(running, batch("r1", [frame(1), frame(2, bad_row=2)]))
    yield running
    running.close()


def test_version_and_help_say_what_there_is() -> None:
    assert gradwarden("--version").stdout.startswith("gradwarden 0.")
    text = gradwarden("--help").stdout
    told = "serve migrate token runs alerts receivers halt command check sync export import "
    told += "replay backtest tune drill promote"
    for command in told.split():
        assert f"\n    {command}" in text, command
    assert "exit codes:" in text
    for words in (["serve"], ["token", "create"], ["receivers", "test"], ["sync"], ["tune"]):
        shown = gradwarden(*words, "--help")
        assert shown.returncode == 0
        assert "example:\n  gradwarden" in shown.stdout
    wrong = gradwarden("serv")
    assert wrong.returncode == 2
    assert "gradwarden --help" in wrong.stderr


def test_serve_lives_in_an_empty_home_and_ends_cleanly(tmp_path: Path) -> None:
    home = clean_environment(HOME=str(tmp_path))
    home.pop("XDG_DATA_HOME", None)
    command = [sys.executable, "-m", "gradwarden_server.cli", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("gradwarden: listening on http://127.0.0.1:")
    assert (tmp_path / ".local/share/gradwarden/gradwarden.sqlite").exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_a_port_in_use_or_a_wrong_setting_is_told_before_anything_starts(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path}/gw.sqlite"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        busy = gradwarden("serve", "--port", port, "--db", db)
    assert (busy.returncode, "--port" in busy.stderr) == (3, True)
    wrong = gradwarden("serve", "--db", db, env={"GRADWARDEN_MAX_IN_FLIGHT": "many"})
    assert wrong.returncode == 2
    assert "max_in_flight" in wrong.stderr
    assert "'many'" in wrong.stderr
    other = gradwarden("serve", "--port", "0", "--db", "mysql://x/y")
    assert (other.returncode, "postgresql" in other.stderr) == (2, True)
    file = tmp_path / "file"
    file.touch()
    nowhere = gradwarden("serve", "--port", "0", "--db", f"sqlite:///{file}/gw.sqlite")
    assert (nowhere.returncode, str(file) in nowhere.stderr) == (3, True)
    broken = tmp_path / "receivers.yaml"
    broken.write_text("receivers:\n  - name: x\n    typ: webhook\n")
    refused = gradwarden("serve", "--port", "0", "--db", db, "--receivers", str(broken))
    assert refused.returncode == 2
    assert "typ" in refused.stderr
    told = busy.stderr + wrong.stderr + other.stderr + nowhere.stderr + refused.stderr
    assert "Traceback" not in told


def test_kubernetes_service_links_do_not_break_the_port(tmp_path: Path) -> None:
    service = Service(tmp_path, env={"GRADWARDEN_PORT": "tcp://10.0.0.1:8321"})
    try:
        assert service.get("/-/healthy")
    finally:
        service.close()


def test_commands_that_write_beside_a_running_service_refuse_or_go_through_it(
    house: Service,
) -> None:
    create = ["token", "create", "--name", "ci", "--json"]
    refused = gradwarden(*create, "--db", house.db)
    assert refused.returncode == 3
    assert "--url" in refused.stderr
    assert "pid" in refused.stderr
    assert gradwarden("migrate", "--db", house.db).returncode == 3
    second = gradwarden("serve", "--port", "0", "--db", house.db)
    assert (second.returncode, "pid" in second.stderr) == (3, True)
    made = json.loads(gradwarden(*create, "--url", house.url).stdout)
    assert made["secret"].startswith("gw_")
    for way in (["--url", house.url], ["--db", house.db]):
        listed = json.loads(gradwarden("token", "list", "--json", *way).stdout)
        assert [token["name"] for token in listed["items"]] == ["ci"]
    closed = gradwarden("token", "revoke", str(made["id"]), "--url", house.url)
    assert closed.returncode == 0


def test_tokens_are_made_listed_and_revoked_on_the_database(tmp_path: Path) -> None:
    db = ("--db", f"sqlite:///{tmp_path}/new/gw.sqlite")
    assert gradwarden("token", "list", *db).stdout.startswith("no tokens; make one with")
    made = gradwarden("token", "create", "--name", "a", "--scope", "read", "--days", "30", *db)
    assert made.stdout.strip().startswith("gw_")
    (token,) = json.loads(gradwarden("token", "list", "--json", *db).stdout)["items"]
    assert (token["scope"], token["revoked_at"]) == ("read", None)
    assert token["expires_at"]
    assert made.stdout.strip() not in gradwarden("token", "list", *db).stdout
    revoked = gradwarden("token", "revoke", str(token["id"]), *db)
    assert revoked.returncode == 0
    again = gradwarden("token", "revoke", str(token["id"]), *db)
    assert (again.returncode, "token list" in again.stderr) == (2, True)
    assert gradwarden("token", "create", "--name", "b", "--days", "-1", *db).returncode == 2
    assert gradwarden("token", "create", "--scope", "admin", *db).stdout.startswith("gw_")
    unnamed = json.loads(gradwarden("token", "list", "--json", *db).stdout)["items"][0]
    assert (unnamed["name"], unnamed["scope"]) == ("admin", "admin")


def test_migrate_makes_the_schema_and_may_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "gw.sqlite"
    for _ in range(2):
        assert gradwarden("migrate", "--db", f"sqlite:///{path}").returncode == 0
    with sqlite3.connect(path) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert {"run", "frame_batch", "token", "alembic_version"} <= names


def test_runs_and_alerts_are_read_by_people_and_by_programs(house: Service) -> None:
    at = ("--url", house.url)
    shown = gradwarden("runs", *at)
    assert shown.returncode == 0
    assert "name of r1" in shown.stdout
    assert len(shown.stdout.splitlines()) == 2, "a row is a line, and nothing is cut"
    assert "…" not in shown.stdout
    (run,) = json.loads(gradwarden("runs", "--json", *at).stdout)["items"]
    assert run["run"] == "r1"
    assert "blocks.0.weight" in gradwarden("runs", "r1", "--json", *at).stdout
    assert "step" in gradwarden("runs", "r1", *at).stdout
    missing = gradwarden("runs", "none", *at)
    assert (missing.returncode, "no run of that name" in missing.stderr) == (2, True)
    ended = gradwarden("runs", "--state", "finished", *at)
    assert "no runs yet" in ended.stdout
    alerts = json.loads(
        gradwarden("alerts", "--state", "pending,firing,resolved", "--json", *at).stdout
    )
    assert all(alert["labels"]["run"] == "r1" for alert in alerts["items"])
    by_environment = gradwarden("runs", "--json", env={"GRADWARDEN_URL": house.url})
    assert json.loads(by_environment.stdout)["items"]


def test_a_receiver_is_tested_and_a_refusal_is_an_exit_code(
    house: Service, receiver: LocalReceiver
) -> None:
    at = ("--url", house.url)
    assert "oncall" in gradwarden("receivers", "list", *at).stdout
    told = gradwarden("receivers", "test", "oncall", *at)
    assert (told.returncode, "took the test message" in told.stdout) == (0, True)
    receiver.answers.append(Answer(status=403))
    refused = gradwarden("receivers", "test", "oncall", "--json", *at)
    assert (refused.returncode, json.loads(refused.stdout)["ok"]) == (1, False)
    unknown = gradwarden("receivers", "test", "nobody", *at)
    assert (unknown.returncode, "oncall" in unknown.stderr) == (2, True)


def test_nobody_there_or_no_token_is_told_with_what_to_do(tmp_path: Path) -> None:
    alone = gradwarden("runs", "--url", f"http://127.0.0.1:{free_port()}")
    assert (alone.returncode, "gradwarden serve" in alone.stderr) == (3, True)
    db = f"sqlite:///{tmp_path}/gradwarden.sqlite"
    secret = gradwarden("token", "create", "--name", "x", "--scope", "read", "--db", db)
    service = Service(tmp_path, host="0.0.0.0")
    try:
        stranger = gradwarden("runs", "--url", service.url)
        assert (stranger.returncode, "GRADWARDEN_TOKEN" in stranger.stderr) == (4, True)
        known = {"GRADWARDEN_TOKEN": secret.stdout.strip()}
        assert gradwarden("runs", "--url", service.url, env=known).returncode == 0
        small = gradwarden("token", "list", "--url", service.url, env=known)
        assert (small.returncode, "admin" in small.stderr) == (4, True)
    finally:
        service.close()


WRONG_GROUPS = """groups:
- name: g
  interval: 10ms
  rules: [{alert: Torn, expr: 'sum('},
    {alert: Told, expr: 'up', labels: {severity: critical}, annotations: {summary: '{{ range }}'}},
    {record: gradwarden_loss, expr: 'up'},
    {alert: Odd, expr: 'up', four: 5m}]
"""
DOUBTFUL_GROUPS = """groups:
- name: g
  rules:
  - {alert: Quiet, expr: 'gradwarden_gradient_norm > 10'}
  - {alert: Lost, expr: 'sum(gradwarden_scalar{quantity="tokens"}) < 1'}
  - {alert: Scraped, expr: 'gradwarden_run_info{job="digits"} == 1'}
"""


def test_files_are_checked_before_the_service_reads_them(tmp_path: Path) -> None:
    shipped = gradwarden("check", "rules")
    assert shipped.returncode == 0, shipped.stderr
    (tmp_path / "bad.yaml").write_text("detectors:\n  - alert: X\n    detector: none\n    odd: 1\n")
    bad = gradwarden("check", "rules", str(tmp_path))
    assert bad.returncode == 1
    assert "bad.yaml" in bad.stderr
    assert "odd" in bad.stderr
    assert gradwarden("check", "rules", str(tmp_path / "nowhere")).returncode == 2
    groups = tmp_path / "groups.yml"
    groups.write_text(WRONG_GROUPS)
    bad = gradwarden("check", "rules", str(tmp_path / "bad.yaml"), str(groups))
    assert bad.returncode == 1
    for said in (
        "bad.yaml:4: X: unknown key 'odd'",
        "groups.yml:2: group g: interval is 10ms, expected 1s or more",
        "groups.yml:4: Torn: expr: parse error",
        "groups.yml:5: Told: annotations.summary: ",
        "groups.yml:5: Told: labels.severity is 'critical', expected one of page, ticket, note",
        "groups.yml:6: gradwarden_loss: record is gradwarden_loss, which the service writes",
        "groups.yml:7: Odd: unknown key 'four'",
    ):
        assert said in bad.stderr, bad.stderr
    groups.write_text(DOUBTFUL_GROUPS)
    doubtful = gradwarden("check", "rules", str(groups))
    assert doubtful.returncode == 0, doubtful.stderr
    for said in ("Quiet: a comparison with NaN", "Lost: the result has no label run", "label job"):
        assert said in doubtful.stderr, doubtful.stderr
    file = tmp_path / "receivers.yml"
    file.write_text("receivers:\n  - name: x\n    type: pigeon\n    url: https://x.example/\n")
    wrong = gradwarden("check", "receivers", str(file))
    assert (wrong.returncode, "pigeon" in wrong.stderr) == (1, True)


def test_output_into_a_closed_pipe_is_no_error(house: Service) -> None:
    command = f"{sys.executable} -m gradwarden_server.cli runs --json --url {house.url} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_hostile_names_do_not_reach_the_terminal_as_codes(house: Service) -> None:
    begin(house, "evil", name="\x1b[2Jgone [red]x[/red]")
    shown = gradwarden("runs", "--query", "gone", "--url", house.url).stdout
    assert "\x1b" not in shown
    assert "[red]x[/red]" in shown


def test_sync_sends_a_spool_or_says_that_there_is_none(house: Service, tmp_path: Path) -> None:
    missing = gradwarden("sync", str(tmp_path / "nowhere"), "--url", house.url)
    assert (missing.returncode, "nowhere" in missing.stderr) == (2, True)
    empty = gradwarden("sync", str(tmp_path), "--url", house.url, "--json")
    assert empty.returncode == 0, empty.stderr
    assert json.loads(empty.stdout)["spools"] == 0


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    # A stand-in that cannot be imported is what an environment without the extra looks like.
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('gone', name='uvicorn')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    missing = gradwarden("serve", env={"PYTHONPATH": path})
    assert missing.returncode == 2
    assert 'pip install "gradwarden[server]"' in missing.stderr
