"""What is watched and what one more line of code would add, in one line at step 20.

The detectors themselves live in the server package, which says per run what is armed; this is
what can be foretold of it here, from what was captured so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

AT_STEP = 20
MATRICES = 4
"""Layers with a weight matrix below the head, of which VanishingGradient compares quarters."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run has shown so far.

    ``scalars`` are the names logged or captured, ``matrices`` the layers with a weight matrix,
    ``server`` None where no service is configured, False where it does not answer,
    ``seconds`` the cost of a step.
    """

    scalars: Collection[str]
    matrices: int = MATRICES
    world: int = 1
    server: bool | None = None
    experts: bool = False
    weights: bool = True
    saved: bool = False
    hooks: Collection[str] = ()
    seconds: float = 0.0

    def logged(self, *names: str) -> bool:
        return all(name in self.scalars for name in names)

    @property
    def validated(self) -> bool:
        """Whether a validation loss is among the scalars."""
        names = (set(name.replace("/", "_").split("_")) for name in self.scalars)
        return any(n & {"val", "valid", "validation", "eval"} and "loss" in n for n in names)


Test = Callable[[Facts], bool | None]
"""Whether a detector is armed; None where it has nothing to look for in this run."""


def _always(facts: Facts) -> bool | None:
    return True


def _loss(facts: Facts) -> bool | None:
    return facts.logged("loss")


def _validation(facts: Facts) -> bool | None:
    return facts.validated and facts.logged("loss")


def _rate(facts: Facts) -> bool | None:
    return facts.logged("lr") if facts.weights else None


def _deep(facts: Facts) -> bool | None:
    return True if facts.matrices >= MATRICES else None


def _clipped(facts: Facts) -> bool | None:
    return True if facts.logged("clip_coefficient") or facts.logged("clip_norm") else None


def _scaled(facts: Facts) -> bool | None:
    return True if facts.logged("loss_scale") else None


def _timed(facts: Facts) -> bool | None:
    return facts.logged("step_seconds")


def _ranks(facts: Facts) -> bool | None:
    return True if facts.world > 1 else None


def _mixed(facts: Facts) -> bool | None:
    return True if facts.experts else None


def _gpu(facts: Facts) -> bool | None:
    return True if facts.logged("gpu_memory_allocated_bytes") else None


def _stale(facts: Facts) -> bool | None:
    return True if facts.logged("staleness") else None


def _saved(facts: Facts) -> bool | None:
    return facts.saved


def _served(facts: Facts) -> bool | None:
    return facts.server is True


def _by_the_rules(facts: Facts) -> bool | None:
    """Off until a rule sets its window."""
    return None


DETECTORS: Mapping[str, Test] = {
    "NonFiniteGradient": _always,
    "NonFiniteLoss": _loss,
    "ExplodingGradient": _always,
    "VanishingGradient": _deep,
    "DeadLayer": _always,
    "ExpertStarved": _mixed,
    "NoGradient": _always,
    "GradientsNotZeroed": _always,
    "GradientUnderflow": _scaled,
    "LossScaleCollapse": _scaled,
    "LossSpike": _loss,
    "LossDivergence": _loss,
    "LossPlateau": _by_the_rules,
    "UpdateRatioOutOfBand": _rate,
    "ClipSaturation": _clipped,
    "ReplicaMismatch": _ranks,
    "NeverSynchronized": _ranks,
    "NormSelfCheckFailed": _clipped,
    "AllReduceSlow": _ranks,
    "Straggler": _ranks,
    "RunStalled": _served,
    "RankSilent": _served,
    "RunFailed": _served,
    "CheckpointSlow": _saved,
    "CheckpointStale": _saved,
    "CheckpointCorrupt": _saved,
    "InputBound": _timed,
    "ThroughputDrop": _timed,
    "GpuMemoryPressure": _gpu,
    "GradientShift": _always,
    "StaleGradients": _stale,
    "Overfitting": _validation,
    "TrainingInEvalMode": _always,
    "OverheadBudgetExceeded": _always,
}


def armed(facts: Facts) -> tuple[list[str], list[str]]:
    """The detectors that have what they need, and those that lack something."""
    found = {name: test(facts) for name, test in DETECTORS.items()}
    ready = [name for name, state in found.items() if state]
    return ready, [name for name, state in found.items() if state is False]


def line(facts: Facts) -> str:
    """The coverage line: armed count, what ``monitor.log`` would add, hooks, cost per step."""
    ready, lacking = armed(facts)
    parts = [f"{len(ready)} of {len(ready) + len(lacking)} detectors armed"]
    names = [name for name in ("loss", "lr") if name not in facts.scalars]
    gained = [n for n in lacking if DETECTORS[n] in (_loss, _rate)]
    if gained:
        call = ", ".join(f"{name}={name}" for name in names)
        parts.append(f"monitor.log({call}) adds {', '.join(gained)}")
    if not facts.validated:
        parts.append("val_loss at evaluations adds Overfitting")
    if not facts.saved:
        parts.append("monitor.checkpoint(path, step) watches checkpoints")
    away = [n for n in lacking if DETECTORS[n] is _served]
    if facts.server is None:
        parts.append(f"GRADWARDEN_URL adds {', '.join(away)}")
    elif away:
        parts.append(f"{', '.join(away)} wait for the service to answer")
    parts.append(f"hooks: {', '.join(facts.hooks) or 'none'}")
    parts.append(f"cost {facts.seconds * 1e3:.2f} ms a step")
    return "; ".join(parts)
