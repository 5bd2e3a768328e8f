"""What the browser is sent: small, without a foreign host, and nothing that the CSP refuses."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from dashboards.build_web import DIST, WEB

SOURCES = sorted([*WEB.glob("src/**/*.svelte"), *WEB.glob("src/**/*.ts")])


# KiB gz that a browser must have before a page shows its first data; what it fetches when a
# part of the page comes into sight is not counted, and printed.
FIRST_LOAD = 60
LIGHTER = {"Runs": 36, "OnCall": 40, "Run": 49}
_IMPORT = re.compile(r"""(?:from|import)\s*["']\./([\w.-]+\.js)["']""")
_LATER = re.compile(r"""import\(["']\./([\w.-]+\.js)["']""")


def needed(file: Path) -> set[Path]:
    """A chunk with all that it imports before it runs."""
    seen: set[Path] = set()
    open_ = [file]
    while open_:
        file = open_.pop()
        if file not in seen:
            seen.add(file)
            open_ += [file.parent / name for name in _IMPORT.findall(file.read_text())]
    return seen


def weigh(files: set[Path]) -> float:
    """KiB of these chunks as a browser receives them."""
    return sum(len(gzip.compress(file.read_bytes(), 9)) for file in files) / 1024


@pytest.mark.usefixtures("dashboard")
def test_the_first_load_of_every_page_is_light() -> None:
    (index,) = DIST.glob("assets/index-*.js")
    pages = {file.stem for file in WEB.glob("src/pages/*.svelte")}
    built = {name: list(DIST.glob(f"assets/{name}-*.js")) for name in pages}
    assert {name for name, files in built.items() if len(files) != 1} == set(), "one chunk each"
    weights = {}
    for name, (file,) in sorted(built.items()):
        first = needed(index) | needed(file)
        later = {p for part in _LATER.findall(file.read_text()) for p in needed(file.parent / part)}
        weights[name] = weigh(first)
        print(f"{name:10} {weights[name]:5.1f} KiB gz, in sight {weigh(later - first):5.1f} more")
    assert {n: w for n, w in weights.items() if w > LIGHTER.get(n, FIRST_LOAD)} == {}


@pytest.mark.usefixtures("dashboard")
def test_the_page_needs_no_exception_from_the_security_policy() -> None:
    index = (DIST / "index.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)", index) == []
    assert "style=" not in index
    assert re.findall(r'(?:src|href)="(?!/)', index) == []
    for file in DIST.rglob("*.css"):
        assert "url(data:" not in file.read_text()
        assert "http" not in file.read_text()


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.name)
def test_names_from_trainers_are_text_and_never_markup(file: Path) -> None:
    text = file.read_text()
    assert "{@html" not in text
    assert "innerHTML" not in text
    assert not re.search(r'\sstyle="', text), "an attribute that the CSP refuses; use style:name"


def test_the_lock_file_names_no_host_and_every_direct_package_is_pinned() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert [name for name, p in lock["packages"].items() if "resolved" in p] == []
    # `npm ci` refuses a lock without them, and a mirror may not list what it does not carry.
    optional = {n for p in lock["packages"].values() for n in p.get("optionalDependencies", {})}
    assert [n for n in optional if f"node_modules/{n}" not in lock["packages"]] == []
    package = json.loads((WEB / "package.json").read_text())
    wanted = package["dependencies"] | package["devDependencies"]
    assert [v for v in wanted.values() if not re.fullmatch(r"\d+\.\d+\.\d+", v)] == []
    assert {n: lock["packages"][f"node_modules/{n}"]["version"] for n in wanted} == wanted
