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


class PostgresServer:
    """A real PostgreSQL in a temporary folder, which can be stopped and started again."""

    def __init__(self) -> None:
        initdb = Path(needs("initdb"))
        needs("postgres")
        self._user = as_user("postgres")
        # Not tmp_path_factory: its folders are closed to other users, and PostgreSQL is one.
        self.folder = Path(tempfile.mkdtemp(prefix="gradwarden-pg-"))
        self.own(self.folder)
        self._data = self.folder / "data"
        self._log = self.folder / "log"
        self._port = free_port()
        self._control = str(initdb.with_name("pg_ctl"))
        create = (str(initdb), "-D", str(self._data), "-U", "gradwarden", "-A", "trust")
        self._call(*create, "-E", "UTF8", "--locale=C", "--no-sync")

    @property
    def url(self) -> str:
        """The URL of its maintenance database."""
        return f"postgresql+psycopg://gradwarden@127.0.0.1:{self._port}/postgres"

    def own(self, folder: Path) -> None:
        """Give a folder to the user it runs as."""
        if self._user:
            shutil.chown(folder, "postgres")

    def start(self) -> None:
        """Start it and wait until it can be reached."""
        options = f"-h 127.0.0.1 -p {self._port} -k {self.folder} -F"
        self._do("-t", "60", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; at once, without a checkpoint, where nothing else is asked for."""
        self._do("-m", mode, "stop")

    def run(self, statement: str) -> None:
        """Run one statement as its owner."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, more: str = "") -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.run(f'CREATE DATABASE "{name}" {more}')
        return self.url.rsplit("/", 1)[0] + f"/{name}"

    def remove(self) -> None:
        """Stop it and leave nothing behind."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _do(self, *words: str) -> None:
        self._call(self._control, "-D", str(self._data), "-l", str(self._log), "-w", *words)

    def _call(self, *words: str) -> None:
        subprocess.run(
            [*self._user, *words],
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for all tests of a session that leave it running."""
    yield from _running()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that one test may stop."""
    yield from _running()


def _running() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a new, empty database on a real PostgreSQL.

    With xdist every worker has its own server, so workers never meet.
    """
    return postgres_server.create()
