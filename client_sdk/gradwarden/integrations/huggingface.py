"""``Trainer(..., callbacks=[GradwardenCallback()])`` of Hugging Face transformers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gradwarden.attach import Monitor, watch
from gradwarden.errors import say
from gradwarden.integrations import check, filled, guarded, numbers, owning, saved

_NAMES = {"learning_rate": "lr"}
_KNOWN = {"grad_norm"}
"""Said better by the capture itself: ``clip_norm``, of every step and not of logged ones only."""


class GradwardenCallback(TrainerCallback):  # type: ignore[misc]
    """Watches each ``train()`` as one run; steps have the numbers of ``state.global_step``.

    Takes the options of :func:`gradwarden.watch` other than model and optimizer. Binds when
    training begins, since the optimizer is made only then. What the Trainer logs becomes the
    scalars of its step (``learning_rate`` is called ``lr``), evaluation is a phase, and each
    saved checkpoint is an event. A guard that halts stops the training after that step. The run
    ends with training; one that raises ends as failed.

    Raises:
        ConfigurationError: an option is unusable; at construction, or when training begins.
    """

    def __init__(self, **options: Any) -> None:
        check(options)
        self.options = options
        self.monitor: Monitor | None = None
        """The run in progress, or the last one."""
        self._model: nn.Module | None = None
        self._begun = 0
        self._logged_step, self._logged = -1, set(_KNOWN)
        self._phase: AbstractContextManager[None] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: object = None,
        **kwargs: Any,
    ) -> None:
        if model is None or model is self._model:  # begun anew with a smaller batch
            return
        if self._model is not None and self.monitor is not None:
            self.monitor.finish("cancelled")
        options = filled(self.options, name=args.run_name, config=_chosen(args))
        options["start_step"] = state.global_step + 1
        self.monitor = watch(model, owning(model, [optimizer]), **options)
        self._model, self._begun = model, state.global_step
        if args.logging_nan_inf_filter and state.is_world_process_zero:
            say(
                "logging_nan_inf_filter hides a NaN loss from every logger; "
                "TrainingArguments(logging_nan_inf_filter=False) shows it"
            )

    @guarded
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is logged of a step comes after it, so its number is confirmed by the next."""
        if self.monitor is not None and state.global_step > self._begun:
            self.monitor.step(state.global_step)

    @guarded
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._model is not None and self.monitor is not None and self.monitor.should_stop:
            control.should_training_stop = True

    @guarded
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._model is None or self.monitor is None:
            return
        if state.global_step != self._logged_step:
            self._logged_step, self._logged = state.global_step, set(_KNOWN)
        found = numbers(logs)
        new = {_NAMES.get(k, k): v for k, v in found.items() if k not in self._logged}
        self._logged |= set(found)  # a name logged twice would begin the next step
        self.monitor.log(**new)

    @guarded
    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._phase is None and self._model is not None and self.monitor is not None:
            self._phase = self.monitor.phase("evaluation")
            self._phase.__enter__()

    @guarded
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        phase, self._phase = self._phase, None
        if phase is not None:
            phase.__exit__(None, None, None)

    @guarded
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self.monitor is not None and state.is_world_process_zero and path.exists():
            saved(self.monitor, path, state.global_step)

    @guarded
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._model is not None and self.monitor is not None:
            self._model = None
            self.monitor.finish()


def _chosen(args: TrainingArguments) -> dict[str, Any]:
    """The arguments that are not the default, without tokens."""
    values = args.to_sanitized_dict()
    return {f.name: values[f.name] for f in fields(args) if values.get(f.name) != f.default}
