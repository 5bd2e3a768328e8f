"""Programs from outside Python that some tests need, and what to do when one is missing.

On a laptop a missing program skips the test, loudly and with the command that installs it.
Where ``CI`` is set it fails the test: a gate that skips quietly guards nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

# program -> the Debian package that brings it
PACKAGES = {
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "initdb": "postgresql",
    "postgres": "postgresql",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "promtool": "prometheus",
    "vmalert": "victoria-metrics",
}
# Debian keeps these off PATH.
OFF_PATH = ("/usr/lib/postgresql/*/bin",)


def find(program: str) -> str | None:
    """The path of a program, on PATH or where Debian hides it; the newest version wins."""
    found = shutil.which(program)
    if found:
        return found
    for pattern in OFF_PATH:
        for folder in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (folder / program).exists():
                return str(folder / program)
    return None


def in_ci() -> bool:
    """Whether missing parts are failures."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(what: str, remedy: str) -> None:
    """Ends the running test: a skip that says what to install, or a failure in CI."""
    message = f"needs {what}; install it with: {remedy}"
    if in_ci():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def needs(program: str) -> str:
    """The path of a program that the test cannot do without."""
    found = find(program)
    if found is None:
        missing(program, f"apt-get install -y --no-install-recommends {PACKAGES[program]}")
    assert found is not None
    return found


def needs_package(name: str) -> None:
    """Ends the running test unless a package from PyPI can be imported."""
    if importlib.util.find_spec(name) is None:
        missing(name, f"pip install {name}")


def as_user(user: str) -> list[str]:
    """The words before a command that run it as another user; none unless we are root.

    PostgreSQL refuses to run as root and Chromium wants no sandbox there, so tests in a
    container step down first.
    """
    if os.geteuid() != 0:
        return []
    for words in (["runuser", "-u", user, "--"], ["setpriv", f"--reuid={user}", "--clear-groups"]):
        if shutil.which(words[0]) and subprocess.run([*words, "true"], check=False).returncode == 0:
            return words
    missing(f"a way to run a program as {user}", "apt-get install -y util-linux")
    return []
