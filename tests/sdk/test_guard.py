"""The guard in one process: what it refuses, skips, restores and halts, and what it leaves be."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from gradwarden.gauge import Gauge
from gradwarden.guard import Guard, Halted, Ledger, Snapshot, holding
from gradwarden.guard.decision import QUIET, Act, Cause, Decider, Word
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService

BAD = 17
"""The step whose batch holds a NaN."""


def sick(step: int, bad: Iterable[int] = (BAD,)) -> torch.Tensor:
    x = batch(step)
    if step in bad:
        x[0, 0] = float("nan")
    return x


def equal(left: Any, right: Any) -> bool:
    """Bit for bit, at any depth of a state dict."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(v, right[k]) for k, v in left.items())
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


class Counting(torch.optim.SGD):
    """Counts its steps in the group, as some optimizers from elsewhere do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group.setdefault("seen", torch.zeros(())).add_(1)
        return super().step(closure)


Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.1),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "counts in its group": lambda p: Counting(p, 0.1, momentum=0.9),
}


def one(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).pow(2).mean().backward()
    optimizer.step()


# -- what it refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_nonfinite": "skip"}, ["on_nonfinite", "'skip'", "skip_step"]),
        ({"on_nonfinite": "rollback"}, ["save", "None", "Snapshot"]),
        ({"on_nonfinite": "halt", "restore": print}, ["restore", "leave it out"]),
        ({"on_nonfinite": "rollback", "save": "x", "restore": print}, ["save", "'x'", "function"]),
        ({"retries": -1}, ["retries", "-1", "at least 0"]),
        ({"keep": 0}, ["keep", "0", "at least 1"]),
        ({"checkpoint_every": 2.5}, ["checkpoint_every", "2.5", "whole number"]),
        ({"healthy_after_steps": True}, ["healthy_after_steps", "True"]),
        ({"cooldown_steps": 0}, ["cooldown_steps", "0"]),
        ({"timeout": 0}, ["timeout", "0", "above 0"]),
        ({"sync": "yes"}, ["sync", "'yes'", "True or False"]),
        ({"raise_on_halt": 1}, ["raise_on_halt", "1", "True or False"]),
    ],
)
def test_an_unusable_field_is_refused_with_its_value_and_the_remedy(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(gradwarden.ConfigurationError) as refused:
        Guard(**options)
    for word in words:
        assert word in str(refused.value)


def test_a_guard_that_cannot_act_here_is_refused_by_watch(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp()
    with pytest.raises(gradwarden.ConfigurationError, match="give the optimizer"):
        watch(model, guard=Guard(on_nonfinite="halt"))
    with pytest.raises(gradwarden.ConfigurationError, match=r"LBFGS.*within a step"):
        watch(model, torch.optim.LBFGS(model.parameters()), guard=Guard(on_nonfinite="skip_step"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(gradwarden.ConfigurationError, match="init_process_group"):
        watch(model, torch.optim.SGD(model.parameters(), 0.1), guard=Guard(on_nonfinite="halt"))


def test_skipping_on_a_device_needs_a_fused_optimizer_or_a_declared_wait() -> None:
    model = mlp().to("meta")
    skip = Guard(on_nonfinite="skip_step")
    plain = torch.optim.Adam(model.parameters())
    assert "fused=True" in holding.unsuitable(skip, plain, 1)
    assert holding.unsuitable(Guard(on_nonfinite="skip_step", sync=True), plain, 1) == ""
    assert holding.unsuitable(Guard(on_nonfinite="halt"), plain, 1) == ""


# -- words and decisions ----------------------------------------------------------------------


def test_the_graver_word_wins_and_among_equals_the_lowest_rank_is_named() -> None:
    said = [
        QUIET,
        Word(Act.SKIPPED, Cause.NONFINITE, 0),
        Word(Act.ROLLBACK, Cause.NONFINITE, 7),
        Word(Act.ROLLBACK, Cause.NONFINITE, 3),
        Word(Act.OFF, Cause.FAULT, 5),
        Word(Act.HALT, Cause.REQUESTED, 900_000),
    ]
    for word in said:
        assert Word.decode(word.encode()) == word
        assert 0 <= word.encode() < 1 << 31
    for n, expected in ((1, said[0]), (2, said[1]), (4, said[3]), (5, said[4]), (6, said[5])):
        assert Word.decode(max(w.encode() for w in said[:n])) == expected


def test_remedies_are_tried_so_often_and_then_the_guard_halts() -> None:
    skipped, back = Word(Act.SKIPPED, Cause.NONFINITE), Word(Act.ROLLBACK, Cause.NONFINITE)

    def acts(guard: Guard, words: list[Word]) -> str:
        decider = Decider(guard)
        return "".join(decider.joined(w, w)[0].name[0] for w in words)

    skip = Guard(on_nonfinite="skip_step", retries=2)
    assert acts(skip, [skipped, skipped, QUIET, skipped, skipped, skipped]) == "SSNSSH"
    roll = Guard(on_nonfinite="rollback", save=str, restore=print, retries=2, cooldown_steps=3)  # type: ignore[arg-type]
    assert acts(roll, [back, QUIET, QUIET, back, QUIET, QUIET, back]) == "RNNRNNH"
    assert acts(roll, [back, back, QUIET, QUIET, QUIET, back, back, back]) == "RRNNNRRH"
    assert acts(Guard(), [QUIET, Word(Act.HALT, Cause.REQUESTED)]) == "NH"


# -- skipping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_no_trace_in_weights_or_optimizer(name: str, watch: Watch) -> None:
    healthy, twin = mlp(), OPTIMIZERS[name]
    other = twin(healthy.parameters())
    for step in (s for s in range(25) if s not in (0, BAD)):
        one(healthy, other, batch(step))
    model = mlp()
    optimizer = twin(model.parameters())
    monitor = watch(model, optimizer, guard=Guard(on_nonfinite="skip_step"))
    for step in range(25):
        one(model, optimizer, sick(step, (0, BAD)))
    assert equal(model.state_dict(), healthy.state_dict())
    assert equal(optimizer.state_dict(), other.state_dict())
    assert not monitor.should_stop


def test_a_skip_is_one_line_one_event_and_a_step_that_was_not_applied(
    watch: Watch, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, guard=Guard(on_nonfinite="skip_step"))
    for step in range(25):
        one(model, optimizer, sick(step))
        if step == BAD:
            assert torch.isnan(model[0].weight.grad).any()  # whoever looks still finds it
    monitor.finish()
    acts = [(e["action"], e["step"]) for e in service.events("guard")]
    assert acts == [("skip_step", BAD)]
    stepped = {f.step: f.stepped for f in service.all_frames() if f.values and not f.open}
    assert [s for s, was in stepped.items() if was is False] == [BAD]
    lines = [li for li in capsys.readouterr().err.splitlines() if "guard" in li]
    assert lines == [
        f"gradwarden: guard: skip step at step {BAD}: a gradient was NaN or Inf at step {BAD}"
    ]


def test_the_guard_goes_on_when_the_capture_fails_or_is_paused(
    watch: Watch, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("made up")

    for run in ("broken", "paused"):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        monitor = watch(model, optimizer, run=run, guard=Guard(on_nonfinite="skip_step"))
        if run == "broken":
            monkeypatch.setattr(Gauge, "take", fails)
        else:
            monitor._session._orders.obey("pause", {})
        for step in range(25):
            one(model, optimizer, sick(step))
        assert all(torch.isfinite(p).all() for p in model.parameters())
        monitor.finish()
        assert [e["action"] for e in service.events("guard")] == ["skip_step"] * (
            1 if run == "broken" else 2
        )


def test_an_optimizer_made_anew_is_guarded_in_the_place_of_the_old(watch: Watch) -> None:
    model = mlp()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, guard=Guard(on_nonfinite="skip_step", retries=0))
    for step in range(5):
        one(model, optimizer, batch(step))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(5, 8):
        one(model, optimizer, sick(step, (7,)))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert monitor.should_stop


def test_clipping_does_not_hide_a_bad_step(watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    watch(model, optimizer, guard=Guard(on_nonfinite="skip_step"))
    for step in range(25):
        optimizer.zero_grad()
        model(sick(step)).pow(2).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        before = copy.deepcopy(model.state_dict())
        optimizer.step()
        assert equal(before, model.state_dict()) == (step == BAD)


def test_a_closure_is_judged_by_the_gradients_that_it_makes(watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    watch(model, optimizer, guard=Guard(on_nonfinite="skip_step"))
    for step in range(25):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(sick(step)).pow(2).mean()
            loss.backward()
            return loss

        before = copy.deepcopy(model.state_dict())
        assert isinstance(optimizer.step(closure), torch.Tensor)
        assert equal(before, model.state_dict()) == (step == BAD)


def test_a_guard_never_overrules_a_loss_scaler(watch: Watch, service: FakeService) -> None:
    for fused in (False, True):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        monitor = watch(model, optimizer, run=f"r{fused}", guard=Guard(on_nonfinite="halt"))
        for step in range(25):
            optimizer.zero_grad()
            scaler.scale(model(sick(step)).pow(2).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert not monitor.should_stop
        assert scaler.get_scale() == 2.0
        monitor.finish()
    assert service.events("guard") == []


def test_a_fused_step_can_be_stopped_by_a_flag_that_nobody_reads() -> None:
    for make in (OPTIMIZERS["adamw fused"], lambda p: torch.optim.SGD(p, 0.1, fused=True)):
        model = mlp()
        optimizer = make(model.parameters())
        assert holding.takes_flag(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            model(sick(step, (2,))).pow(2).mean().backward()
            before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            holding.lend_flag(optimizer, torch.full((1,), float(step == 2)))
            optimizer.step()
            holding.take_flag_back(optimizer)
            same = equal(before, (model.state_dict(), optimizer.state_dict()))
            assert same == (step == 2)
            assert not holding.scaled(optimizer)
    momentum = torch.optim.SGD(mlp().parameters(), 0.1, momentum=0.9, fused=True)
    assert not holding.takes_flag(momentum)


def test_too_many_skipped_steps_in_a_row_halt_the_run(watch: Watch, service: FakeService) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, guard=Guard(on_nonfinite="skip_step", retries=3))
    stopped = []
    for step in range(12):
        one(model, optimizer, sick(step, (1, 2, 3, 5, 6, 7, 8, 9, 10)))
        stopped.append(monitor.should_stop)
    assert stopped.index(True) == 8
    monitor.finish()
    [halt] = [e for e in service.events("guard") if e["action"] == "halt"]
    assert halt["step"] == 8
    assert "4 steps in a row were skipped" in halt["reason"]


# -- halting ----------------------------------------------------------------------------------


def test_a_halt_stops_a_loop_that_asks_with_clean_weights(watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, guard=Guard(on_nonfinite="halt"))
    for step in range(25):
        one(model, optimizer, sick(step))
        if monitor.should_stop:
            break
    assert step == BAD
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_halt_raises_only_where_that_was_chosen(watch: Watch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch(model, optimizer, guard=Guard(on_nonfinite="halt", raise_on_halt=True))
    seen = []
    with pytest.raises(Halted, match=f"NaN or Inf at step {BAD}"):  # noqa: PT012
        for step in range(25):
            seen.append(step)
            one(model, optimizer, sick(step))
    assert seen[-1] == BAD
    one(model, optimizer, batch(0))  # once is enough


def test_the_service_may_request_a_halt(watch: Watch, service: FakeService) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watch(model, optimizer, guard=Guard())
    one(model, optimizer, sick(0, (0,)))  # of NaN it was told nothing
    service.commands.append({"id": 1, "kind": "halt", "args": {"reason": "the node goes down"}})
    for step in range(200_000):
        one(model, optimizer, batch(step))
        if monitor.should_stop:
            break
    assert monitor.should_stop
    monitor.finish()
    [halt] = service.events("guard")
    assert "the node goes down" in halt["reason"]


# -- rollback ---------------------------------------------------------------------------------


class Training:
    """A run with all the state there is: momentum, schedule, scaler and dropout."""

    def __init__(self, path: Path) -> None:
        self.model = nn.Sequential(mlp(), nn.Dropout(0.2), nn.BatchNorm1d(2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=4)
        self.snapshot = Snapshot(
            self.model, self.optimizer, self.schedule, self.scaler, path=path / "checkpoints"
        )
        torch.manual_seed(7)

    def step(self, x: torch.Tensor, scaled: bool = True) -> None:
        self.optimizer.zero_grad()
        loss = self.model(x).pow(2).mean()
        if scaled:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        self.schedule.step()

    def guard(self, **options: Any) -> Guard:
        options = {"checkpoint_every": 5, "healthy_after_steps": 3, **options}
        save, restore = self.snapshot.save, self.snapshot.restore
        return Guard(on_nonfinite="rollback", save=save, restore=restore, **options)

    def state(self) -> dict[str, Any]:
        parts = (self.model, self.optimizer, self.schedule, self.scaler)
        return {type(p).__name__: p.state_dict() for p in parts}


def test_after_a_rollback_the_run_is_bit_for_bit_one_without_the_bad_stretch(
    watch: Watch, service: FakeService, tmp_path: Path
) -> None:
    twin = Training(tmp_path / "twin")
    for step in [*range(10), *range(BAD + 1, 40)]:  # checkpoints after 4, 9 and 14; 14 too young
        twin.step(batch(step), scaled=False)
    expected, drawn = copy.deepcopy(twin.state()), torch.rand(3)

    run = Training(tmp_path)
    monitor = watch(run.model, run.optimizer, guard=run.guard())
    for step in range(40):
        run.step(sick(step), scaled=False)
    assert equal(run.state(), expected)
    assert torch.equal(torch.rand(3), drawn)
    assert not monitor.should_stop
    monitor.finish()
    [back] = service.events("guard")
    assert (back["action"], back["step"], back["to_step"]) == ("rollback", BAD, 9)
    assert back["path"].endswith("step-000000009.rank0.pt")
    assert len({s["attempt"] for s in service.starts}) == 2
    saved = [e["saved_step"] for e in service.events("checkpoint")]
    assert all(e["ok"] and e["sha256"] for e in service.events("checkpoint"))
    assert saved[:4] == [-1, 4, 9, 14]


def test_a_snapshot_holds_scaler_schedule_and_random_state(tmp_path: Path) -> None:
    run = Training(tmp_path)
    for step in range(6):
        run.step(batch(step))
    path = run.snapshot.save(5)
    for step in range(6, 12):
        run.step(batch(step))
    expected, drawn = copy.deepcopy(run.state()), torch.rand(3)
    assert run.snapshot.restore(path) == 5
    for step in range(6, 12):
        run.step(batch(step))
    assert equal(run.state(), expected)
    assert torch.equal(torch.rand(3), drawn)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_several_models_and_optimizers_fit_in_one_snapshot(tmp_path: Path) -> None:
    models = [mlp(), mlp()]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in models]
    snapshot = Snapshot(models, optimizers, path=tmp_path)
    for model, optimizer in zip(models, optimizers, strict=True):
        one(model, optimizer, batch(0))
    kept = copy.deepcopy([m.state_dict() for m in models])
    path = snapshot.save(0)
    for model, optimizer in zip(models, optimizers, strict=True):
        one(model, optimizer, batch(1))
    assert not equal(kept, [m.state_dict() for m in models])
    snapshot.restore(path)
    assert equal(kept, [m.state_dict() for m in models])


def test_before_any_checkpoint_is_healthy_the_run_goes_back_to_its_start(
    watch: Watch, service: FakeService, tmp_path: Path
) -> None:
    run = Training(tmp_path)
    start = copy.deepcopy(run.state()["AdamW"]["state"]), copy.deepcopy(run.model.state_dict())
    monitor = watch(run.model, run.optimizer, guard=run.guard(healthy_after_steps=100))
    for step in range(BAD + 1):
        run.step(sick(step), scaled=False)
    assert equal(run.optimizer.state_dict()["state"], start[0])
    assert equal(dict(run.model.named_parameters()), dict(mlp_parameters(start[1])))
    monitor.finish()
    assert [e["to_step"] for e in service.events("guard")] == [-1]


def mlp_parameters(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if "running" not in k and "tracked" not in k}


def test_a_corrupt_checkpoint_is_refused_and_the_next_older_healthy_one_taken(
    watch: Watch, service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Training(tmp_path)
    monitor = watch(run.model, run.optimizer, guard=run.guard())
    for step in range(25):
        if step == BAD:
            wait_for_checksums()
            newest = tmp_path / "checkpoints" / "step-000000009.rank0.pt"
            newest.write_bytes(newest.read_bytes()[:-100])
        run.step(sick(step), scaled=False)
    assert not monitor.should_stop
    monitor.finish()
    assert [e["to_step"] for e in service.events("guard")] == [4]
    refused = [e for e in service.events("checkpoint") if not e["ok"]]
    assert [(e["saved_step"], e["error"]) for e in refused] == [(9, "its checksum differs")]
    assert "step-000000009.rank0.pt is refused" in capsys.readouterr().err


def wait_for_checksums() -> None:
    for thread in threading.enumerate():
        if thread.name == "gradwarden-checksum":
            thread.join()


def test_when_rollbacks_do_not_cure_it_the_guard_halts(
    watch: Watch, service: FakeService, tmp_path: Path
) -> None:
    run = Training(tmp_path)
    monitor = watch(run.model, run.optimizer, guard=run.guard(retries=2))
    for step in range(40):
        run.step(sick(step, range(BAD, 40)), scaled=False)
        if monitor.should_stop:
            break
    assert step == BAD + 2
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    monitor.finish()
    assert [e["action"] for e in service.events("guard")] == ["rollback", "rollback", "halt"]
    assert "2 rollbacks did not cure it" in service.events("guard")[-1]["reason"]


def test_a_restore_that_fails_halts_and_says_why(
    watch: Watch, service: FakeService, tmp_path: Path
) -> None:
    run = Training(tmp_path)

    def restore(path: Any) -> None:
        raise RuntimeError("no such tensor")

    guard = Guard(on_nonfinite="rollback", save=run.snapshot.save, restore=restore)
    monitor = watch(run.model, run.optimizer, guard=guard)
    for step in range(BAD + 1):
        run.step(sick(step), scaled=False)
    assert monitor.should_stop
    monitor.finish()
    assert "no such tensor" in service.events("guard")[0]["reason"]


def test_a_save_that_fails_costs_a_line_and_no_step(
    watch: Watch, service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, healthy = Training(tmp_path), Training(tmp_path / "healthy")

    def save(step: int) -> Path:
        raise OSError("disk full")

    torch.manual_seed(7)
    for step in range(12):
        healthy.step(batch(step), scaled=False)
    torch.manual_seed(7)
    guard = Guard(
        on_nonfinite="rollback", save=save, restore=run.snapshot.restore, checkpoint_every=5
    )
    monitor = watch(run.model, run.optimizer, guard=guard)
    for step in range(12):
        run.step(batch(step), scaled=False)
    assert equal(run.state(), healthy.state())
    monitor.finish()
    failed = [e for e in service.events("checkpoint") if not e["ok"]]
    assert [(e["saved_step"], e["error"]) for e in failed] == [
        (-1, "OSError: disk full"),
        (4, "OSError: disk full"),
        (9, "OSError: disk full"),
    ]
    assert "save(4) failed (OSError: disk full); training goes on" in capsys.readouterr().err


def test_old_checkpoints_are_deleted_but_never_the_last_healthy_one(
    watch: Watch, tmp_path: Path
) -> None:
    run = Training(tmp_path)
    guard = run.guard(checkpoint_every=2, keep=2, healthy_after_steps=5)
    watch(run.model, run.optimizer, guard=guard)
    held: list[set[str]] = []
    for step in range(12):
        run.step(batch(step), scaled=False)
        names = (p.name.split(".")[0] for p in (tmp_path / "checkpoints").iterdir())
        held.append({n.removeprefix("step-").lstrip("0") for n in names})
    assert held[5] == {"start", "1", "3", "5"}  # 1 may still become healthy
    assert held[7] == {"1", "3", "5", "7"}
    assert held[11] == {"5", "7", "9", "11"}


def test_a_checkpoint_is_healthy_when_verified_finite_and_clean_long_enough() -> None:
    ledger = Ledger(3)
    path = [Path(str(n)) for n in range(5)]
    ledger.saved(0, path[0], True)
    ledger.described(path[0], "aa", 1)
    for clean in (True, True, False, True, True):
        ledger.step_ended(clean)
        assert ledger.last_healthy() is None  # a finding makes it start again
    ledger.step_ended(True)
    found = ledger.last_healthy()
    assert found is not None
    assert (found.step, found.path, found.sha256, found.source) == (0, path[0], "aa", "local")
    ledger.saved(6, path[1], False)  # weights are not finite
    ledger.saved(7, path[2], True)  # never verified
    ledger.saved(8, path[3], None)  # nobody knows
    for n in (1, 3):
        ledger.described(path[n], "bb", 1)
    for _ in range(5):
        ledger.step_ended(True)
    assert ledger.last_healthy() is found
    ledger.step_ended(False)  # what is proven stays so
    assert ledger.last_healthy() is found


def test_the_document_shows_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "guard.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    exec(compile(code, "guard.md", "exec"), told)
    printed = text.split("This says `")[1].split("`")[0].replace("\n", " ")
    assert f"gradwarden: {printed}\n" in capsys.readouterr().err
    assert all(torch.isfinite(p).all() for p in told["model"].parameters())
    assert told["step"] == 59
