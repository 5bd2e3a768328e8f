"""Compiles the SDK's C kernel next to the module that loads it, where a C compiler is.

A wheel with a kernel is tagged for its platform; without a compiler the wheel is pure, the SDK
measures with torch alone, and one line says so. ``python client_sdk/build_kernel.py`` builds in
a checkout. Built means: the hash of the sources is the one that the last build wrote.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

STATS = Path(__file__).resolve().parent / "gradwarden" / "stats"
SOURCES = STATS / "kernel"
LIBRARY = STATS / "kernel.so"
STAMP = STATS / "kernel.sha256"

FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fopenmp-simd", "-ffp-contract=fast", "-Wall", "-Wextra")
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
X86 = {
    "base": (),
    "avx2": AVX2,
    "avx512": (*AVX2, *AVX512),  # the same vectors of 32 bytes, but twice the registers
}


def compiler() -> list[str] | None:
    """The words that call a C compiler: $CC, or the first of the usual names."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for words in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(words[0]):
            return words
    return None


def digest() -> str:
    """SHA-256 over the sources, this file and the machine they are compiled for."""
    total = hashlib.sha256(sysconfig.get_platform().encode())
    for file in [Path(__file__), *sorted(SOURCES.glob("*.[ch]"))]:
        total.update(f"{file.name}\0".encode() + file.read_bytes())
    return total.hexdigest()


def is_built() -> bool:
    """Whether the library was made from the sources as they are now."""
    return LIBRARY.is_file() and STAMP.is_file() and STAMP.read_text().strip() == digest()


def build() -> str:
    """Build the library unless it is built; "" or why there is none."""
    if is_built():
        return ""
    for old in (LIBRARY, STAMP):
        old.unlink(missing_ok=True)
    if sys.platform == "win32":
        return "no C kernel on Windows"
    words = compiler()
    if words is None:
        return "no C compiler found"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(words, Path(folder))
        except subprocess.CalledProcessError as error:
            return f"{shlex.join(map(str, error.cmd))} failed: {error.stderr.strip()[-500:]}"
        # Under a name of its own first: a running process may have the old one mapped.
        fresh = LIBRARY.with_suffix(f".{os.getpid()}")
        shutil.copy(Path(folder) / LIBRARY.name, fresh)
        fresh.replace(LIBRARY)
    STAMP.write_text(f"{digest()}\n")
    return ""


def _compile(words: list[str], folder: Path) -> None:
    """One object of body.c for each instruction set, and kernel.c that chooses."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = X86 if x86 else {"base": ()}
    common = [*words, *FLAGS, *(["-DWITH_X86"] if x86 else [])]
    objects = []
    for name, flags in sets.items():
        objects.append(folder / f"{name}.o")
        hidden = (*flags, "-fvisibility=hidden", f"-DVARIANT={name}")
        _call([*common, *hidden, "-c", SOURCES / "body.c", "-o", objects[-1]])
    _call([*common, "-shared", SOURCES / "kernel.c", *objects, "-o", folder / LIBRARY.name, "-lm"])


def _call(command: list[Any]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def into_wheel(version: str, build_data: dict[str, Any]) -> None:
    """The kernel's part of the build hook, for a wheel of hatchling's or an editable install."""
    why = build()
    if why:
        print(f"build_kernel: {why}; gradients will be measured by torch alone", flush=True)
    elif version != "editable":
        from packaging.tags import platform_tags  # hatchling brings it

        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(iter(platform_tags()))}"
        build_data["force_include"][str(LIBRARY)] = f"gradwarden/stats/{LIBRARY.name}"


if __name__ == "__main__":
    problem = build()
    print(f"kernel: {problem or LIBRARY}")
