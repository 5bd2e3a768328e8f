"""A real service for tests: ``gradwarden serve`` in a process of its own, on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

READY = "gradwarden: listening on "
_PATIENCE_SECONDS = 60.0


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, so that a laptop's do not leak in."""
    ours = ("GRADWARDEN_", "OTEL_")
    mine = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    # A busy machine would choose which steps are captured.
    return mine | {"GRADWARDEN_THROTTLE": "0"} | more


def gradwarden(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "gradwarden_server.cli", *arguments],
        env=clean_environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


class Service:
    """Starts on construction, keeps its database over ``kill`` and ``start``.

    After the first start the port stays the same, so that clients find it again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        receivers: str | None = None,
        db: str | None = None,
        host: str = "127.0.0.1",
        env: Mapping[str, str] | None = None,
        token: str | None = None,
        program: str = "gradwarden_server.cli",
    ) -> None:
        """``receivers`` is the YAML text of the receivers file; ``token`` goes on every call.

        ``program`` is the module that is run with ``serve``.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gradwarden.sqlite"
        self.db = db or f"sqlite:///{self.path}"
        self.host = host
        self.token = token
        self.program = program
        self.env = dict(env or {})
        self.log = folder / "service.log"
        self.url = ""
        self._port = 0
        self._receivers: Path | None = None
        if receivers is not None:
            self._receivers = folder / "receivers.yaml"
            self._receivers.write_text(receivers, encoding="utf-8")
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start and wait until it can be reached.

        Raises:
            AssertionError: it ended instead; the text is its log.
        """
        command = [sys.executable, "-m", self.program, "serve"]
        command += ["--host", self.host, "--port", str(self._port), "--db", self.db]
        if self._receivers is not None:
            command += ["--receivers", str(self._receivers)]
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # A fresh project pages here at once; tests of its shadow period say so.
                env=clean_environment(**{"GRADWARDEN_SHADOW_DAYS": "0"} | self.env),
            )
        # A start that neither speaks nor ends would hang the read below.
        watchdog = threading.Timer(_PATIENCE_SECONDS, self.process.kill)
        watchdog.start()
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if line.startswith(READY):
                    self._port = int(line.strip().rpartition(":")[2])
                    self.url = f"http://127.0.0.1:{self._port}"
                    return
        finally:
            watchdog.cancel()
        raise AssertionError(f"the service did not start: {self.log_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL: no goodbye, as when a node dies."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        """SIGKILL and start again on the same port and database."""
        self.kill()
        self.start()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One HTTP call."""
        headers = dict(more.pop("headers", None) or {})
        if self.token and "authorization" not in {name.lower() for name in headers}:
            headers["Authorization"] = f"Bearer {self.token}"
        timeout = more.pop("timeout", 30)
        return httpx.request(method, self.url + path, headers=headers, timeout=timeout, **more)

    def get(self, path: str, **more: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = self.call("GET", path, **more)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def log_text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def close(self) -> None:
        """Stop it, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            code = self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code
