"""What the browser is sent: small, without a foreign host, and nothing that the CSP refuses."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from dashboards.build_web import DIST, WEB

SOURCES = sorted([*WEB.glob("src/**/*.svelte"), *WEB.glob("src/**/*.ts")])


def weigh(*chunks: str) -> float:
    """KiB of these chunks as a browser receives them."""
    files = [file for chunk in chunks for file in DIST.glob(f"assets/{chunk}-*.js")]
    assert len(files) == len(chunks)
    return sum(len(gzip.compress(file.read_bytes(), 9)) for file in files) / 1024


@pytest.mark.usefixtures("dashboard")
def test_the_first_load_is_light() -> None:
    runs = weigh("index", "base", "Runs")
    hero = weigh("index", "base", "Run")
    page = hero + weigh("LineChart")
    print(f"KiB gz: runs {runs:.1f}, run page {hero:.1f}, with its charts {page:.1f}")
    assert runs <= 30
    assert hero <= 40
    assert page <= 62


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
