"""The demo's own service: started in the background, left up for its dashboard, stopped once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

READY = "gradwarden: listening on "
_RECEIVERS = """\
receivers:
  - name: demo-pager
    type: webhook
    url: {url}
    allow_private: true
"""


@dataclass(frozen=True, slots=True)
class DemoService:
    """A running ``gradwarden serve`` with a fresh SQLite file."""

    url: str
    pid: int


class ServiceFailed(RuntimeError):
    """``gradwarden serve`` ended before it listened; the text holds what it printed."""


def folder() -> Path:
    """Where the demo keeps its database and log: XDG's state directory."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "gradwarden" / "demo"


def start(pager_url: str) -> DemoService:
    """Start a service that notifies ``pager_url``, in place of an earlier demo's.

    Raises:
        ServiceFailed: it did not come up.
    """
    stop()
    at = folder()
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    (at / "receivers.yaml").write_text(_RECEIVERS.format(url=pager_url))
    command = [sys.executable, "-m", "gradwarden_server.cli", "serve", "--port", "0"]
    command += ["--db", f"sqlite:///{at}/gradwarden.sqlite"]
    command += ["--receivers", str(at / "receivers.yaml")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    environment["GRADWARDEN_SHADOW_DAYS"] = "0"  # a fresh project, and its pages are the point
    with (at / "service.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            url = line.removeprefix(READY).strip()
            service = DemoService(url, process.pid)
            (at / "service.json").write_text(json.dumps({"url": url, "pid": process.pid}))
            return service
    raise ServiceFailed((at / "service.log").read_text()[-2000:])


def stop() -> bool:
    """Stop the service that an earlier demo left up; whether there was one."""
    note = folder() / "service.json"
    try:
        pid = int(json.loads(note.read_text())["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        ours = b"gradwarden_server.cli" in command
    except (OSError, ValueError, KeyError):
        return False
    note.unlink(missing_ok=True)
    if not ours:  # the number was given to another process since
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True
