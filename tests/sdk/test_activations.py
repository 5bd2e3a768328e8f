"""What chosen modules put out, against a slow obvious twin over the same outputs."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradwarden.collect import Pending
from gradwarden.errors import ConfigurationError, Faults
from gradwarden.instruments import activations as room
from gradwarden.instruments.activations import MOST, Activations, limits, measure

Scalars = Mapping[str, float | Pending]


def twin(batches: list[Tensor], bounds: tuple[float, float] | None) -> tuple[float, float, float]:
    """Value by value in Python: largest |x|, mean share of zeros, mean share at the limits."""
    peak, zeros, edges = 0.0, [], []
    for batch in batches:
        values = [float(v) for v in batch.detach().double().flatten()]
        largest = torch.finfo(batch.dtype).max
        at_edge = 0
        for v in values:
            peak = math.nan if math.isnan(v) or math.isnan(peak) else max(peak, abs(v))
            if bounds is None:
                low, high = -0.99 * largest, 0.99 * largest
            else:
                reach = 0.01 * (bounds[1] if math.isinf(bounds[0]) else bounds[1] - bounds[0])
                low, high = bounds[0] + reach, bounds[1] - reach
            at_edge += v >= rounded(high, batch.dtype) or v <= rounded(low, batch.dtype)
        zeros.append(sum(v == 0 for v in values) / len(values))
        edges.append(at_edge / len(values))
    return peak, sum(zeros) / len(zeros), sum(edges) / len(edges)


def rounded(value: float, dtype: torch.dtype) -> float:
    """The nearest number that the dtype has."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


KINDS: list[nn.Module] = [
    nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Softsign(), nn.Hardtanh(-2.0, 3.0), nn.ReLU6(),
    nn.ReLU(), nn.GELU(), nn.Identity(),
]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def hostile(dtype: torch.dtype) -> Tensor:
    """Zeros of both signs, tails, the largest numbers, and values near every limit."""
    dice = torch.Generator().manual_seed(4)
    info = torch.finfo(dtype)
    edges = [0.0, -0.0, info.max, -info.max, 0.98 * info.max, info.tiny, 5.94, 5.95, -1.96, 2.96]
    spread = 10.0 ** torch.linspace(-3, 2, 30, dtype=torch.float64)
    drawn = torch.randn(30, generator=dice, dtype=torch.float64) * spread
    return torch.cat([torch.tensor(edges, dtype=torch.float64), drawn]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda m: type(m).__name__)
def test_measures_equal_the_twins(kind: nn.Module, dtype: torch.dtype) -> None:
    output = kind(hostile(dtype))
    found = measure(output, limits(kind))
    assert [float(v) for v in found] == pytest.approx(list(twin([output], limits(kind))))
    turned = output.reshape(8, 5).t()
    assert [float(v) for v in measure(turned, limits(kind))] == [float(v) for v in found]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_value_shows_in_the_largest(bad: float) -> None:
    output = torch.tensor([1.0, bad, 0.0])
    found = [float(v) for v in measure(output, None)]
    assert found == pytest.approx(list(twin([output], None)), nan_ok=True)
    assert not math.isfinite(found[0])


