"""What is known of each sickness: its likely cause where the detector names none, what to show,
what else it could be, and how sure the sign is. One entry for each alert that detectors raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradwarden_server.diagnosis.changes import ATTEMPT, BATCHES, LR, MARK
from gradwarden_server.diagnosis.words import Confidence

_UNSTABLE = ("ReplicaMismatch", "GradientsNotZeroed", "NormSelfCheckFailed")
_SLOW = ("Straggler", "InputBound", "AllReduceSlow", "CheckpointSlow", "GpuMemoryPressure")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One sickness.

    Args:
        cause: The likely cause where it stands alone.
        confidence: How sure that is where nothing else speaks for it, and ``why``.
        series: What to compare before and after; ``layer:<quantity>`` is of the named layer.
        rivals: Alerts whose silence rules their sickness out as the cause.
        steady: Whether a change of learning rate or a restart could have caused it.
        measured: Whether the detector's own ``cause`` is a measurement, and no cause yet.
        node: Whether the node of the named rank is to be taken out of use.
    """

    cause: str
    confidence: Confidence
    why: str
    series: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    steady: bool = False
    measured: bool = False
    node: bool = False


PATTERNS: Mapping[str, Pattern] = {
    LR: Pattern(
        "the schedule or the code set it; nothing else in the run changed with it",
        "high",
        "the jump is in the series, and what follows begins within its reach",
        series=("lr", "loss", "grad_norm"),
    ),
    BATCHES: Pattern(
        "the data or the loader gives other batches from there on",
        "medium",
        "the count of tokens changed for good just before; why is not in the numbers",
        series=("tokens", "loss", "grad_norm"),
    ),
    MARK: Pattern(
        "what the loop says that it changed there",
        "medium",
        "it came just before; a mark says that something changed, not that it harmed",
        series=("loss", "grad_norm"),
    ),
    ATTEMPT: Pattern(
        "what was restored differs from what was saved: optimizer, scheduler, scaler or data order",
        "medium",
        "it began within the first steps after a restart",
        series=("loss", "grad_norm", "lr"),
    ),
    "NonFiniteGradient": Pattern(
        "an operation whose derivative is not finite there, or an overflow",
        "high",
        "the layers on both sides of the fault were seen in that very step",
        series=("layer:absmax", "loss", "grad_norm", "loss_scale"),
        rivals=("ExplodingGradient", "LossDivergence", *_UNSTABLE),
        steady=True,
    ),
    "NonFiniteLoss": Pattern(
        "a bad batch, or log, sqrt or division at zero in the loss",
        "medium",
        "gradients were finite up to this step, so the fault is in the forward pass or the data",
        series=("loss", "grad_norm"),
        rivals=("NonFiniteGradient", "ExplodingGradient", *_UNSTABLE),
        steady=True,
        measured=True,
    ),
    "ExplodingGradient": Pattern(
        "steps too large for where the weights are: the learning rate, one bad batch, or an "
        "unstable layer",
        "medium",
        "the growth is measured; nothing that changed before it was seen",
        series=("grad_norm", "layer:l2", "loss", "lr"),
        rivals=("GradientsNotZeroed", "ReplicaMismatch", "GradientShift"),
        steady=True,
        measured=True,
    ),
    "VanishingGradient": Pattern(
        "saturating activations, missing residuals or normalisation, or a small initialisation",
        "high",
        "the fall is steady over the blocks and real in its effect on the weights",
        series=("layer:l2", "layer:update_ratio", "loss"),
        rivals=("DeadLayer", "GradientUnderflow", "NoGradient"),
    ),
    "DeadLayer": Pattern(
        "units that no input switches on any more: a step that was too large, or a bad bias",
        "medium",
        "the zeros are exact, and its siblings live",
        series=("layer:zero", "layer:l2", "lr"),
        rivals=("ExplodingGradient", "GradientUnderflow", "NoGradient"),
        steady=True,
    ),
    "ExpertStarved": Pattern(
        "the router sends it nothing",
        "high",
        "its gradient is zero while its group's is not",
        series=("layer:zero", "layer:l2"),
    ),
    "NoGradient": Pattern(
        "a branch that is detached, or parameters that the loss does not reach",
        "high",
        "there was no gradient in any step; that is no question of degree",
    ),
    "GradientsNotZeroed": Pattern(
        "the loop does not clear gradients: optimizer.zero_grad() is missing or in the wrong place",
        "high",
        "gradients that a step had consumed were still there at the next backward",
        series=("grad_norm", "loss"),
    ),
    "GradientUnderflow": Pattern(
        "gradients too small for half precision: no loss scale, or one that is too low",
        "high",
        "the values lie below the smallest normal number of the format",
        series=("loss_scale", "layer:zero", "loss"),
    ),
    "LossScaleCollapse": Pattern(
        "gradients overflow at every scale, so the scaler halves it again and again",
        "medium",
        "the scale's history is exact; why gradients overflow is not in it",
        series=("loss_scale", "grad_norm", "loss"),
        rivals=("ExplodingGradient", "GradientUnderflow", "ReplicaMismatch"),
        steady=True,
    ),
    "LossSpike": Pattern(
        "one unusual batch, or a step that was too large",
        "low",
        "spikes that heal by themselves have many causes",
        series=("loss", "grad_norm", "lr"),
        rivals=("ExplodingGradient", "ReplicaMismatch"),
        steady=True,
        measured=True,
    ),
    "LossDivergence": Pattern(
        "a learning rate that is too high for this point of the training, or other data",
        "medium",
        "the loss rises and does not come back",
        series=("loss", "grad_norm", "lr"),
        rivals=("ExplodingGradient", "GradientShift", *_UNSTABLE),
        steady=True,
        measured=True,
    ),
    "LossPlateau": Pattern(
        "a learning rate that is too low, or all that this model can learn from this data",
        "low",
        "a flat loss looks the same whatever holds it",
        series=("loss", "grad_norm", "lr"),
        rivals=("NoGradient", "VanishingGradient", "DeadLayer", "TrainingInEvalMode"),
    ),
    "UpdateRatioOutOfBand": Pattern(
        "a learning rate that does not suit this layer",
        "medium",
        "the ratio of update to weight is measured",
        series=("layer:update_ratio", "lr"),
        rivals=("ExplodingGradient", "VanishingGradient"),
        steady=True,
    ),
    "ClipSaturation": Pattern(
        "a clipping norm far below the gradient's: clipping sets the step, not the learning rate",
        "high",
        "the clipping coefficient is measured",
        series=("clip_coefficient", "grad_norm", "loss"),
        rivals=("ExplodingGradient", "GradientsNotZeroed"),
        steady=True,
    ),
    "ReplicaMismatch": Pattern(
        "a flipped bit, a damaged transfer, or a parameter that is not reduced any more",
        "high",
        "replicas are equal to the bit after every step, and were",
        rivals=("NeverSynchronized",),
        node=True,
    ),
    "NeverSynchronized": Pattern(
        "the model is not wrapped for data parallelism, so each rank trains its own",
        "high",
        "the ranks' weights were never equal",
    ),
    "NormSelfCheckFailed": Pattern(
        "clipping saw other gradients than those that are stored",
        "medium",
        "two measurements of one thing differ",
        series=("clip_norm", "grad_norm"),
    ),
    "AllReduceSlow": Pattern(
        "a slow link or switch, or other traffic on it",
        "medium",
        "the least time over all ranks grew, so no single rank is waited for",
        series=("allreduce_seconds", "step_seconds"),
        rivals=("Straggler", "RankSilent"),
    ),
    "Straggler": Pattern(
        "one rank's device, host or data is slower than its peers'",
        "high",
        "its own time, not its waiting, is above the median of its role",
        series=("step_seconds", "data_seconds"),
        rivals=("InputBound", "GpuMemoryPressure"),
        node=True,
        measured=True,
    ),
    "RunStalled": Pattern(
        "a rank waits in a collective that others never reached, or the loop hangs",
        "medium",
        "no step came for far longer than this run's own pace",
        series=("step_seconds",),
        rivals=("RankSilent", "CheckpointSlow", "InputBound"),
    ),
    "RankSilent": Pattern(
        "its process died or its node lost the network",
        "medium",
        "the other ranks are heard and this one is not",
        node=True,
    ),
    "RunFailed": Pattern(
        "see the error text",
        "high",
        "the process itself said why it ended",
        series=("loss", "grad_norm", "gpu_memory_allocated_bytes"),
        rivals=("NonFiniteLoss", "NonFiniteGradient", "GpuMemoryPressure"),
    ),
    "CheckpointSlow": Pattern(
        "the storage is slow, or training waits for a save that could run beside it",
        "medium",
        "the saves themselves are timed",
        series=("checkpoint_seconds",),
    ),
    "CheckpointStale": Pattern(
        "saving stopped, or its interval is longer than what may be lost",
        "high",
        "no checkpoint was told of for longer than the interval",
    ),
    "CheckpointCorrupt": Pattern(
        "the storage returned other bytes than were written, or the file was cut",
        "high",
        "size or checksum differ from those recorded at the save",
    ),
    "InputBound": Pattern(
        "the loader is too slow: too few workers, slow storage, or work that belongs offline",
        "high",
        "the time spent waiting for data is measured",
        series=("data_seconds", "step_seconds"),
    ),
    "ThroughputDrop": Pattern(
        "something outside the numbers of this run: other load on the machine, clocks, network",
        "low",
        "the pace fell and no detector of a part of the step names it",
        series=("step_seconds", "data_seconds", "backward_seconds", "tokens"),
        rivals=(*_SLOW, "OverheadBudgetExceeded"),
        measured=True,
    ),
    "GpuMemoryPressure": Pattern(
        "tensors that are kept from step to step, or batches close to what fits",
        "medium",
        "the allocator's own counters rise",
        series=("gpu_memory_allocated_bytes", "gpu_memory_reserved_bytes"),
    ),
    "GradientShift": Pattern(
        "other data, or a change of regime in the training itself",
        "low",
        "the level changed and stayed; a level tells no cause",
        series=("grad_norm", "layer:l2", "loss", "lr"),
        rivals=("ReplicaMismatch", "DeadLayer"),
        steady=True,
    ),
    "StaleGradients": Pattern(
        "a worker that works on old weights",
        "high",
        "the staleness is declared by the run itself",
    ),
    "Overfitting": Pattern(
        "the model learns the training set by heart",
        "high",
        "validation loss rises on the same set while training loss falls",
        series=("loss",),
        rivals=("TrainingInEvalMode",),
    ),
    "TrainingInEvalMode": Pattern(
        "model.train() is missing after an evaluation",
        "high",
        "the modules' own flags say so",
    ),
    "OverheadBudgetExceeded": Pattern(
        "capturing costs more than its budget at this pace of steps",
        "high",
        "the SDK measures its own time",
        series=("overhead_seconds", "step_seconds"),
    ),
}

UNKNOWN = Pattern("no pattern of ours", "low", "this alert comes from a rule of your own")
