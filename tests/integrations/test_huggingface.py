"""The transformers Trainer: numbers before clipping, its own step numbers, its logs, its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradwarden import ConfigurationError, Guard
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

STEPS = 6


def tiny() -> nn.Module:
    """A GPT-2 of two layers and random weights; nothing is downloaded."""
    transformers = needs_library("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def samples(count: int = 64) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(32, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


class Before:
    """What the gradients are before anything touches them: hooks on accumulation, by plain torch.

    The last accumulated gradient of each parameter, noted when the optimizer is about to step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = {}
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self._now[name] = float(parameter.grad.float().norm())

        return keep

    def stepped(self, *_: Any) -> None:
        self.steps.append(dict(self._now))


def trainer(
    folder: Path, model: nn.Module, callbacks: list[Any], data: Any = None, **arguments: Any
) -> Any:
    transformers = needs_library("transformers")
    given = {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "seed": 1,
        **arguments,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**given),
        train_dataset=data or samples(),
        eval_dataset=samples(8),
        callbacks=callbacks,
    )


def watched(options: dict[str, Any], **more: Any) -> Any:
    needs_library("transformers")
    from gradwarden.integrations.huggingface import GradwardenCallback

    return GradwardenCallback(**options, **more)


def observed(made: Any, before: Before) -> None:
    """Let ``before`` note each optimizer step of a trainer."""
    made.create_optimizer()
    made.optimizer.register_step_pre_hook(before.stepped)


LOOPS: dict[str, dict[str, Any]] = {
    "clipped by norm": {"max_grad_norm": 0.05},
    "not clipped": {"max_grad_norm": 0.0},
    "accumulated": {"max_grad_norm": 0.05, "gradient_accumulation_steps": 2},
    "in bf16": {"max_grad_norm": 0.05, "bf16": True},
    "asked for fp16, which accelerate leaves out on a CPU": {"max_grad_norm": 0.05, "fp16": True},
    "with checkpointed activations": {"max_grad_norm": 0.05, "gradient_checkpointing": True},
    "with SGD": {"max_grad_norm": 0.05, "optim": "sgd"},
    "with a compiled model": {
        "max_grad_norm": 0.05,
        "torch_compile": True,
        "torch_compile_backend": "aot_eager",
    },
}


@pytest.mark.parametrize("how", LOOPS)
def test_norms_are_those_before_clipping_and_training_is_untouched(
    how: str, service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = tiny()
    trainer(tmp_path, plain, [], **LOOPS[how]).train()
    model = tiny()
    made = trainer(tmp_path, model, [watched(options)], **LOOPS[how])
    before = Before(model)
    observed(made, before)
    made.train()
    assert bits(model) == bits(plain)
    expected = dict(enumerate(before.steps, start=1))
    assert len(expected) == STEPS
    assert norms(service) == same(expected, 1e-4)
    assert captures(service) == {"pre_clip"}
    assert verdicts(service) == dict.fromkeys(range(1, STEPS + 1), True)
    told = scalars(service, "clip_norm")
    assert told == pytest.approx({s: total(row) for s, row in expected.items()}, rel=1e-4)
    assert ending(service)["status"] == "finished"


def test_logs_belong_to_the_step_that_the_trainer_names(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    callback = watched(options)
    made = trainer(tmp_path, tiny(), [callback], eval_strategy="steps", eval_steps=3)
    made.train()
    history = made.state.log_history
    for theirs, ours in (("loss", "loss"), ("learning_rate", "lr"), ("eval_loss", "eval_loss")):
        logged = {entry["step"]: entry[theirs] for entry in history if theirs in entry}
        assert scalars(service, ours) == pytest.approx(logged, rel=1e-6), theirs
    assert sorted(scalars(service, "eval_loss")) == [3, 6]
    assert scalars(service, "epoch")[STEPS] == pytest.approx(STEPS * 4 / 64)
    phases = [e["name"] for e in service.events("phase")]
    assert phases == ["evaluation", "evaluation"]
    assert service.starts[0]["config"]["learning_rate"] == 1e-2
    assert "adam_beta1" not in service.starts[0]["config"]


def test_checkpoints_are_told_and_a_resumed_run_counts_on(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, tiny(), [watched(options)], **saving | {"max_steps": 4}).train()
    saves = service.events("checkpoint")
    assert [(Path(e["path"]).name, e["saved_step"], e["ok"]) for e in saves] == [
        ("checkpoint-2", 2, True),
        ("checkpoint-4", 4, True),
    ]
    assert all(len(e["sha256"]) == 64 for e in saves)
    second = trainer(tmp_path, tiny(), [watched(options)], max_steps=STEPS)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    first, later = sorted(service.frames)
    assert [f.step for _, f in sorted(service.frames[first].items()) if f.values] == [1, 2, 3, 4]
    assert [f.step for _, f in sorted(service.frames[later].items()) if f.values] == [5, 6]
    assert [s["first_step"] for s in service.starts] == [1, 5]


def test_a_training_that_raises_ends_as_failed(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    import sys

    class Bad(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if len(seen) > 9:
                raise OSError("the disk is gone")
            seen.append(index)
            return super().__getitem__(index)

    seen: list[Any] = []
    callback = watched(options)
    made = trainer(tmp_path, tiny(), [callback], Bad(samples()))
    try:
        made.train()
    except OSError:
        sys.excepthook(*sys.exc_info())  # what the interpreter does when nobody catches it
    callback.monitor.finish()
    assert ending(service)["status"] == "failed"
    assert "the disk is gone" in ending(service)["error"]


def test_a_nan_is_seen_with_its_layer_before_clipping_spreads_it(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny()
    sick = "transformer.h.1.mlp.c_fc.weight"
    calls = [0]

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * math.nan if calls[0] == 4 else gradient

    dict(model.named_parameters())[sick].register_hook(poison)
    trainer(tmp_path, model, [watched(options)], max_grad_norm=1.0).train()
    seen = matrices(service)
    assert [name for name, row in seen[4].items() if row["nan"] > 0] == [sick]
    assert all(row["nan"] == 0 for row in seen[3].values())


def test_the_hidden_nan_loss_is_said(
    service: FakeService,
    options: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trainer(tmp_path, tiny(), [watched(options)], max_steps=1).train()
    assert "logging_nan_inf_filter=False" in capfd.readouterr().err
    trainer(tmp_path, tiny(), [watched(options)], max_steps=1, logging_nan_inf_filter=False).train()
    assert "logging_nan_inf_filter" not in capfd.readouterr().err


def test_two_trainings_of_one_callback_are_two_runs(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    del options["run"]
    made = trainer(tmp_path, tiny(), [watched(options)], max_steps=2)
    made.train()
    made.train()
    assert len({s["run"] for s in service.starts}) == 2
    assert [e["status"] for e in service.events("finish")] == ["finished", "finished"]


def test_a_wrong_option_is_told_when_the_callback_is_made() -> None:
    with pytest.raises(ConfigurationError, match="url="):
        watched({}, url="not an address")


def test_a_guard_that_halts_stops_the_training(
    service: FakeService, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny()
    calls = [0]

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * math.nan if calls[0] == 4 else gradient

    model.transformer.h[0].mlp.c_fc.weight.register_hook(poison)
    made = trainer(tmp_path, model, [watched(options, guard=Guard(on_nonfinite="halt"))])
    made.train()
    assert made.state.global_step == 4
    assert ending(service)["status"] == "finished"
