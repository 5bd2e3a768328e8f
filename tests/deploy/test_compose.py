"""docker-compose.yml: valid by the Compose specification, and its parts fit each other."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from sqlalchemy import make_url

from gradwarden_server.notify import spec
from gradwarden_server.settings import Settings
from gradwarden_server.store.shelves.clickhouse_engines import connect
from tests.deploy.stack import ROOT, make_secrets

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "service" / "Dockerfile"


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The parsed file."""
    parsed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return parsed


def test_valid_by_the_specification() -> None:
    schema = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run([sys.executable, *schema], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_valid_by_compose_itself() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose on this machine; the specification's schema was checked")
    done = subprocess.run(
        [docker, "compose", "-f", COMPOSE, "config", "-q"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_images_are_pinned(stack: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in stack["services"].items()}
    assert not {k: v for k, v in images.items() if not re.search(r":v?\d+\.\d+", v)}
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases), bases


def test_every_mount_has_its_source(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name} mounts {source}"
            else:
                assert source in stack["volumes"], f"{name} mounts the undeclared volume {source}"


def test_every_dependency_is_waited_for(stack: dict[str, Any]) -> None:
    services = stack["services"]
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}"


def test_nothing_listens_beyond_this_machine(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_no_secret_is_written_down(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for key in service.get("environment", {}):
            if re.search("PASSWORD|TOKEN|SECRET|KEY", key):
                assert key.endswith("FILE"), f"{name} carries {key} in the open"
    database = make_url(stack["services"]["service"]["environment"]["GRADWARDEN_DB"])
    assert database.password is None


def test_the_service_understands_its_environment(
    stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"GRADWARDEN_{name.upper()}" for name in Settings.model_fields}
    environment = stack["services"]["service"]["environment"]
    image = dict(re.findall(r"(GRADWARDEN_\w+)=(\S+)", DOCKERFILE.read_text()))
    assert {*environment, *image} <= names
    for key, value in {**image, **environment}.items():
        monkeypatch.setenv(key, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    settings = Settings()
    assert not settings.on_loopback
    assert settings.port == 8321
    assert settings.db.startswith("postgresql+psycopg://")
    assert settings.admin_token_file == Path("/secrets/admin_token")


def test_the_service_finds_clickhouse_when_it_is_asked_for(
    stack: dict[str, Any], tmp_path: Path
) -> None:
    """The URL that the head of the file gives fits the server's own environment."""
    clickhouse = stack["services"]["clickhouse"]
    assert clickhouse["profiles"] == ["clickhouse"], "it is not started unless asked for"
    told = re.search(r"GRADWARDEN_SERIES='(.+)'", COMPOSE.read_text())
    assert told is not None
    url = urlsplit(told[1])
    environment = clickhouse["environment"]
    assert (url.hostname, url.port) == ("clickhouse", 8123)
    assert url.username == environment["CLICKHOUSE_USER"]
    assert url.path == f"/{environment['CLICKHOUSE_DB']}"
    (file,) = parse_qs(url.query)["password_file"]
    assert file == environment["CLICKHOUSE_PASSWORD_FILE"]
    make_secrets(tmp_path)
    secret = tmp_path / Path(file).relative_to("/secrets")
    connect(told[1].replace(file, str(secret)))  # understood; nothing is asked of it yet
    limits = ElementTree.parse(ROOT / "deploy" / "clickhouse" / "gradwarden.xml")
    (most,) = limits.getroot().iter("max_server_memory_usage")
    assert int(most.text or 0) < 4 << 30
    assert clickhouse["mem_limit"] == "4g"


def test_the_receivers_file_is_understood() -> None:
    (receiver,) = spec.load(ROOT / "deploy" / "gradwarden" / "receivers.yml", {})
    assert (receiver.type, receiver.url) == ("alertmanager", "http://alertmanager:9093")


def test_the_image_gets_what_the_wheel_is_built_from() -> None:
    """.dockerignore lets in every folder that the build bundles, and no more than exists."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert {"pyproject.toml", "README.md", "LICENSE", "client_sdk", "service"} <= let_in
    assert {"dashboards", "migrations", "alert_rules", "docs"} <= let_in


def test_secrets_are_made_once_and_kept_closed(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    make_secrets(folder)
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert re.fullmatch(r"gw_[0-9a-f]{64}", first["admin_token"])
    assert first["pgpass"] == f"*:*:*:gradwarden:{first['postgres_password']}"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {
        "admin_token": 0o444,
        "clickhouse_password": 0o400,
        "grafana_password": 0o400,
        "pgpass": 0o600,
        "postgres_password": 0o400,
    }
    make_secrets(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == first
