"""``watch(model, optimizer)``: two lines put a run under watch; the Monitor is its handle."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden.errors import ConfigurationError, GradwardenError, say
from gradwarden.guard import Guard, Saved
from gradwarden.notebook import Frame
from gradwarden.session import Session
from gradwarden.settings import Settings

_numbers = itertools.count()


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    run: str | None = None,
    project: str | None = None,
    url: str | None = None,
    token: str | None = None,
    name: str | None = None,
    start_step: int | None = None,
    environment: str | None = None,
    training_job: str | None = None,
    owner: str | None = None,
    team: str | None = None,
    dataset: str | None = None,
    cluster: str | None = None,
    queue: str | None = None,
    config: Mapping[str, Any] | None = None,
    group: int | None = None,
    page: bool | None = None,
    cost_per_hour: float | None = None,
    target_loss: float | None = None,
    preset: Literal["light", "standard", "full"] | None = None,
    every: int | None = None,
    early: int | None = None,
    throttle: bool | None = None,
    comm: Literal["auto", "off", "hook", "ddp", "nccl"] | None = None,
    spans: int | None = None,
    activations: Sequence[str] | None = None,
    guard: Guard | None = None,
    spool: str | os.PathLike[str] | None = None,
    spool_bytes: int | None = None,
    exit_seconds: float | None = None,
    notify_url: str | None = None,
    resume_command: str | None = None,
    diagnose: bool | None = None,
    disabled: bool | None = None,
) -> Monitor:
    """Watch the gradients of ``model`` from its optimizer's steps on.

    Each argument that is not given comes from ``GRADWARDEN_<NAME>`` (``GRADWARDEN_RUN_ID``
    for ``run``, then the launcher's id), else has a default. Several optimizers (a GAN's)
    are given as a list; the first one counts the steps. Without one, those that own watched
    parameters are found when they step. Without ``url`` the run is spooled to disk.

    ``preset`` says how much is taken of a captured step: ``light`` the statistics of each
    gradient, ``standard`` a histogram every ten of them and weight norms and update ratios in
    turn as well, ``full`` a histogram each time. Every ``every``-th step is captured, and all
    of the first ``early`` ones; fewer where capturing costs more than 1 % of a step, unless
    ``throttle`` is False. ``comm`` says how all-reduces are timed, ``spans`` how often a step
    becomes an OpenTelemetry trace, ``activations`` (patterns such as ``blocks.*.act``) of which
    modules the outputs are measured, and ``guard`` what may act on the run. ``resume_command``
    is what a person types to resume this run, with ``{checkpoint}`` and ``{step}`` in it where
    they belong; a diagnosis shows it with its last good checkpoint.

    Raises:
        ConfigurationError: an argument or variable is unusable. Nothing raises later.
    """
    given = {k: v for k, v in locals().items() if k not in ("model", "optimizer", "guard")}
    settings = Settings.resolve(**given)
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    optimizers = _optimizers(optimizer)
    if guard is not None and not isinstance(guard, Guard):
        raise ConfigurationError(f"guard: expected a gradwarden.Guard, got {type(guard).__name__}")
    parameters = {id(p) for p in model.parameters()}
    if not parameters:
        raise ConfigurationError("model: it has no parameters to watch")
    for number, candidate in enumerate(optimizers):
        held = (p for g in candidate.param_groups for p in g["params"])
        if not any(id(p) in parameters for p in held):
            raise ConfigurationError(f"optimizer {number}: it holds no parameter of the model")
    number = next(_numbers)
    try:
        return Monitor(Session(model, optimizers, settings, number, guard))
    except GradwardenError:
        raise
    except Exception as error:  # our own bug: the run goes on unwatched
        say(f"watch failed ({type(error).__name__}: {error}); this run is not watched")
        return Monitor(Session(model, optimizers, replace(settings, disabled=True), number))


def _optimizers(given: Any) -> list[Optimizer]:
    if given is None:
        return []
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    for candidate in listed:
        if not isinstance(candidate, Optimizer):
            raise ConfigurationError(
                f"optimizer: expected a torch.optim.Optimizer, got {type(candidate).__name__}"
            )
    return listed


class Monitor:
    """The handle of one watched run. No method raises into training or waits for a device."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def run(self) -> str | None:
        """The run id, once it is known."""
        identity = self._session.identity
        return identity.run if identity is not None else None

    def log(self, **scalars: float | Tensor) -> None:
        """Attach numbers to the current step; device tensors are copied, never waited for."""
        self._session.quietly("log", self._session.narrator.log, scalars)

    def mark(self, name: str, value: object = None) -> None:
        """Mark a change of data, curriculum or configuration, beside the series."""
        self._session.quietly("mark", self._session.narrator.mark, name, value)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is not a step: loading data, evaluating, saving."""
        session = self._session
        before = session.quietly("phase", session.narrator.enter_phase, name)
        try:
            yield
        finally:
            session.quietly("phase", session.narrator.leave_phase, name, before)

    @contextmanager
    def checkpoint(self, path: str | os.PathLike[str], step: int | None = None) -> Iterator[Path]:
        """Save atomically: ``with monitor.checkpoint(path, step) as tmp: torch.save(x, tmp)``.

        The file is flushed, renamed to ``path`` and its checksum recorded; writing ``path``
        itself works too. An exception of the body is the caller's and passes through.
        """
        with self.phase("checkpoint"), self._session.checkpoints.save(path, step) as draft:
            yield draft

    def step(self, number: int) -> None:
        """The step just done has this number; a smaller one than before is a rollback."""
        self._session.quietly("step", self._session.narrator.step, number)

    @property
    def should_stop(self) -> bool:
        """Whether the guard halted the run; the same on all ranks after the same step."""
        keeper = self._session.keeper
        return keeper is not None and keeper.should_stop

    def verify_checkpoint(self, path: str | os.PathLike[str]) -> bool | None:
        """Whether the checkpoint at ``path`` is what was saved; ask before it is loaded.

        Reads all of it, on this thread. True: as it was recorded. False: cut off, changed or
        not there; do not load it. None: nothing speaks against it, and this process knows
        nothing to compare it with; the service may, and pages if it differs.
        """
        return self._session.quietly("verify", self._session.verify_checkpoint, path)

    def last_healthy_checkpoint(self) -> Saved | None:
        """The newest checkpoint known to be whole, finite and followed by enough clean steps.

        Known are those of ``monitor.checkpoint`` and of the guard. ``source`` of the answer
        says who judged it: ``local``, this process by itself.
        """
        return self._session.quietly("checkpoint", self._session.last_healthy_checkpoint)

    def capture(self, steps: int = 1) -> None:
        """Capture the next steps, whatever the schedule says."""
        self._session.quietly("capture", self._session.capture, steps)

    def health(self) -> dict[str, Any]:
        """What was captured, sent, spooled and dropped, the cost, and what is turned off."""
        return self._session.quietly("health", self._session.health) or {}

    def show(self, height: int = 420) -> Frame:
        """The run's live heatmap, for the last line of a notebook's cell."""
        return Frame(self._session.quietly("show", self._session.page), height)

    def unwatch(self) -> None:
        """Stop capturing and undo every hook; what was seen is still delivered."""
        self._session.quietly("unwatch", self._session.unwatch)

    def finish(self, status: str = "finished") -> None:
        """End the run: finished, failed, cancelled or preempted. Called at exit by itself."""
        self._session.quietly("finish", self._session.finish, status)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._session.quietly("finish", self._session.leave, kind, error, trace)