@pytest.mark.parametrize("turned", [False, True])
def test_a_large_output_is_measured_piece_by_piece(
    turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = torch.tanh(hostile(torch.float32)).repeat(3).reshape(8, 3, 5)
    output = output.transpose(0, 1) if turned else output
    whole = [float(v) for v in measure(output, (-1.0, 1.0))]
    monkeypatch.setattr(room, "PIECE", 7)
    assert [float(v) for v in measure(output, (-1.0, 1.0))] == whole
    output[1, 1, 1] = math.nan
    assert math.isnan(float(measure(output, (-1.0, 1.0))[0]))


def test_eight_bit_outputs_are_measured_too() -> None:
    output = torch.tensor([448.0, 0.0, 1.0, -2.0]).to(torch.float8_e4m3fn)
    assert [float(v) for v in measure(output, None)] == [448.0, 0.25, 0.25]
    assert float(measure(torch.tensor(3.0), None)[0]) == 3.0


class Watched(NamedTuple):
    activations: Activations
    faults: Faults


Attach = Callable[..., Watched]


@pytest.fixture
def attach() -> Iterator[Attach]:
    begun: list[Watched] = []

    def attached(model: nn.Module, *patterns: str, **more: Any) -> Watched:
        faults = Faults()
        begun.append(Watched(Activations(model, patterns, faults, **more), faults))
        begun[-1].activations.start()
        return begun[-1]

    yield attached
    for watched in begun:
        watched.activations.stop()
        assert watched.faults.counts == {}


class Net(nn.Module):
    """Two blocks; how the first one is run is chosen by ``again``."""

    def __init__(self, again: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.act, self.rectify = nn.Linear(4, 8), nn.Tanh(), nn.ReLU()
        self.head, self.again = nn.Linear(8, 2), again

    def block(self, x: Tensor) -> Tensor:
        out: Tensor = self.rectify(self.act(self.first(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.again is not None:
            x = checkpoint(self.block, x, use_reentrant=self.again)
        else:
            x = self.block(x)
        out: Tensor = self.head(x)
        return out


def batch(number: int) -> Tensor:
    dice = torch.Generator().manual_seed(number)
    return (2 * torch.randn(6, 4, generator=dice)).requires_grad_()


def expected(model: Net, batches: list[Tensor]) -> dict[str, float]:
    """The twin's scalars of both activations, from a copy that nobody watches."""
    alone = copy.deepcopy(model)
    acts = [alone.act(alone.first(x)) for x in batches]
    found = {}
    for name, outputs, module in (
        ("act", acts, alone.act),
        ("rectify", [alone.rectify(a) for a in acts], alone.rectify),
    ):
        for what, value in zip(room.COLUMNS, twin(outputs, limits(module)), strict=True):
            found[f"activation_{what}/{name}"] = value
    return found


@pytest.mark.parametrize("again", [None, False, True])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_micro_batches_of_a_step_are_joined_and_counted_once(
    attach: Attach, backend: str | None, again: bool | None
) -> None:
    torch._dynamo.reset()
    model = Net(again)
    watched = attach(model, "act", "rect*")
    called: Any = model
    if backend is not None:
        called = torch.compile(model, backend=backend, fullgraph=again is None)
    for step in range(3):
        batches = [batch(2 * step), batch(2 * step + 1)]
        for x in batches:
            called(x).sum().backward()
        with torch.no_grad():
            called(torch.full((6, 4), 1e6))
        model.eval()
        called(torch.full((6, 4), 1e6))
        model.train()
        found = watched.activations.step_ended()
        assert found == pytest.approx(expected(model, batches), rel=1e-6)


@pytest.mark.full
def test_a_graph_of_the_default_compiler_is_watched(attach: Attach) -> None:
    torch._dynamo.reset()
    model = Net()
    watched = attach(model, "act", "rectify")
    called = torch.compile(model, fullgraph=True)
    called(batch(0)).sum().backward()
    found = watched.activations.step_ended()
    assert found == pytest.approx(expected(model, [batch(0)]), rel=1e-6)


def test_only_captured_steps_are_measured(attach: Attach) -> None:
    model, step = Net(), itertools.count()
    watched = attach(model, "act", captures=lambda: next(step) % 2 == 1)
    measured = []
    for number in range(4):
        model(batch(number)).sum().backward()
        measured.append(bool(watched.activations.step_ended()))
    assert measured == [False, True, False, True]


def test_evaluation_is_ignored(attach: Attach) -> None:
    model = Net()
    watched = attach(model, "act")
    with torch.no_grad():
        model(batch(0))
    with torch.inference_mode():
        model(batch(0))
    model.eval()
    model(batch(0)).sum().backward()
    assert watched.activations.step_ended() == {}


def test_a_frozen_part_in_eval_mode_is_watched_in_training(attach: Attach) -> None:
    model = Net()
    model.act.eval()
    watched = attach(model, "act")
    model(batch(0)).sum().backward()
    assert len(watched.activations.step_ended()) == 3


def test_the_first_tensor_of_a_tuple_or_a_dict_counts(attach: Attach) -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"index": torch.ones(2, dtype=torch.long), "nested": [None, (7 * x, x)]}

    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "table": Table(), "none": nn.Identity()})
    watched = attach(model, "*")
    output, _ = model["rnn"](torch.ones(2, 1, 3))
    model["table"](torch.ones(2))
    model["none"]("no tensor")
    model["none"](torch.zeros(0))
    found = watched.activations.step_ended()
    peak = twin([output], None)[0]
    assert found["activation_absmax/rnn"] == pytest.approx(peak)
    assert found["activation_absmax/table"] == 7.0
    assert len(found) == 6


def test_mixed_precision_outputs_have_their_own_dtypes_limit(attach: Attach) -> None:
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Identity())
    nn.init.constant_(model[0].weight, 1.0)
    watched = attach(model, "0")
    with torch.autocast("cpu", torch.float16):
        model(torch.full((1, 1), 65500.0)).sum().backward()
    found = watched.activations.step_ended()
    assert found["activation_saturation_ratio/0"] == 1.0, "near the largest fp16"


def test_names_are_those_without_wrappers(attach: Attach) -> None:
    wrapped = nn.ModuleDict({"module": nn.Sequential(nn.Linear(4, 4), nn.ReLU())})
    watched = attach(wrapped, "1")
    wrapped["module"](batch(0)).sum().backward()
    assert set(watched.activations.step_ended()) == {f"activation_{c}/1" for c in room.COLUMNS}


def test_a_pattern_without_a_match_or_with_too_many_names_the_remedy() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.ReLU() for _ in range(MOST + 1))})
    with pytest.raises(ConfigurationError, match=r"no module has such a name; did you mean block"):
        Activations(model, ["block"], Faults())
    with pytest.raises(ConfigurationError, match=rf"{MOST + 1} modules match .* and {MOST} may"):
        Activations(model, ["blocks.*"], Faults())
    assert Activations(model, ["blocks.1?", "blocks.2"], Faults()).status() == "on, 11 modules"


