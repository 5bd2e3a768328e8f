"""The small parts: names and kinds of rows, identity, commit, checkpoints, coverage."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradwarden import coverage, facts, identity
from gradwarden.checkpoint import Checkpoints
from gradwarden.errors import Faults
from gradwarden.layout import Rows, block, clean
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"ln": nn.LayerNorm(4), "mlp": nn.Linear(4, 4)}) for _ in range(2)
        )
        self.experts = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.lora_a = nn.Linear(4, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(4))
        self.lm_head = nn.Linear(4, 10, bias=False)


def test_rows_have_names_blocks_and_kinds() -> None:
    rows = Rows(nn.ModuleDict({"module": Net()}))
    found = {p.name: (p.block, p.kind) for p in rows.described}
    assert found == {
        "scale": ("scale", "other"),
        "wte.weight": ("wte", "embedding"),
        "blocks.0.ln.weight": ("blocks.0", "norm"),
        "blocks.0.ln.bias": ("blocks.0", "norm"),
        "blocks.0.mlp.weight": ("blocks.0", "matrix"),
        "blocks.0.mlp.bias": ("blocks.0", "bias"),
        "blocks.1.ln.weight": ("blocks.1", "norm"),
        "blocks.1.ln.bias": ("blocks.1", "norm"),
        "blocks.1.mlp.weight": ("blocks.1", "matrix"),
        "blocks.1.mlp.bias": ("blocks.1", "bias"),
        "experts.0.weight": ("experts.0", "expert"),
        "lora_a.weight": ("lora_a", "adapter"),
        "lm_head.weight": ("lm_head", "head"),
    }


def test_wrappers_leave_no_trace_in_names() -> None:
    assert clean("module._orig_mod.a.module.b.weight") == "a.b.weight"
    assert clean("submodule.weight") == "submodule.weight"
    assert block("a.b.12.c.weight") == "a.b.12"


def test_ulids_sort_by_time_and_never_repeat() -> None:
    assert identity.ulid(10**18) < identity.ulid(10**18 + 10**6)
    assert len({identity.ulid(0) for _ in range(1000)}) == 1000
    assert len(identity.ulid()) == 26


RUNS = [
    ("argument", {"GRADWARDEN_RUN_ID": "b"}, "argument"),
    (None, {"GRADWARDEN_RUN_ID": "b", "TORCHELASTIC_RUN_ID": "c"}, "b"),
    (None, {"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "41"}, "41"),
    (None, {"TORCHELASTIC_RUN_ID": "c", "SLURM_JOB_ID": "41"}, "c"),
    (None, {"GRADWARDEN_JOB_UID": "uid-1"}, "uid-1"),
    (None, {}, None),
]


@pytest.mark.parametrize(("argument", "environment", "expected"), RUNS)
def test_the_run_id_comes_from_whoever_knows_it_first(
    argument: str | None,
    environment: dict[str, str],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert identity.known_run(argument) == expected


def test_ranks_without_a_process_group_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "node-0")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append(identity.Resolver(None, None).look(None, cell=None))
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0].run, found[0].attempt) == (found[1].run, found[1].attempt)
    assert [(f.rank, f.group, f.world) for f in found if f] == [(0, 0, 2), (1, 0, 2)]


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    assert facts.git_commit(tmp_path) is None

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "deep").mkdir()
    assert facts.git_commit(tmp_path / "deep") == head
    git("pack-refs", "--all")
    assert facts.git_commit(tmp_path) == head
    git("worktree", "add", "-q", "tree")
    assert facts.git_commit(tmp_path / "tree") == head
    git("checkout", "-q", "--detach")
    assert facts.git_commit(tmp_path) == head


def saved(report: list[dict[str, Any]], guard: Checkpoints) -> dict[str, Any]:
    guard.wait(time.monotonic() + 10)
    (event,) = report
    return event


@pytest.mark.parametrize("own_path", [True, False])
def test_a_checkpoint_is_renamed_and_described(own_path: bool, tmp_path: Path) -> None:
    report: list[dict[str, Any]] = []
    guard = Checkpoints(report.append, Faults())
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with guard.save(path, 7) as draft:
        (path if own_path else draft).write_bytes(b"weights")
        assert own_path or path.read_bytes() == b"old"
    assert path.read_bytes() == b"weights"
    assert os.listdir(tmp_path) == ["model.pt"]
    event = saved(report, guard)
    assert event["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (event["ok"], event["bytes"], event["saved_step"]) == (True, 7, 7)
    assert event["seconds"] >= 0


@pytest.mark.parametrize("sick", [True, False])
def test_of_what_a_trainer_saved_it_is_known_whether_it_is_finite(
    tmp_path: Path, sick: bool
) -> None:
    report: list[dict[str, Any]] = []
    guard = Checkpoints(report.append, Faults(), lambda: sick)
    (tmp_path / "checkpoint-7").write_bytes(b"weights")
    guard.saved(tmp_path / "checkpoint-7", 7)
    event = saved(report, guard)
    assert (event["ok"], event["finite"], event["saved_step"]) == (True, not sick, 7)


def test_how_a_run_is_resumed_is_told_with_its_place(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, resume_command="sbatch resume.sh {checkpoint}")
    model(batch(0)).sum().backward()
    optimizer.step()
    monitor.finish()
    assert service.starts[0]["place"]["resume_command"] == "sbatch resume.sh {checkpoint}"


def test_a_checkpoint_may_be_a_directory(tmp_path: Path) -> None:
    report: list[dict[str, Any]] = []
    guard = Checkpoints(report.append, Faults())
    for content in (b"one", b"second"):
        with guard.save(tmp_path / "shards", None) as draft:
            draft.mkdir()
            (draft / "0.bin").write_bytes(content)
    guard.wait(time.monotonic() + 10)
    assert (tmp_path / "shards" / "0.bin").read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["shards"]
    assert [e["bytes"] for e in report] == [3, 6]


def test_a_failing_save_raises_its_own_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    report: list[dict[str, Any]] = []
    guard = Checkpoints(report.append, Faults())
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def save() -> None:
        with guard.save(path, 1) as draft:
            draft.write_bytes(b"half")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        save()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]
    assert saved(report, guard)["ok"] is False


def test_a_body_that_saved_nothing_is_not_called_good(tmp_path: Path) -> None:
    report: list[dict[str, Any]] = []
    guard = Checkpoints(report.append, Faults())
    with guard.save(tmp_path / "nothing", 1):
        pass
    event = saved(report, guard)
    assert event["ok"] is False
    assert "FileNotFoundError" in event["error"]


def test_checkpoint_mark_and_phase_travel_as_events(
    service: FakeService, watch: Watch, tmp_path: Path
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer)
    model(batch(0)).sum().backward()
    optimizer.step()
    with monitor.checkpoint(tmp_path / "c.pt", 0) as draft:
        torch.save(model.state_dict(), draft)
    monitor.mark("tokenizer", "v2")
    with monitor.phase("data"):
        pass
    monitor.finish()
    (checkpoint,) = service.events("checkpoint")
    assert checkpoint["sha256"] == hashlib.sha256((tmp_path / "c.pt").read_bytes()).hexdigest()
    assert service.events("mark") == [{"kind": "mark", "name": "tokenizer", "value": "v2"}]
    assert [(e["name"], e["seconds"] >= 0) for e in service.events("phase")] == [("data", True)]
    assert service.events("start")[0]["hooks"] == ["clip", "step", "scaler", "zero_grad"]


def test_the_coverage_line_says_what_one_more_line_adds() -> None:
    seen = {"step_seconds", "lr"}
    bare = coverage.Facts(seen, hooks=["clip", "step"], seconds=0.0005)
    assert coverage.line(bare) == (
        "12 of 22 detectors armed; "
        "monitor.log(loss=loss) adds NonFiniteLoss, LossSpike, LossDivergence; "
        "val_loss at evaluations adds Overfitting; "
        "monitor.checkpoint(path, step) watches checkpoints; "
        "GRADWARDEN_URL adds RunStalled, RankSilent, RunFailed; "
        "hooks: clip, step; cost 0.50 ms a step"
    )
    logged = seen | {"loss", "val_loss"}
    full = replace(bare, scalars=logged, server=True, saved=True, hooks=["step"], seconds=0.001)
    assert coverage.line(full) == "22 of 22 detectors armed; hooks: step; cost 1.00 ms a step"
    down = coverage.line(replace(full, server=False))
    assert down.startswith("19 of 22 detectors armed; RunStalled, RankSilent, RunFailed wait for")
    ready, lacking = coverage.armed(replace(full, scalars=logged - {"lr"}))
    assert lacking == ["UpdateRatioOutOfBand"]
    assert "UpdateRatioOutOfBand" not in ready


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        ({"world": 4}, {"ReplicaMismatch", "NeverSynchronized", "AllReduceSlow", "Straggler"}),
        ({"scalars": {"clip_coefficient"}}, {"ClipSaturation", "NormSelfCheckFailed"}),
        ({"scalars": {"loss_scale"}}, {"GradientUnderflow", "LossScaleCollapse"}),
        ({"scalars": {"gpu_memory_allocated_bytes"}}, {"GpuMemoryPressure"}),
        ({"scalars": {"loss", "eval/loss"}}, {"Overfitting"}),
        ({"experts": True}, {"ExpertStarved"}),
    ],
)
def test_a_run_is_watched_for_what_can_befall_it(changed: dict[str, Any], more: set[str]) -> None:
    plain = coverage.Facts({"step_seconds"})
    before, after = (set(coverage.armed(f)[0]) for f in (plain, replace(plain, **changed)))
    assert more <= after - before
    assert "VanishingGradient" not in coverage.armed(replace(plain, matrices=3))[0]


def test_the_coverage_line_of_a_short_run_names_its_hooks(
    watch: Watch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor = watch(model, optimizer)
    for step in range(20):
        optimizer.zero_grad()
        model(batch(step)).sum().backward()
        optimizer.step()
    monitor.finish()
    assert "hooks: clip, step, scaler, zero_grad; cost" in capfd.readouterr().err


def test_the_service_may_pause_resume_and_be_answered(service: FakeService, watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer)

    def steps(count: int) -> None:
        for step in range(count):
            optimizer.zero_grad()
            model(batch(step)).sum().backward()
            optimizer.step()

    def acked(command: str) -> None:
        end = time.monotonic() + 10
        while not any(p == f"/v1/commands/{command}/ack" for p, _, _ in service.requests):
            assert time.monotonic() < end
            time.sleep(0.01)

    service.commands = [{"id": "c1", "kind": "pause", "args": {}}]
    steps(1)
    acked("c1")
    steps(5)
    service.commands = [{"id": "c2", "kind": "resume", "args": {}}]
    monitor.mark("resumed")
    acked("c2")
    steps(2)
    monitor.finish()
    assert sum(bool(f.values) for f in service.all_frames()) == 3
    body = next(b for p, _, b in service.requests if p.endswith("/ack"))
    assert set(json.loads(body)) == {"run", "attempt", "rank", "nonce"}
