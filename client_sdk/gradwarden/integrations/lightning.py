"""``Trainer(callbacks=[GradwardenCallback()])`` of PyTorch Lightning 2."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gradwarden.attach import Monitor, watch
from gradwarden.integrations import check, filled, guarded, numbers, owning, saved


class GradwardenCallback(Callback):  # type: ignore[misc]
    """Watches each ``fit()`` as one run; steps have the numbers that Lightning's loggers use.

    These count batches after which an optimizer stepped, from 0; with one optimizer that is
    ``trainer.global_step - 1``. Takes the options of :func:`gradwarden.watch` other than model
    and optimizer. The loss of each step is that of ``training_step``, the mean over accumulated
    batches; with manual optimization, each number in the dict that it returns. Validation is
    a phase and its metrics are scalars. Sanity checks leave no trace. A guard that halts stops
    the training after that step.

    Raises:
        ConfigurationError: an option is unusable; at construction, or at the first batch.
    """

    def __init__(self, **options: Any) -> None:
        check(options)
        self.options = options
        self.monitor: Monitor | None = None
        """The run in progress, or the last one."""
        self._bound = False
        self._stepped = 0
        self._done: int | None = None
        self._loss: Tensor | None = None
        self._phase: AbstractContextManager[None] | None = None
        self._saved: set[str] = set()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The first batch is the moment to bind: a resumed trainer knows its step only here."""
        if self._bound:
            self._confirm(trainer)
            return
        options = filled(self.options, config=dict(pl_module.hparams) or None)
        options["start_step"] = _number(trainer)
        self.monitor = watch(pl_module, owning(pl_module, trainer.optimizers), **options)
        self._bound, self._stepped = True, trainer.global_step
        self._done = self._loss = None
        self._saved = set(_checkpoints(trainer))

    @guarded
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self._bound or self.monitor is None:
            return
        found = numbers({"loss": outputs} if isinstance(outputs, Tensor) else outputs)
        loss = found.get("loss")
        if pl_module.automatic_optimization and isinstance(loss, Tensor):
            # Lightning has divided it by the number of accumulated batches.
            self._loss = loss if self._loss is None else self._loss + loss
            found["loss"] = self._loss
        if trainer.global_step == self._stepped:
            return
        self._stepped, self._done, self._loss = trainer.global_step, _number(trainer), None
        self.monitor.log(**found, epoch=trainer.current_epoch)
        if self.monitor.should_stop:
            trainer.should_stop = True

    @guarded
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bound and self.monitor is not None:
            self._phase = self.monitor.phase("evaluation")
            self._phase.__enter__()

    @guarded
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        phase, self._phase = self._phase, None
        if phase is not None and self.monitor is not None:
            phase.__exit__(None, None, None)
            metrics = numbers(trainer.callback_metrics)
            self.monitor.log(**{k: v for k, v in metrics.items() if k != "loss"})

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._bound and self.monitor is not None:
            self._bound = False
            self.monitor.__exit__(type(exception), exception, exception.__traceback__)

    @guarded
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bound and self.monitor is not None:
            self._tell_saved(trainer)
            self._bound = False
            self.monitor.finish()

    @guarded
    def _confirm(self, trainer: Trainer) -> None:
        """All has been said of the step before: its number, and the checkpoint of it."""
        self._tell_saved(trainer)
        if self.monitor is not None and self._done is not None:
            self.monitor.step(self._done)
            self._done = None

    def _tell_saved(self, trainer: Trainer) -> None:
        if self.monitor is None or not trainer.is_global_zero:
            return
        for path in _checkpoints(trainer):
            if path not in self._saved:
                self._saved.add(path)
                saved(self.monitor, path, trainer.global_step)


def _number(trainer: Trainer) -> int:
    """The step as loggers number it: of the batch in progress, or of the one just done."""
    counted = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return counted if isinstance(counted, int) else trainer.global_step


def _checkpoints(trainer: Trainer) -> list[str]:
    """The newest file of each checkpoint callback."""
    newest = (getattr(c, "_last_checkpoint_saved", "") for c in trainer.checkpoint_callbacks)
    return [path for path in newest if path]
