"""Training by several gloo ranks, each case without and with its collectives listened to.

Run by torchrun; rank 0 prints one line of JSON: per case whether every gradient and weight of
every rank is the same to the bit, what was measured, and what the instrument says of itself.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.communication import Communication

STEPS = 5
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Net(nn.Module):
    """Some layers, one of them used on odd steps only where asked for, one sparse."""

    def __init__(self, sparse: bool, lazy: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 40, sparse=True) if sparse else None
        self.body = nn.Sequential(
            nn.Linear(40, 90), nn.Tanh(), nn.Linear(90, 90), nn.Tanh(), nn.Linear(90, 7)
        )
        self.lazy = nn.Linear(7, 7) if lazy else None

    def forward(self, x: Tensor, step: int) -> Tensor:
        if self.table is not None:
            x = x + self.table(torch.arange(len(x)) * (dist.get_rank() + 2))
        y: Tensor = self.body(x)
        return self.lazy(y) if self.lazy is not None and step % 2 else y


@dataclass
class Case:
    """One way to train under DDP."""

    dtype: torch.dtype = torch.float32
    ddp: dict[str, Any] = field(default_factory=dict)
    sparse: bool = False
    lazy: bool = False
    none: bool = True
    accumulate: int = 1
    early: bool = False
    """Whether the model is watched before DDP wraps it."""
    hook: Callable[[DDP], None] | None = None
    hook_first: bool = False
    join: dict[str, Any] | None = None
    comm: str = "auto"
    copied: bool = False
    spoil: Callable[[Communication], None] | None = None


def powers(ddp: DDP) -> None:
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def at_once(ddp: DDP) -> None:
    """A hook that exchanges nothing."""

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch reads its annotations
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer() * 0.5)
        return future

    ddp.register_comm_hook(None, hook)


def builtin(kind: str) -> Callable[[DDP], None]:
    return lambda ddp: ddp._register_builtin_comm_hook(getattr(dist.BuiltinCommHookType, kind))


def broken(listener: Communication) -> None:
    def raises(*_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    listener.bucket_leaves = raises  # type: ignore[method-assign]


def cases() -> Iterator[tuple[str, Case]]:
    for name, dtype in TYPES.items():
        for none in (True, False):
            kept = "" if none else " kept"
            yield f"{name}{kept}", Case(dtype, none=none)
            view = {"gradient_as_bucket_view": True}
            yield f"{name} view{kept}", Case(dtype, view, none=none)
            yield f"{name} view sums{kept}", Case(dtype, view, none=none, accumulate=3)
        yield f"{name} static", Case(dtype, {"static_graph": True}, early=True)
        yield f"{name} unused", Case(dtype, {"find_unused_parameters": True}, lazy=True)
        yield f"{name} sums", Case(dtype, accumulate=3)
        yield f"{name} own hook", Case(dtype, hook=averages)
        yield f"{name} fp16 hook", Case(dtype, hook=compresses)
        yield f"{name} builtin", Case(dtype, hook=builtin("ALLREDUCE"))
        yield f"{name} builtin fp16", Case(dtype, hook=builtin("FP16_COMPRESS"))
    if "batched_grad_copy" in DDP.__init__.__code__.co_varnames:
        batched = {"batched_grad_copy": True}
        yield "batched", Case(ddp=batched)
        yield "batched view kept", Case(ddp=batched | {"gradient_as_bucket_view": True}, none=False)
    yield "sparse", Case(sparse=True)
    yield "early", Case(early=True)
    yield "early own hook", Case(early=True, hook=averages)
    # One bucket: its nested all-reduces start on gloo's threads, in any order of buckets.
    yield "power", Case(ddp={"bucket_cap_mb": 25}, hook=powers)
    yield "at once", Case(hook=at_once)
    yield "hook before", Case(hook=averages, hook_first=True)
    yield "builtin before", Case(hook=builtin("ALLREDUCE"), hook_first=True)
    yield "view, then hook", Case(ddp={"gradient_as_bucket_view": True}, hook=averages)
    yield "join", Case(join={})
    yield "join, fewer", Case(join={"divide_by_initial_world_size": False})
    yield "log", Case(comm="ddp")
    yield "off", Case(comm="off")
    yield "copied", Case(copied=True)
    yield "broken", Case(spoil=broken)


def averages(ddp: DDP) -> None:
    ddp.register_comm_hook(None, default_hooks.allreduce_hook)


def compresses(ddp: DDP) -> None:
    ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)


def train(case: Case, watched: bool) -> tuple[list[Tensor], list[dict[str, float]], str]:
    """Every gradient of every step and the last weights; the scalars of each step; status."""
    torch.manual_seed(0)
    book, faults = FrameBook(), Faults()
    inner = Net(case.sparse, case.lazy).to(case.dtype)
    listener = Communication(inner, case.comm, book, faults) if watched else None
    if listener is not None and case.early:
        listener.start()
    ddp = DDP(inner, **{"bucket_cap_mb": 0.02} | case.ddp)
    if case.hook is not None and case.hook_first:
        case.hook(ddp)
    if listener is not None and not case.early:
        listener.start()
    if listener is not None and case.spoil is not None:
        case.spoil(listener)
    if case.hook is not None and not case.hook_first:
        case.hook(ddp)
    if case.copied:
        ddp = copy.deepcopy(ddp)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.05)
    seen: list[Tensor] = []
    numbers: list[Mapping[str, float | Pending]] = []
    uneven = STEPS + 2 * dist.get_rank() if case.join is not None else STEPS

    def steps(first: int, count: int) -> None:
        for step in range(first, first + count):
            optimizer.zero_grad(set_to_none=case.none)
            for part in range(case.accumulate):
                seed = 1000 * step + 10 * part + dist.get_rank()
                x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
                more = part + 1 < case.accumulate
                with ddp.no_sync() if more else nullcontext():
                    ddp(x.to(case.dtype), step).float().pow(2).mean().backward()
            seen.extend(p.grad.clone() for p in ddp.parameters() if p.grad is not None)
            optimizer.step()
            if listener is not None:
                numbers.append(listener.step_ended())

    with ddp.join(**case.join) if case.join is not None else nullcontext():
        steps(0, uneven)
    steps(uneven, 3)
    seen += [p.detach().clone() for p in ddp.parameters()]
    status = listener.status() if listener is not None else ""
    if listener is not None:
        listener.stop()
        assert not case.hook or case.hook_first or refuses(ddp, case.hook)
    return seen, [resolved(n) for n in numbers], status


def resolved(numbers: Mapping[str, float | Pending]) -> dict[str, float]:
    """All as numbers; a callback of the backend may come a moment after the backward pass."""
    found = {}
    for name, value in numbers.items():
        deadline = time.monotonic() + 10
        while isinstance(value, Pending) and not value.ready:
            assert time.monotonic() < deadline, f"{name} never came"
            time.sleep(0.001)
        found[name] = float(value.take()) if isinstance(value, Pending) else value
    return found


def refuses(ddp: DDP, hook: Callable[[DDP], None]) -> bool:
    """Whether a second hook meets torch's own refusal."""
    try:
        hook(ddp)
    except RuntimeError as error:
        return "only be called once" in str(error)
    return False


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit, where a NaN is a NaN."""
    if a.is_sparse:
        a, b = a.coalesce(), b.coalesce()
        return bool(torch.equal(a.indices(), b.indices())) and same(a.values(), b.values())
    return a.dtype == b.dtype and bool(torch.equal(_bits(a), _bits(b)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def compare() -> dict[str, Any]:
    """Every case, without and with."""
    answer = {}
    for name, case in cases():
        plain, _, _ = train(case, False)
        seen, numbers, status = train(case, True)
        equal = len(plain) == len(seen) and all(map(same, plain, seen))
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, equal)
        answer[name] = {"same": told, "numbers": numbers, "status": status}
    return answer


def sleeper() -> list[dict[str, float]]:
    """Rank 1 is slow before its backward pass; each rank's numbers of the last step."""
    torch.manual_seed(0)
    ddp = DDP(Net(False, False), bucket_cap_mb=0.02)
    listener = Communication(ddp, "auto", FrameBook(), Faults())
    listener.start()
    for step in range(4):
        if dist.get_rank() == 1:
            time.sleep(0.2)  # stands for slow work
        ddp(torch.randn(6, 40), step).pow(2).mean().backward()
        found = resolved(listener.step_ended())
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, found)
    return told


