"""Lightning's Trainer: numbers before clipping, its loggers' step numbers, its losses, its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwarden import Guard
from tests.integrations.conftest import (
    bits,
    captures,
    ending,
    matrices,
    needs_library,
    norms,
    same,
    scalars,
    total,
    verdicts,
)
from tests.sdk.fake import FakeService

pytestmark = pytest.mark.full

BATCHES = 8


def loader(batches: int = BATCHES) -> DataLoader[Any]:
    inputs = torch.randn(batches * 4, 6, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(inputs), batch_size=4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


class Noting:
    """Notes each gradient as it was accumulated, and the losses of ``training_step``."""

    def __init__(self, module: nn.Module) -> None:
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []
        self._now: dict[str, float] = {}
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self._now[name] = float(parameter.grad.norm())

        return keep

    def stepped(self, *_: Any) -> None:
        self.steps.append(dict(self._now))


def module(kind: str = "adamw", **more: Any) -> Any:
    lightning = needs_library("lightning.pytorch")

    class Tiny(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 8})
            self.net = network()
            self.noting: Noting | None = None
            self.fail_at = more.get("fail_at", -1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == self.fail_at:
                raise more.get("error", RuntimeError("out of luck"))
            loss = self.net(batch[0]).pow(2).mean() * 10
            if self.noting is not None:
                self.noting.losses.append(float(loss))
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.net(batch[0]).pow(2).mean())

        def configure_optimizers(self) -> Any:
            made: torch.optim.Optimizer
            if kind == "lbfgs":
                made = torch.optim.LBFGS(self.parameters(), lr=1e-3, max_iter=3)
            elif kind == "sgd":
                made = torch.optim.SGD(self.parameters(), 1e-3)
            else:
                made = torch.optim.AdamW(self.parameters(), 1e-2)
            return made

    return Tiny()


def trainer(folder: Path, callbacks: list[Any], **arguments: Any) -> Any:
    lightning = needs_library("lightning.pytorch")
    given = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **arguments,
    }
    return lightning.Trainer(callbacks=callbacks, **given)


def watched(options: dict[str, Any]) -> Any:
    needs_library("lightning.pytorch")
    from gradwarden.integrations.lightning import GradwardenCallback

    return GradwardenCallback(**options)


def observer(noting: Noting) -> Any:
    """A callback that lets ``noting`` see each step of the module's first optimizer."""
    lightning = needs_library("lightning.pytorch")

    class Observer(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.optimizers[0].register_step_post_hook(noting.stepped)

    return Observer()


LOOPS: dict[str, dict[str, Any]] = {
    "clipped by norm": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    "not clipped": {},
    "accumulated": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2},
    "accumulated, with a rest": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 3},
    "in bf16": {"gradient_clip_val": 0.05, "precision": "bf16-mixed"},
    "in fp64": {"gradient_clip_val": 0.05, "precision": "64-true"},
}


