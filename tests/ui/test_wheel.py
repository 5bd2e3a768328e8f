"""The wheel holds the dashboard although the machine that builds it has no Node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.needs import missing

ROOT = Path(__file__).parents[2]
# What a fresh clone has: tracked files, and new ones that git does not ignore.
LISTING = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")


def path_without_node(folder: Path) -> str:
    """A PATH on which every program but Node's can be found."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            link = folder / program.name
            if program.name not in ("node", "npm", "npx", "corepack") and not os.path.lexists(link):
                link.symlink_to(program)
    return str(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, where nothing is built yet."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(LISTING, cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    path = path_without_node(folder / "bin")
    assert shutil.which("node", path=path) is None
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder / "out", folder / "source"],
        check=True,
        env={**os.environ, "PATH": path},
    )
    (file,) = (folder / "out").glob("*.whl")
    return zipfile.ZipFile(file)


def test_a_wheel_built_without_node_holds_the_dashboard(wheel: zipfile.ZipFile) -> None:
    bundled = "gradwarden_server/_bundled"
    names = wheel.namelist()
    index = wheel.read(f"{bundled}/web/index.html").decode()
    script = next(n for n in names if n.startswith(f"{bundled}/web/assets/index-"))
    assert script.removeprefix(f"{bundled}/web") in index
    for name in ("migrations/env.py", "web/assets/theme.js"):
        assert f"{bundled}/{name}" in names
    for folder in ("alert_rules", "grafana", "runbooks"):
        assert any(n.startswith(f"{bundled}/{folder}/") for n in names), folder


def test_a_wheel_holds_two_packages_and_no_build_leftovers(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"gradwarden", "gradwarden_server"}
    assert not [n for n in wheel.namelist() if "node_modules" in n or n.endswith(".ts")]


def test_a_wheel_holds_the_kernel_and_is_tagged_for_it(wheel: zipfile.ZipFile) -> None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        missing("a C compiler", "apt-get install -y gcc")
    assert "gradwarden/stats/kernel.so" in wheel.namelist()
    assert "gradwarden_server/store/columns/kernel.so" in wheel.namelist()
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", str(wheel.filename))
