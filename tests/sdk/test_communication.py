"""Collectives are timed and local faults are flagged, and not one bit of training changes."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.communication import Communication
from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {"allreduce_seconds", "allreduce_total_seconds", "allreduce_exposed_seconds"}
WORDS = ("weight", "bias")
HOOKED = SECONDS | {"allreduce_bytes", "allreduce_buckets", "local_nonfinite_buckets"}
LOGGED = {"allreduce_total_seconds", "allreduce_bytes", "allreduce_buckets"}


def ranks(count: int, what: str) -> Any:
    """What the ranks of ``tests.sdk.communication`` answer."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client_sdk'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += [f"--master-port={free_port()}", "-m", "tests.sdk.communication", what]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.full), 3, pytest.param(4, marks=pytest.mark.full)]
)
def test_no_bit_changes_in_any_way_to_train(count: int) -> None:
    answer = ranks(count, "compare")
    assert len(answer) > 50
    assert [name for name, told in answer.items() if not all(told["same"])] == []
    in_place = count & (count - 1) != 0
    for name, told in answer.items():
        status, numbers = told["status"], told["numbers"]
        if name in ("off", "broken", "copied"):  # it broke in the first step
            assert not any(numbers[name == "broken" :]), name
        elif name in ("log", "hook before", "builtin before"):
            assert all(set(n) >= LOGGED for n in numbers), name
            assert status.startswith("on: by DDP's own log, without local flags"), name
        elif in_place and " view" in name and "batched" not in name:
            assert all(set(n) >= LOGGED for n in numbers), name
            assert "gradient_as_bucket_view divides in place" in status, name
        else:
            assert all(set(n) == HOOKED for n in numbers), name
            assert status == "on", name
            assert all(n["allreduce_total_seconds"] >= n["allreduce_seconds"] for n in numbers)
        assert all(value >= 0 for n in numbers for value in n.values()), name
    assert answer["off"]["status"] == "off: comm='off'"
    assert answer["broken"]["status"] == "off: ZeroDivisionError"
    parameters = 40 * 90 + 90 + 90 * 90 + 90 + 90 * 7 + 7
    assert {n["allreduce_bytes"] for n in answer["fp32"]["numbers"]} == {4.0 * parameters}
    assert {n["allreduce_bytes"] for n in answer["fp16"]["numbers"]} == {2.0 * parameters}
    # Buckets are rebuilt after the first step, and a step that sums holds one reduction.
    assert [n["allreduce_buckets"] for n in answer["fp32 sums"]["numbers"]][1:] == [2.0] * 7


def test_the_victims_wait_for_the_slow_rank_and_it_waits_for_nobody() -> None:
    told = ranks(3, "sleeper")
    for name in SECONDS:
        least = min(numbers[name] for numbers in told)
        waits = [numbers[name] - least for numbers in told]
        assert waits[1] == 0.0
        assert min(waits[0], waits[2]) > 0.1


def test_only_the_bad_rank_says_that_its_own_gradients_were_bad() -> None:
    healthy, ill = ranks(2, "sick")
    assert healthy == {"counts": [0.0] * 12, "events": []}
    assert [count > 0 for count in ill["counts"]] == [3 <= step < 9 for step in range(12)]
    assert len(ill["events"]) == 3
    for event in ill["events"]:
        assert event["kind"] == "local_nonfinite"
        assert event["parameters"] == ["body.2.weight"]
        assert len(event["buckets"]) == 1


