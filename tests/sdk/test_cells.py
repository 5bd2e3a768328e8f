"""Group and shard as every rank of larger jobs reads them off its meshes, without communication.

torch's fake process group stands for the other ranks: nothing here may need an answer of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradwarden.cells import Holding, holding

WORLD = 8


@contextmanager
def rank_of_eight(rank: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def placed(mesh: DeviceMesh, *placements: Placement) -> DTensor:
    """A parameter of 16 x 16, of which this rank holds what its place says."""
    return DTensor.from_local(
        torch.zeros(2, 2), mesh, placements, run_check=False, shape=(16, 16), stride=(16, 1)
    )


def held(*parameters: Any) -> Holding:
    return holding(nn.Module(), parameters)


def cells(build: Any) -> list[tuple[int, int, int, int, int, list[int]]]:
    """Per rank: group, shard, shards, speaker, replicas and the rows counted elsewhere."""
    found = []
    for rank in range(WORLD):
        with rank_of_eight(rank):
            one = held(*build(rank))
            assert one.cell is not None
            c = one.cell
            who = (c.group, c.shard, c.shards, c.speaker, c.replicas)
            found.append((*who, sorted(one.elsewhere)))
    return found


def test_replicas_of_shards_of_tensor_parallel_pieces() -> None:
    def build(rank: int) -> list[Any]:
        names = ("copies", "data", "tensor")
        mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=names)
        return [
            placed(mesh, Replicate(), Shard(0), Shard(1)),
            placed(mesh, Replicate(), _StridedShard(0, split_factor=2), Shard(0)),
            placed(mesh, Replicate(), Shard(0), Replicate()),
            placed(mesh["copies", "data"], Replicate(), Shard(0)),
            torch.zeros(16),
        ]

    norms = [2, 3]  # a norm's weight, split by data alone: the first tensor rank counts it
    expected = [(0, r % 4, 4, r % 4, 2, norms if r % 2 else []) for r in range(WORLD)]
    assert cells(build) == expected


def test_stages_of_a_pipeline_are_groups_of_their_own() -> None:
    def build(rank: int) -> list[Any]:
        mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("stage", "data"))
        return [placed(mesh["data"], Shard(0))]

    assert cells(build) == [(r // 4 * 4, r % 4, 4, r, 1, []) for r in range(WORLD)]


def test_experts_on_a_mesh_of_other_shape_over_the_same_ranks() -> None:
    def build(rank: int) -> list[Any]:
        line = init_device_mesh("cpu", (8,), mesh_dim_names=("data",))
        grid = init_device_mesh("cpu", (2, 4), mesh_dim_names=("rest", "experts"))
        return [
            placed(line, Shard(0)),
            placed(grid, Shard(1), Shard(0)),
            placed(grid, Replicate(), Shard(0)),
        ]

    assert cells(build) == [(0, r, 8, r, 1, [2] if r >= 4 else []) for r in range(WORLD)]


@pytest.mark.parametrize("placements", [(Replicate(),), ()])
def test_what_all_ranks_hold_alike_is_no_shard(placements: tuple[Placement, ...]) -> None:
    with rank_of_eight(3):
        mesh = init_device_mesh("cpu", (8,))
        parameter: Any = placed(mesh, *placements) if placements else torch.zeros(4)
        assert held(parameter) == Holding(None, {}, frozenset())


def test_a_mesh_of_one_splits_nothing() -> None:
    with rank_of_eight(3):
        mesh = init_device_mesh("cpu", (8, 1), mesh_dim_names=("copies", "data"))
        assert held(placed(mesh, Replicate(), Shard(0))).cell is None
