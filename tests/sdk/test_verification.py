"""A checkpoint is looked at before it is loaded: whole, as it was saved, or not known."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

import gradwarden
from tests.sdk.conftest import Watch, mlp
from tests.sdk.fake import FakeService


@pytest.fixture
def monitor(watch: Watch) -> gradwarden.Monitor:
    model = mlp()
    return watch(model, torch.optim.SGD(model.parameters(), 0.1))


def save(monitor: gradwarden.Monitor, path: Path) -> None:
    with monitor.checkpoint(path, 7) as draft:
        torch.save(mlp().state_dict(), draft)
    monitor._session.checkpoints.wait(time.monotonic() + 60)


def damage(path: Path, how: str) -> None:
    """Change a file; ``flip`` leaves its time of change as it was, as a failing disk does."""
    content, before = path.read_bytes(), path.stat()
    changed = {
        "cut": content[: len(content) // 2],
        "tail": content[:-100],
        "flip": content[:900] + bytes([content[900] ^ 1]) + content[901:],
        "empty": b"",
        "again": content + b"",
    }[how]
    path.write_bytes(changed)
    if how == "flip":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_was_saved_is_verified(
    monitor: gradwarden.Monitor, service: FakeService, tmp_path: Path
) -> None:
    save(monitor, tmp_path / "c.pt")
    assert monitor.verify_checkpoint(tmp_path / "c.pt") is True
    monitor.finish()
    saved, looked = service.events("checkpoint")
    assert (looked["ok"], looked["verified"], looked["saved_step"]) == (True, True, 7)
    assert looked["sha256"] == saved["sha256"]
    assert looked["modified_ns"] == saved["modified_ns"]


@pytest.mark.parametrize("how", ["cut", "tail", "flip", "empty"])
def test_a_damaged_checkpoint_is_refused_and_told(
    monitor: gradwarden.Monitor, service: FakeService, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "c.pt"
    save(monitor, path)
    damage(path, how)
    assert monitor.verify_checkpoint(path) is False
    monitor.finish()
    looked = service.events("checkpoint")[-1]
    assert (looked["ok"], looked["verified"]) == (False, False)
    assert looked["error"]


@pytest.mark.parametrize("how", ["cut", "tail", "empty"])
def test_a_file_of_another_process_is_known_to_be_cut_off(
    monitor: gradwarden.Monitor, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "c.pt"
    torch.save(mlp().state_dict(), path)
    assert monitor.verify_checkpoint(path) is None
    damage(path, how)
    assert monitor.verify_checkpoint(path) is False


def test_the_shards_of_a_directory_are_looked_at_one_by_one(
    monitor: gradwarden.Monitor, tmp_path: Path
) -> None:
    with monitor.checkpoint(tmp_path / "c", 7) as draft:
        draft.mkdir()
        torch.save(mlp().state_dict(), draft / "0.pt")
        torch.save(mlp().state_dict(), draft / "1.pt")
    monitor._session.checkpoints.wait(time.monotonic() + 60)
    assert monitor.verify_checkpoint(tmp_path / "c") is True
    damage(tmp_path / "c" / "1.pt", "tail")
    assert monitor.verify_checkpoint(tmp_path / "c") is False


def test_a_file_that_was_written_again_since_is_not_judged(
    monitor: gradwarden.Monitor, tmp_path: Path
) -> None:
    path = tmp_path / "c.pt"
    save(monitor, path)
    torch.save({**mlp().state_dict(), "step": torch.tensor(9)}, path)
    os.utime(path)
    assert monitor.verify_checkpoint(path) is None


def test_a_file_that_is_not_there_is_refused_and_nothing_raises(
    monitor: gradwarden.Monitor, service: FakeService, tmp_path: Path
) -> None:
    assert monitor.verify_checkpoint(tmp_path / "nothing") is False
    assert monitor.verify_checkpoint(7) is None  # type: ignore[arg-type]
    monitor.finish()
    (looked,) = service.events("checkpoint")
    assert "FileNotFoundError" in looked["error"]
    assert monitor.verify_checkpoint(tmp_path / "nothing") is None