def test_sharded_training_is_timed_and_flagged_and_left_as_it_was() -> None:
    told = ranks(2, "sharded")
    names = {"reduce_scatter_seconds", "reduce_scatter_bytes"}
    names |= {"all_gather_seconds", "all_gather_bytes", "local_nonfinite_buckets"}
    for mine in told:
        assert mine["same"]
        assert mine["status"] == "on"
        assert mine["restored"]
        assert mine["numbers"][0] == {}  # it was found when the first step ended
        assert all(set(n) == names and n["reduce_scatter_seconds"] > 0 for n in mine["numbers"][1:])
    assert told[0]["ill"] == []
    (event,) = told[1]["ill"]
    assert sorted(event["parameters"]) == sorted(f"{i}.{n}" for i in (0, 2, 4) for n in WORDS)


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def listen(model: nn.Module, comm: str = "auto") -> Communication:
    listener = Communication(model, comm, FrameBook(), Faults())
    listener.start()
    return listener


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3)).sum().backward()


def test_without_a_process_group_nothing_is_claimed() -> None:
    listener = listen(nn.Linear(3, 2))
    assert listener.step_ended() == {}
    assert listener.status() == "off: no process group"
    listener.stop()


def test_off_touches_nothing(alone: None) -> None:
    before = dist._register_comm_hook, DistributedDataParallel.__init__
    ddp = DistributedDataParallel(nn.Linear(3, 2))
    listener = listen(ddp, "off")
    assert (dist._register_comm_hook, DistributedDataParallel.__init__) == before
    backward(ddp)
    assert listener.step_ended() == {}


def test_the_wrapper_of_a_watched_inner_model_is_found(alone: None) -> None:
    inner = nn.Linear(3, 2)
    ddp = DistributedDataParallel(inner)
    listener = listen(inner)
    backward(ddp)
    assert listener.step_ended()["allreduce_buckets"] == 1.0
    listener.stop()


def test_a_stranger_s_model_is_left_alone(alone: None) -> None:
    listener = listen(nn.Linear(3, 2))
    stranger = DistributedDataParallel(nn.Linear(3, 2))
    backward(stranger)
    assert listener.step_ended() == {}
    assert listener.status() == "off: no DistributedDataParallel and no fully_shard seen yet"
    calls.clear()
    stranger.register_comm_hook(None, own)
    backward(stranger)
    assert calls == [0]
    assert listener.step_ended() == {}
    listener.stop()


calls: list[int] = []


def own(state, bucket):  # type: ignore[no-untyped-def]  # torch reads its annotations
    calls.append(bucket.index())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_a_failure_of_ours_ends_the_listening_and_undoes_it(alone: None) -> None:
    before = DistributedDataParallel.__init__
    ddp = DistributedDataParallel(nn.Linear(3, 2))
    faults = Faults()
    listener = Communication(ddp, "auto", FrameBook(), faults)
    listener.start()
    assert DistributedDataParallel.__init__ is not before
    listener.bucket_ready = None  # type: ignore[assignment]
    backward(ddp)
    assert faults.counts == {"communication": 1}
    assert DistributedDataParallel.__init__ is before
    assert [p.grad is not None for p in ddp.parameters()] == [True, True]


NET = {
    "Communication.failed",
    "Relay.safely",
    "Relay._first",
    "Relay._scale",
    "divides",
    "_register",
    "_register_builtin",
    "_original",
    "_made",
    "_joins",
}
"""What the reduction itself is made of, and what catches the failures of the rest."""


