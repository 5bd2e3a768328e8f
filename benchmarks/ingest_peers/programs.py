"""Programs that the benchmark starts: on free loopback ports, in temporary folders, to the end."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import recorder

START_SECONDS = 90.0
PEERS = recorder.cache_folder() / "peers"
"""Where Python packages of peers are looked for, apart from ours."""


class Missing(Exception):
    """A tool that is not installed here; the text is the command that installs it."""


def program(name: str, package: str) -> str:
    """The path of a Debian program.

    Raises:
        Missing: it is not there.
    """
    for folder in (None, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)):
        found = shutil.which(name, path=str(folder) if folder else None)
        if found:
            return found
    raise Missing(f"apt-get install -y --no-install-recommends {package}")


def python_package(module: str, *packages: str) -> dict[str, str]:
    """An environment in which Python finds a peer's module, in its own folder only.

    Raises:
        Missing: it is not there.
    """
    if not (PEERS / module).is_dir():
        wanted = " ".join(packages or (module,))
        raise Missing(f"{sys.executable} -m pip install --target {PEERS} {wanted}")
    return {**os.environ, "PYTHONPATH": str(PEERS), "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    ready: tuple[int, str] | None = None,
) -> Iterator[int]:
    """The process id of a program that is up; it ends with the block.

    Args:
        ready: a port and a path that answers 200 once it is.

    Raises:
        SystemExit: it did not come up; the text is the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,  # what it started ends with it, below
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while ready is not None and not _answers(*ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait(20)


def get(port: int, path: str, method: str = "GET", timeout: float = 300.0) -> tuple[int, bytes]:
    """Status and body of one request to this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _answers(port: int, path: str) -> bool:
    try:
        return get(port, path, timeout=5.0)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def cpu_seconds(*roots: int) -> float:
    """Processor time of processes and all that they started, the ended ones included."""
    ticks, waiting = 0, list(roots)
    while waiting:
        pid = waiting.pop()
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now, and its parent has its time
        ticks += sum(map(int, text.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def disk_bytes(folder: Path) -> int:
    """What the files under a folder hold."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # merged away meanwhile
    return total


@contextmanager
def postgres() -> Iterator[tuple[str, int]]:
    """A PostgreSQL of its own as initdb sets it up, fsync on: its URL and its process id.

    Raises:
        Missing: it is not installed.
    """
    initdb = Path(program("initdb", "postgresql"))
    program("postgres", "postgresql")
    folder = Path(tempfile.mkdtemp(prefix="gradwarden-bench-pg-"))
    step_down: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        step_down = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()

    def call(name: str, *words: str) -> None:
        command = [*step_down, str(initdb.with_name(name)), "-D", str(data), *words]
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}; its words are above")

    try:
        call("initdb", "-U", "gradwarden", "-A", "trust", "-E", "UTF8", "--locale=C")
        options = f"-h 127.0.0.1 -p {port} -k {folder}"
        call("pg_ctl", "-l", str(folder / "log"), "-w", "-o", options, "start")
        try:
            pid = int((data / "postmaster.pid").read_text().split()[0])
            yield f"postgresql+psycopg://gradwarden@127.0.0.1:{port}/postgres", pid
        finally:
            call("pg_ctl", "-w", "-m", "fast", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