def sick() -> list[Any]:
    """Rank 1's gradient is bad on steps 3 to 8, in one layer; what each rank says of it."""
    ddp = DDP(Net(False, False), bucket_cap_mb=0.02)
    book = FrameBook()
    listener = Communication(ddp, "auto", book, Faults())
    listener.start()
    step = 0

    def fault(gradient: Tensor) -> Tensor:
        bad = dist.get_rank() == 1 and 3 <= step < 9
        return gradient * (float("inf") if bad else 1.0)

    ddp.module.body[2].weight.register_hook(fault)
    counts = []
    for step in range(12):
        ddp.zero_grad()
        ddp(torch.randn(6, 40), step).pow(2).mean().backward()
        counts.append(resolved(listener.step_ended())["local_nonfinite_buckets"])
    listener.stop()
    events = [e for piece in _pieces(book) for e in piece.events]
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, {"counts": counts, "events": events})
    return told


def shards(watched: bool, sick: bool) -> tuple[list[Tensor], Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = Net(False, False).body
    book = FrameBook()
    listener = Communication(model, "auto", book, Faults())
    if watched:
        listener.start()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    comms = [m._get_fsdp_state()._fsdp_param_group._reduce_scatter_comm for m in (model[0], model)]
    kinds = [type(comm) for comm in comms]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    seen: list[Tensor] = []
    numbers = []
    for step in range(5):
        optimizer.zero_grad()
        x = torch.randn(6, 40, generator=torch.Generator().manual_seed(step + dist.get_rank()))
        if sick and dist.get_rank() == 1 and step == 4:
            x = x * float("nan")
        model(x).pow(2).mean().backward()
        seen += [p.grad.to_local().clone() for p in model.parameters()]
        optimizer.step()
        if watched:
            numbers.append(resolved(listener.step_ended()))
    status = listener.status()
    listener.stop()
    events = [e for piece in _pieces(book) for e in piece.events]
    restored = [type(comm) for comm in comms] == kinds
    return seen, numbers, {"status": status, "events": events, "restored": restored}


def sharded() -> list[Any]:
    """``fully_shard`` without and with; per rank whether all is the same, and what was told."""
    plain, _, _ = shards(False, False)
    seen, numbers, said = shards(True, False)
    _, _, ill = shards(True, True)
    told: list[Any] = [None] * dist.get_world_size()
    equal = all(map(same, plain, seen))
    mine = {"same": equal, "numbers": numbers, **said, "ill": ill["events"]}
    dist.all_gather_object(told, mine)
    return told


def _pieces(book: FrameBook) -> list[Any]:
    book.close()
    return book.drain(0.0)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    answer = globals()[sys.argv[1]]()
    if dist.get_rank() == 0:  # stderr has torch's own words
        print(json.dumps(answer), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # on its way out torch aborts now and then, after all was said


if __name__ == "__main__":
    main()
