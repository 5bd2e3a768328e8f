"""Real parts that several rooms' tests share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import as_user, needs

# torch's threads wait for each other by spinning, which takes minutes where tests share cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real, empty PostgreSQL in a temporary folder; the URL of its maintenance database."""
    initdb = Path(needs("initdb"))
    needs("postgres")
    user = as_user("postgres")
    # Not tmp_path_factory: its folders are closed to other users, and PostgreSQL is one.
    folder = Path(tempfile.mkdtemp(prefix="gradwarden-pg-"))
    if user:
        shutil.chown(folder, "postgres")
    data, log, port = folder / "data", folder / "log", free_port()

    def call(*words: str) -> None:
        subprocess.run(
            [*user, *words],
            check=True,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    control = (str(initdb.with_name("pg_ctl")), "-D", str(data), "-l", str(log), "-w")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    try:
        create = (str(initdb), "-D", str(data), "-U", "gradwarden", "-A", "trust")
        call(*create, "-E", "UTF8", "--locale=C", "--no-sync")
        call(*control, "-t", "60", "-o", options, "start")
        yield f"postgresql+psycopg://gradwarden@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            call(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of a new, empty database on a real PostgreSQL.

    With xdist every worker has its own server, so workers never meet.
    """
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    plain = postgres_server.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return postgres_server.rsplit("/", 1)[0] + f"/{name}"
