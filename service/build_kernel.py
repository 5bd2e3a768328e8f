"""Compiles the service's C kernel next to the module that loads it, where a C compiler is.

As the SDK's: a wheel with it is tagged for its platform, without it numpy does the same work
in several times the processor time. ``python service/build_kernel.py`` builds in a checkout.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ROOT / "service" / "gradwarden_server" / "store" / "columns"
SOURCE = COLUMNS / "kernel.c"
LIBRARY = COLUMNS / "kernel.so"
STAMP = COLUMNS / "kernel.sha256"
SDK = ROOT / "client_sdk" / "build_kernel.py"

FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra")


def digest() -> str:
    """SHA-256 over the source, this file and the machine it is compiled for."""
    total = hashlib.sha256(sysconfig.get_platform().encode())
    for file in (Path(__file__), SOURCE):
        total.update(file.read_bytes())
    return total.hexdigest()


def is_built() -> bool:
    """Whether the library was made from the source as it is now."""
    return LIBRARY.is_file() and STAMP.is_file() and STAMP.read_text().strip() == digest()


def build() -> str:
    """Build the library unless it is built; "" or why there is none."""
    if is_built():
        return ""
    for old in (LIBRARY, STAMP):
        old.unlink(missing_ok=True)
    words = runpy.run_path(str(SDK))["compiler"]()
    if words is None or sys.platform == "win32":
        return "no C compiler found"
    # Under a name of its own first: a running process may have the old one mapped.
    fresh = LIBRARY.with_suffix(f".{os.getpid()}")
    command = [*words, *FLAGS, str(SOURCE), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(command)} failed: {error.stderr.strip()[-500:]}"
    fresh.replace(LIBRARY)
    STAMP.write_text(f"{digest()}\n")
    return ""


def into_wheel(version: str, build_data: dict[str, Any]) -> None:
    """The kernel's part of the build hook, for a wheel of hatchling's or an editable install."""
    why = build()
    if why:
        print(f"build_kernel: {why}; segments will be made by numpy alone", flush=True)
    elif version != "editable":
        from packaging.tags import platform_tags  # hatchling brings it

        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(iter(platform_tags()))}"
        place = LIBRARY.relative_to(ROOT / "service").as_posix()
        build_data["force_include"][str(LIBRARY)] = place


if __name__ == "__main__":
    problem = build()
    print(f"kernel: {problem or LIBRARY}")
