"""Brings the Debian packages that tests need, where that is allowed; else says what it means."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.needs import PACKAGES, find


def main() -> None:
    """Installs what is missing as root on Debian; elsewhere prints the command."""
    packages = sorted({package for program, package in PACKAGES.items() if not find(program)})
    if not packages:
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(
            f"gradwarden: not installed: {', '.join(packages)}. Tests that need them are skipped "
            f"(with CI set, they fail). To run them: sudo {' '.join(command)}",
            flush=True,
        )
        return
    print(f"gradwarden: installing {', '.join(packages)} for the tests", flush=True)
    # Run level 1 keeps the packages' own daemons from starting: tests bring up their own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["apt-get", "update", "-qq"], command):
        done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            # Not the end: the tests that need them say so one by one, and in CI they fail.
            print(f"gradwarden: failed: {' '.join(words)}", flush=True)
            return


if __name__ == "__main__":
    main()