def test_each_function_of_ours_may_fail_under_ddp(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(listener: Communication | None, ddp: DistributedDataParallel) -> list[bytes]:
        faults = Faults()
        if listener is not None:
            faults.quiet("start", listener.start)
        for _ in range(3):
            ddp.zero_grad()
            backward(ddp)
            if listener is not None:
                faults.quiet("step", listener.step_ended)
        if listener is not None:
            faults.quiet("stop", listener.stop)
        return [p.grad.numpy().tobytes() for p in ddp.parameters() if p.grad is not None]

    failed = 0
    for owner, name, label in functions():
        for hooked in (False, True):
            torch.manual_seed(0)
            ddp = DistributedDataParallel(nn.Linear(3, 2))
            listener = Communication(ddp, "auto", FrameBook(), Faults())
            seen: list[str] = []

            def raises(*_: object, seen: list[str] = seen, **__: object) -> None:
                seen.append("called")
                raise ZeroDivisionError("a bug of ours")

            with monkeypatch.context() as broken:
                is_property = isinstance(vars(owner)[name], property)
                broken.setattr(owner, name, property(raises) if is_property else raises)
                if hooked:
                    ddp.register_comm_hook(None, own)
                found = train(listener, ddp)
            listener.stop()
            failed += bool(seen)
            torch.manual_seed(0)
            plain = DistributedDataParallel(nn.Linear(3, 2))
            assert found == train(None, plain), label
    assert failed > 20


def functions() -> Iterator[tuple[Any, str, str]]:
    """(owner, name, label) of each function, method and property of the package."""
    from gradwarden.instruments import communication

    for info in pkgutil.iter_modules(communication.__path__):
        module = importlib.import_module(f"{communication.__name__}.{info.name}")
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, FunctionType) and name not in NET:
                yield module, name, name
            for method, inner in vars(value).items() if isinstance(value, type) else ():
                label = f"{name}.{method}"
                callable_ = isinstance(inner, FunctionType | property)
                if callable_ and not method.startswith("__") and label not in NET:
                    yield value, method, label


def test_a_user_s_hook_is_where_torch_keeps_it_and_works_after_we_left(alone: None) -> None:
    ddp = DistributedDataParallel(nn.Linear(3, 2))
    listener = listen(ddp)
    assert ddp._comm_hooks == []
    backward(ddp)
    listener.stop()
    calls.clear()
    ddp.register_comm_hook("state", own)
    assert ddp._comm_hooks == [(own, "state")]
    backward(ddp)
    assert calls == [0]
    with pytest.raises(RuntimeError, match="can only be called once"):
        ddp.register_comm_hook(None, own)


def test_what_a_user_s_hook_raises_is_raised(alone: None) -> None:
    def raises(state, bucket):  # type: ignore[no-untyped-def]
        raise LookupError("his own")

    ddp = DistributedDataParallel(nn.Linear(3, 2))
    listener = listen(ddp)
    ddp.register_comm_hook(None, raises)
    with pytest.raises(Exception, match="his own"):
        backward(ddp)
    listener.stop()


def test_a_reducer_and_its_relay_are_freed_together(alone: None) -> None:
    import gc
    import weakref

    ddp = DistributedDataParallel(nn.Linear(3, 2))
    listener = listen(ddp)
    backward(ddp)
    listener.stop()
    gone = weakref.ref(ddp.reducer)
    del ddp, listener
    gc.collect()
    assert gone() is None


def test_two_monitors_of_one_model_both_hear(alone: None) -> None:
    ddp = DistributedDataParallel(nn.Linear(3, 2))
    first, second = listen(ddp), listen(ddp)
    backward(ddp)
    assert first.step_ended()["allreduce_bytes"] == second.step_ended()["allreduce_bytes"] == 32.0
    first.stop()
    ddp.zero_grad()
    backward(ddp)
    assert first.step_ended() == {}
    assert second.step_ended()["allreduce_buckets"] == 1.0
    second.stop()


def test_a_compiled_step_keeps_the_compiler_out_of_the_hook(alone: None) -> None:
    ddp = DistributedDataParallel(nn.Linear(3, 2))
    listener = listen(ddp)
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph.code)
        return graph.forward

    step = torch.compile(backward, backend=backend)
    for _ in range(3):
        ddp.zero_grad()
        step(ddp)
        assert listener.step_ended()["allreduce_buckets"] == 1.0
    assert graphs
    assert not any("mul_" in code for code in graphs)  # the scaling of a bucket was not traced
    listener.stop()
    torch.compiler.reset()


def test_steps_without_a_reduction_report_nothing(alone: None) -> None:
    ddp = DistributedDataParallel(nn.Linear(3, 2))
    listener = listen(ddp)
    with ddp.no_sync():
        backward(ddp)
    assert listener.step_ended() == {}
    listener.stop()