@pytest.mark.parametrize("inplace", [False, True])
def test_training_is_the_same_to_the_bit(attach: Attach, inplace: bool) -> None:
    def trained(watch: bool) -> bytes:
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(inplace=inplace), nn.Dropout(0.4), nn.Linear(8, 2)
        )
        watched = attach(model, "*") if watch else None
        optimizer = torch.optim.Adam(model.parameters())
        for number in range(5):
            model(batch(number)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if watched is not None:
                assert len(watched.activations.step_ended()) == 12
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    assert trained(True) == trained(False)


def test_a_copy_is_not_watched_and_hooks_are_undone(attach: Attach) -> None:
    model = Net()
    watched = attach(model, "act")
    average = copy.deepcopy(model)
    average(batch(0)).sum().backward()
    assert watched.activations.step_ended() == {}
    watched.activations.stop()
    assert not model.act._forward_hooks
    model(batch(0)).sum().backward()
    assert watched.activations.step_ended() == {}


def test_a_graph_that_outlives_the_watch_goes_on(attach: Attach) -> None:
    torch._dynamo.reset()
    model = Net()
    watched = attach(model, "act")
    called = torch.compile(model, backend="eager", fullgraph=True)
    before = called(batch(0))
    watched.activations.stop()
    assert torch.equal(called(batch(0)), before)


def test_an_exported_model_carries_nothing_of_ours(attach: Attach) -> None:
    model = Net()
    attach(model, "act")
    program = torch.export.export(model, (batch(0).detach(),))
    assert "gradwarden" not in str(program)


def test_a_failure_of_ours_turns_it_off_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such statistic")

    monkeypatch.setattr(room, "measure", fails)
    model, faults = Net(), Faults()
    activations = Activations(model, ["act"], faults)
    activations.start()
    model(batch(0)).sum().backward()
    model(batch(1)).sum().backward()
    activations.stop()
    assert faults.counts == {"activations": 2}
    assert capfd.readouterr().err.count("no such statistic") == 1