@pytest.mark.parametrize("how", LOOPS)
def test_norms_are_those_before_clipping_and_training_is_untouched(
    how: str, service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    arguments = LOOPS[how]
    plain = module()
    trainer(tmp_path, [], **arguments).fit(plain, loader())
    model = module()
    model.noting = noting = Noting(model)
    trainer(tmp_path, [watched(options), observer(noting)], **arguments).fit(model, loader())
    assert bits(model) == bits(plain)
    expected = dict(enumerate(noting.steps))
    every = arguments.get("accumulate_grad_batches", 1)
    assert len(expected) == math.ceil(BATCHES / every)
    assert norms(service) == same(expected, 1e-4)
    clipped = "gradient_clip_val" in arguments
    assert captures(service) == {"pre_clip" if clipped else "unclipped"}
    assert verdicts(service) == dict.fromkeys(expected, True)
    if how == "clipped by norm":
        told = scalars(service, "clip_norm")
        assert told == pytest.approx({s: total(row) for s, row in expected.items()}, rel=1e-4)
    losses = {
        step: sum(noting.losses[step * every : (step + 1) * every]) / every for step in expected
    }
    assert scalars(service, "loss") == pytest.approx(losses, rel=1e-4)
    assert service.starts[0]["config"] == {"width": 8}
    assert ending(service)["status"] == "finished"


@pytest.mark.parametrize("clip", [0.05, None])
def test_a_loss_scaler_s_skipped_steps_are_told_and_values_are_unscaled(
    clip: float | None, service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    plugins = needs_library("lightning.pytorch.plugins.precision")
    scale = 2.0**10

    def precision() -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        return plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)

    model = module("sgd")
    calls = [0]

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * math.inf if calls[0] == 3 else gradient

    model.net[0].weight.register_hook(overflow)
    before: list[dict[str, float]] = []
    lightning = needs_library("lightning.pytorch")

    class Observer(lightning.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            before.append({n: float(p.grad.norm()) for n, p in model.named_parameters()})

    made = trainer(
        tmp_path, [watched(options), Observer()], plugins=[precision()], gradient_clip_val=clip
    )
    made.fit(model, loader())
    assert verdicts(service) == {step: step != 2 for step in range(BATCHES)}
    scales = {step: scale if step <= 2 else scale / 2 for step in range(BATCHES)}
    assert scalars(service, "loss_scale") == scales
    expected = {
        step: {n: v / scales[step] for n, v in row.items()}
        for step, row in enumerate(before)
        if step != 2
    }
    assert {s: row for s, row in norms(service).items() if s != 2} == same(expected, 1e-3)
    assert matrices(service)[2]["net.0.weight"]["inf"] + matrices(service)[2]["net.0.weight"][
        "nan"
    ] == pytest.approx(48)


def test_lbfgs_shows_the_gradients_of_its_last_closure(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = module("lbfgs")
    trainer(tmp_path, []).fit(plain, loader())
    model = module("lbfgs")
    model.noting = noting = Noting(model)
    trainer(tmp_path, [watched(options), observer(noting)]).fit(model, loader())
    assert bits(model) == bits(plain)
    assert norms(service) == same(dict(enumerate(noting.steps)))


def adversaries() -> Any:
    lightning = needs_library("lightning.pytorch")

    class Adversaries(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(6, 4), nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
            first, second = self.optimizers()
            made = self.generator(batch[0])
            d_loss = self.critic(made.detach()).mean() + self.critic(torch.ones(4, 4)).pow(2).mean()
            first.zero_grad()
            self.manual_backward(d_loss)
            self.clip_gradients(first, 0.05, "norm")
            first.step()
            g_loss = -self.critic(self.generator(batch[0])).mean()
            second.zero_grad()
            self.manual_backward(g_loss)
            second.step()
            return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.Adam(self.critic.parameters(), 1e-2),
                torch.optim.Adam(self.generator.parameters(), 1e-2),
            ]

    return Adversaries()


def test_a_gan_is_one_frame_a_batch_with_both_losses(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = adversaries()
    trainer(tmp_path, []).fit(plain, loader())
    model = adversaries()
    trainer(tmp_path, [watched(options)]).fit(model, loader())
    assert bits(model) == bits(plain)
    seen = matrices(service)
    assert sorted(seen) == list(range(BATCHES))
    assert all(row["nan"] == 0 for matrix in seen.values() for row in matrix.values())
    assert len(scalars(service, "d_loss")) == len(scalars(service, "g_loss")) == BATCHES
    assert set(verdicts(service).values()) == {True}


def test_validation_and_sanity_checks_never_count_and_checkpoints_are_told(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    callbacks = needs_library("lightning.pytorch.callbacks")
    keeper = callbacks.ModelCheckpoint(tmp_path / "kept", every_n_train_steps=3, save_top_k=-1)
    made = trainer(
        tmp_path,
        [watched(options), keeper],
        num_sanity_val_steps=2,
        val_check_interval=4,
        enable_checkpointing=True,
        max_epochs=2,
    )
    made.fit(module(), loader(), loader(2))
    assert sorted(matrices(service)) == list(range(2 * BATCHES))
    assert [e["name"] for e in service.events("phase")] == ["evaluation"] * 4
    assert sorted(scalars(service, "val_loss")) == [3, 7, 11, 15]
    assert scalars(service, "epoch") == {s: s // BATCHES for s in range(2 * BATCHES)}
    saves = service.events("checkpoint")
    assert [e["saved_step"] for e in saves] == [3, 6, 9, 12, 15]
    assert all(e["ok"] and Path(e["path"]).exists() for e in saves)


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_fit_counts_on(
    every: int, service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    arguments = {"accumulate_grad_batches": every}
    first = trainer(tmp_path, [watched(options)], **arguments)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "here.ckpt")
    later = trainer(tmp_path, [watched(options)], **arguments, max_epochs=2)
    later.fit(module(), loader(), ckpt_path=tmp_path / "here.ckpt")
    steps = [
        [f.step for _, f in sorted(held.items()) if f.values]
        for _, held in sorted(service.frames.items())
    ]
    count = BATCHES // every
    assert steps == [list(range(count)), list(range(count, 2 * count))]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("out of luck"), "failed"), (KeyboardInterrupt(), "cancelled")],
)
def test_an_exception_ends_the_run_as_what_it_was(
    error: BaseException,
    status: str,
    service: FakeService,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    made = trainer(tmp_path, [watched(options)])
    with pytest.raises((RuntimeError, SystemExit)):
        made.fit(module(fail_at=5, error=error), loader())
    assert sorted(matrices(service)) == list(range(5))
    assert ending(service)["status"] == status
    if status == "failed":
        assert "out of luck" in ending(service)["error"]


def test_a_guard_that_halts_stops_the_fit(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    model = module()
    calls = [0]

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * math.nan if calls[0] == 4 else gradient

    model.net[0].weight.register_hook(poison)
    made = trainer(tmp_path, [watched({**options, "guard": Guard(on_nonfinite="halt")})])
    made.fit(model, loader())
    assert made.global_step == 4
    assert ending(service)["status"] == "finished"
