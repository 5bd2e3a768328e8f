"""The diagnosis at the end is bounded in time and never stands in the way of the end."""

from __future__ import annotations

import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gradwarden import aftermath
from gradwarden.identity import Identity

ALONE = Identity(run="r", attempt="a", rank=0, world=1, group=0, nonce="n")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spools" / "r.r0.n"
    folder.mkdir(parents=True)
    (folder / "000001.spool").write_bytes(b"x" * 100)
    return folder


def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Another program in the place of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))


def test_what_the_command_says_is_printed(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python(tmp_path, monkeypatch, 'echo "ILL  $*"; echo noise >&2; exit 1')
    aftermath.tell(spool, ALONE, "failed", 60.0)
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"ILL  -m gradwarden_server.cli diagnose --spool {spool}"
    assert second.endswith(f"gradwarden diagnose --spool {spool} --json")


@pytest.mark.parametrize("script", ["exec sleep 600", "exit 2", "kill -9 $$"])
def test_where_it_fails_or_takes_too_long_the_command_is_printed(
    tmp_path: Path,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    python(tmp_path, monkeypatch, script)
    monkeypatch.setattr(aftermath, "SECONDS", 1.0)
    began = time.monotonic()
    aftermath.tell(spool, ALONE, "failed", 60.0)
    assert time.monotonic() - began < 30, "it waited for what was to sleep ten minutes"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f": gradwarden diagnose --spool {spool}")


@pytest.mark.parametrize(
    ("status", "seconds", "size"),
    [("cancelled", 60.0, 100), ("preempted", 60.0, 100), ("failed", 0.5, 100), ("failed", 60.0, 9)],
)
def test_in_a_hurry_or_with_a_large_spool_nothing_is_started(
    tmp_path: Path,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: str,
    seconds: float,
    size: int,
) -> None:
    python(tmp_path, monkeypatch, f"touch {tmp_path}/started")
    if size < 100:
        monkeypatch.setattr(aftermath, "MOST_BYTES", size)
    aftermath.tell(spool, ALONE, status, seconds)
    assert f"gradwarden diagnose --spool {spool}" in capsys.readouterr().err
    assert not (tmp_path / "started").exists()


def test_without_the_server_extra_the_line_that_installs_it_is_printed(
    spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aftermath, "_EXTRA", ("surely_not_installed",))
    aftermath.tell(spool, ALONE, "failed", 60.0)
    said = capsys.readouterr().err
    assert f"pip install 'gradwarden[server]' && gradwarden diagnose --spool {spool}" in said


def test_of_several_ranks_the_first_names_the_command_and_the_others_are_silent(
    spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aftermath.tell(spool, replace(ALONE, world=2, rank=1), "failed", 60.0)
    assert capsys.readouterr().err == ""
    aftermath.tell(spool, replace(ALONE, world=2), "failed", 60.0)
    assert f"gradwarden diagnose r --spool {spool.parent}" in capsys.readouterr().err
