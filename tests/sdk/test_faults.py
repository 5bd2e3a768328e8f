"""Every function of the SDK is made to raise in turn while one training goes on: it never knows."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from gradwarden import hooks
from gradwarden.instruments import taps
from tests.sdk.conftest import batch, mlp
from tests.sdk.fake import FakeService

STEPS = 5
"""Training steps for each function that fails."""
NET = (
    "errors",
    "lifecycle",
    "hooks._tell",
    "hooks._tell_here",
    "hooks.calls",
    "session.Session.quietly",
    "layout.BackwardOrder._note",  # two lines inside the user's backward pass
)
"""What catches, counts and says, and the end of the process: the net itself does not fail."""
ASKED = tuple(
    f"checkpoint.{name}"
    for name in ("Checkpoints.save", "flush", "files", "_flush_directory", "_replace", "_remove")
)
"""What a loop relies on, so that it raises: a checkpoint that could not be written."""
BEFORE = ("settings", "attach", "integrations")
"""What runs before training or is called by nobody but the user."""


class Bug(RuntimeError):
    """One of ours."""


def functions() -> Iterator[tuple[Any, str]]:
    """(owner, name) of each function, method and property that the SDK defines."""
    skipped = (*NET, *BEFORE)
    for info in pkgutil.walk_packages(gradwarden.__path__, "gradwarden."):
        native = info.name.endswith(".kernel")  # a library for ctypes, not a module
        if native or info.name.split(".")[1] in skipped or "triton" in info.name:
            continue
        module = importlib.import_module(info.name)
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != info.name:
                continue
            if isinstance(value, FunctionType):
                yield module, name
            elif inspect.isclass(value):
                for method, found in list(vars(value).items()):
                    plain = isinstance(found, FunctionType | property)
                    if plain and not method.startswith("__"):
                        yield value, method


def label(owner: Any, name: str) -> str:
    module = getattr(owner, "__module__", None) or owner.__name__
    inside = f".{owner.__name__}" if inspect.isclass(owner) else ""
    return f"{module.removeprefix('gradwarden.')}{inside}.{name}"


class Breaking:
    """While it lasts the function raises, and says how often it was asked."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._original = vars(owner)[name]
        self.calls = 0

    def _raise(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        raise Bug(f"{label(self._owner, self._name)} fails")

    def __enter__(self) -> Breaking:
        def broken(*args: Any, **kwargs: Any) -> Any:
            return self._raise()

        made = property(broken) if isinstance(self._original, property) else broken
        setattr(self._owner, self._name, made)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self._owner, self._name, self._original)


class Training:
    """One model whose training goes on whatever watches it."""

    def __init__(self) -> None:
        self.model = mlp()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.step = 0

    def go_on(self, monitor: gradwarden.Monitor | None, checkpoint: Path) -> None:
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            loss = self.model(batch(self.step)).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)
            self.optimizer.step()
            self.step += 1
            if monitor is not None:
                monitor.log(loss=loss, lr=1e-3)
                with monitor.phase("data"):
                    monitor.mark("x", 1)
        if monitor is not None:
            monitor.capture()
            with monitor.checkpoint(checkpoint, self.step) as draft:
                draft.write_text("weights")
            monitor.verify_checkpoint(checkpoint)

    def state(self) -> list[bytes]:
        return [p.detach().numpy().tobytes() for p in self.model.parameters()]


@pytest.fixture
def let_go() -> Iterator[None]:
    """What a monitor could not undo, since its undoing was made to fail, is undone at last."""
    yield
    for module in (hooks, taps):
        for listener in module._listeners:
            module.remove(listener)


@pytest.mark.usefixtures("let_go")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_fault_of_ours_changes_a_bit_or_escapes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, watched = Training(), Training()
    silent: list[str] = []
    hit = 0
    with FakeService() as service:
        for owner, name in functions():
            where = label(owner, name)
            if where in (*NET, *ASKED):
                continue
            monitor = gradwarden.watch(
                watched.model,
                watched.optimizer,
                url=service.url,
                run=f"run-{watched.step}",
                spool=tmp_path / "spool",
                exit_seconds=0.05,
                start_step=watched.step,
                preset="full",
            )
            first = watched.step
            with Breaking(owner, name) as breaking:
                watched.go_on(monitor, tmp_path / "checkpoint")
                plain.go_on(None, tmp_path)
                health = monitor.health()
                monitor.finish()
            assert watched.state() == plain.state(), where
            hit += breaking.calls > 0
            said = capfd.readouterr().err
            if breaking.calls and "fail" not in said and not health.get("disabled"):
                kept = {f.step for f in service.all_frames() if f.values}
                spooled = any((tmp_path / "spool").rglob("*"))
                if not spooled and not kept >= set(range(first, watched.step)):
                    silent.append(where)
        print(f"{watched.step} steps, {hit} functions failed")
    assert watched.step >= 1000
    assert hit >= 150
    assert not silent
