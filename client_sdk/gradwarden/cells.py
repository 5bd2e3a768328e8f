"""Which part of the parameters this rank holds, read off meshes and wrappers: no communication.

Ranks that share their parameters are a group, named by its lowest rank. Where they split them,
each holds one of several shards; ranks with the same shard are replicas, and the lowest speaks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Ranks = dict[int, tuple[int, ...]]
"""Where each rank of a mesh sits in it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The ranks that hold exactly what this one holds."""

    group: int
    shard: int
    shards: int
    speaker: int
    """The lowest rank of the cell."""
    replicas: int
    """How many ranks the cell has."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What of each parameter is here.

    ``shapes`` has the whole shape of rows that are sharded. Of those, rows ``elsewhere`` hold
    nothing that counts: this rank's piece is empty, or equal to that of a lower shard, as is a
    norm's weight that fully_shard split and tensor parallelism did not.
    """

    cell: Cell | None
    shapes: dict[int, tuple[int, ...]]
    elsewhere: frozenset[int]


def holding(model: nn.Module, parameters: Sequence[Tensor]) -> Holding:
    """What this rank holds of a model's parameters; no cell where nothing tells."""
    flat = _flattened(model, parameters)
    if flat is not None:
        return flat
    split = {i: p for i, p in enumerate(parameters) if is_sharded(p) and _here(p)}
    if not split:
        return Holding(_replicated(model), {}, frozenset())
    meshes = {_key(p): p.device_mesh for p in split.values()}  # type: ignore[attr-defined]
    views = {key: _View(mesh, key[1]) for key, mesh in meshes.items()}
    main = max(views.values(), key=lambda v: (len(v.seats), v.dims))
    here = main.seats[main.rank]
    dims = sorted({d for view in views.values() for d in view.split_along(main)})
    sizes = [main.sizes[d] for d in dims]

    def shard(seat: tuple[int, ...]) -> int:
        number = 0
        for d, size in zip(dims, sizes, strict=True):
            number = number * size + seat[d]
        return number

    mine = shard(here)
    same = [rank for rank, seat in main.seats.items() if shard(seat) == mine]
    cell = Cell(min(main.seats), mine, math.prod(sizes), min(same), len(same))
    again = {key for key, view in views.items() if min(map(shard, view.alike(main))) < mine}
    return Holding(
        cell,
        {i: tuple(p.shape) for i, p in split.items()},
        frozenset(i for i, p in split.items() if _key(p) in again),
    )


def is_sharded(parameter: Tensor) -> bool:
    """Whether ranks of the parameter's mesh hold different parts of it."""
    mesh = getattr(parameter, "device_mesh", None)
    placements = getattr(parameter, "placements", ())
    return mesh is not None and any(
        mesh.size(d) > 1 and not p.is_replicate() for d, p in enumerate(placements)
    )


def _here(parameter: Any) -> bool:
    return parameter.device_mesh.get_coordinate() is not None


def _key(parameter: Any) -> tuple[Any, tuple[bool, ...]]:
    """A mesh, and along which of its dimensions the parameter is split."""
    mesh = parameter.device_mesh
    split = (not p.is_replicate() and mesh.size(d) > 1 for d, p in enumerate(parameter.placements))
    return mesh, tuple(split)


class _View:
    """One mesh as the parameters that are split alike over it see it."""

    def __init__(self, mesh: Any, split: tuple[bool, ...]) -> None:
        self.sizes = tuple(mesh.mesh.shape)
        self.dims, self.split = len(self.sizes), split
        self.seats: Ranks = dict(_seats(mesh.mesh.tolist()))
        self.rank: int = mesh.get_rank()

    def split_along(self, main: _View) -> set[int]:
        """Dimensions of the main mesh along which these parameters differ."""
        own = self.seats[self.rank]
        found: set[int] = set()
        for d in (d for d in range(self.dims) if self.split[d]):
            line = [
                r for r, s in self.seats.items() if s[:d] + s[d + 1 :] == own[:d] + own[d + 1 :]
            ]
            found |= _varying([main.seats[r] for r in line if r in main.seats])
        return found

    def alike(self, main: _View) -> list[tuple[int, ...]]:
        """Seats in the main mesh of ranks that hold the same pieces as this one.

        Along dimensions that this mesh does not reach, another copy of it holds them too.
        """
        own = self.seats[self.rank]
        held = [
            main.seats[rank]
            for rank, seat in self.seats.items()
            if rank in main.seats
            and all(a == b for a, b, split in zip(seat, own, self.split, strict=True) if split)
        ]
        reached = _varying([main.seats[r] for r in self.seats if r in main.seats])
        return [tuple(s if d in reached else 0 for d, s in enumerate(seat)) for seat in held]


def _seats(nested: Any, seat: tuple[int, ...] = ()) -> Iterator[tuple[int, tuple[int, ...]]]:
    if isinstance(nested, int):
        yield nested, seat
        return
    for i, inner in enumerate(nested):
        yield from _seats(inner, (*seat, i))


def _varying(seats: Sequence[tuple[int, ...]]) -> set[int]:
    return {d for d, column in enumerate(zip(*seats, strict=True)) if len(set(column)) > 1}


def _replicated(model: nn.Module) -> Cell | None:
    """The replicas of DistributedDataParallel, where the model is wrapped in it."""
    from torch.distributed import get_process_group_ranks
    from torch.nn.parallel import DistributedDataParallel

    groups = [m.process_group for m in model.modules() if isinstance(m, DistributedDataParallel)]
    sets = {tuple(get_process_group_ranks(group)) for group in groups}
    if len(sets) != 1:
        return None
    (ranks,) = sets
    return Cell(min(ranks), 0, 1, min(ranks), len(ranks))


def _flattened(model: nn.Module, parameters: Sequence[Tensor]) -> Holding | None:
    """The shards of FullyShardedDataParallel, which are plain tensors.

    Its ranks are laid out evenly, so that the lowest of all follows from this one's place.
    """
    module = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if module is None:
        return None
    wrappers = [m for m in model.modules() if isinstance(m, module.FullyShardedDataParallel)]
    whole: dict[int, tuple[int, ...]] = {}
    cell = None
    for wrapper in wrappers:
        handle: Any = getattr(wrapper, "_handle", None)
        if handle is None or not handle.uses_sharded_strategy:
            continue
        flat = handle.flat_param
        whole[id(flat)] = tuple(flat._unpadded_unsharded_size)
        for parameter, shape in zip(flat._params or (), flat._shapes, strict=False):
            whole[id(parameter)] = tuple(shape)
        cell = cell or _hybrid(wrapper)
    if cell is None:
        return None
    shapes = {i: whole[id(p)] for i, p in enumerate(parameters) if id(p) in whole}
    empty = frozenset(i for i in shapes if parameters[i].numel() == 0)
    return Holding(cell, shapes, empty)


def _hybrid(wrapper: Any) -> Cell:
    from torch.distributed import get_process_group_ranks, get_rank

    ranks = sorted(get_process_group_ranks(wrapper.process_group))
    shard = ranks.index(get_rank())
    between = getattr(wrapper, "_inter_node_pg", None)
    if between is None:
        return Cell(ranks[0], shard, len(ranks), ranks[shard], 1)
    same = sorted(get_process_group_ranks(between))
    lowest = same[0] - (ranks[shard] - ranks[0])
    return Cell(lowest, shard, len(ranks), same[0], len(same))
