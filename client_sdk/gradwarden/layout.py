"""What the rows of a matrix are: names, blocks, kinds, and the order seen in backward."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence

from torch import Tensor, nn

from gradwarden import wire
from gradwarden.cells import holding

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_ADAPTER = re.compile(r"(?:^|[._])(?:lora|adapter|ia3|prefix_encoder)", re.IGNORECASE)
_EXPERT = re.compile(r"(?:^|\.)experts?(?:\.|$)", re.IGNORECASE)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|head|classifier|output_projection|fc_out)(?:\.|$)")
_NORM = re.compile(r"norm", re.IGNORECASE)


class Rows:
    """The watched parameters of one moment, in model order, one row each."""

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        named = [(n, p) for n, p in model.named_parameters()]
        self.every: tuple[weakref.ref[Tensor], ...] = tuple(weakref.ref(p) for _, p in named)
        self.flags = [p.requires_grad for _, p in named]
        watched = [(n, p) for n, p in named if p.requires_grad]
        self.parameters: tuple[Tensor, ...] = tuple(p for _, p in watched)
        held = holding(model, self.parameters)
        self.cell = held.cell
        """The ranks that hold the same as this one, where anything tells."""
        self.elsewhere = held.elsewhere
        """Rows of which this rank holds nothing that counts."""
        shapes = [held.shapes.get(i, tuple(p.shape)) for i, p in enumerate(self.parameters)]
        self.row = {id(p): i for i, p in enumerate(self.parameters)}
        head = _last_matrix([(n, len(s)) for (n, _), s in zip(watched, shapes, strict=True)])
        self.described = tuple(
            wire.Parameter(
                name=clean(n)[:1024],
                shape=shape,
                dtype=str(p.dtype).removeprefix("torch."),
                block=block(clean(n)),
                kind="head" if n == head else kind(n, len(shape), modules),
                sharded=i in held.shapes,
            )
            for i, ((n, p), shape) in enumerate(zip(watched, shapes, strict=True))
        )

    def changed(self) -> bool:
        """Whether a parameter was frozen, unfrozen or replaced since; cheap enough per step."""
        parameters = [r() for r in self.every]
        return [p is not None and p.requires_grad for p in parameters] != self.flags

    def layout(self, backward: Sequence[int] = ()) -> wire.Layout:
        return wire.Layout(self.described, tuple(backward))


def clean(name: str) -> str:
    """A parameter's name without the wrappers of DDP, torch.compile and FSDP."""
    return _WRAPPERS.sub("", name)


def block(name: str) -> str:
    """The repeated unit that a parameter belongs to (``blocks.3``), else its top module."""
    found = _BLOCK.search(name)
    if found:
        return name[: found.end(1)]
    return name.partition(".")[0]


def kind(name: str, dims: int, modules: dict[str, nn.Module]) -> str:
    """matrix, embedding, norm, bias, head, adapter, expert or other.

    ``dims`` is the number of the whole parameter's dimensions.
    """
    path, _, last = name.rpartition(".")
    owner = modules.get(path)
    label = clean(name)
    if _ADAPTER.search(label):
        return "adapter"
    if _EXPERT.search(label):
        return "expert"
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(owner, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)) or (
        owner is not None and _NORM.search(type(owner).__name__)
    ):
        return "norm"
    if last.startswith("bias") or last.endswith("_bias"):
        return "bias"
    if _HEAD.search(label) and dims >= 2:
        return "head"
    return "matrix" if dims >= 2 else "other"


def _last_matrix(watched: Sequence[tuple[str, int]]) -> str | None:
    """The output layer of a plain stack: the last matrix, when several came before it."""
    matrices = [(n, dims) for n, dims in watched if dims >= 2]
    return matrices[-1][0] if len(matrices) >= 3 and matrices[-1][1] == 2 else None


class BackwardOrder:
    """Watches one backward pass to learn in which order gradients become ready."""

    def __init__(self, rows: Rows) -> None:
        self._seen: list[int] = []
        self._known: set[int] = set()
        self._size = len(rows.parameters)
        self._handles = []
        if all(hasattr(p, "register_post_accumulate_grad_hook") for p in rows.parameters):
            for i, parameter in enumerate(rows.parameters):
                if parameter.is_leaf:
                    hook = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        lambda _, row=i: self._note(row)
                    )
                    self._handles.append(hook)

    def _note(self, row: int) -> None:
        """Called inside the user's backward pass: nothing here can fail."""
        if row not in self._known:
            self._known.add(row)
            self._seen.append(row)

    @property
    def seen(self) -> bool:
        """Whether a backward pass came by."""
        return bool(self._seen)

    def finish(self) -> tuple[int, ...]:
        """Remove the hooks and answer the order; rows without a gradient come last.

        Empty when no backward pass was seen.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if not self._seen:
            return ()
        return (*self._seen, *(i for i in range(self._size) if i not in self._known))
