"""A trace of every n-th step: what reaches an exporter, and what happens where none is."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import nn

from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments import spans as spans_module
from gradwarden.instruments.anatomy import Anatomy
from gradwarden.instruments.clock import Mark
from gradwarden.instruments.spans import WAITING, Spans
from gradwarden.instruments.timeline import Cut, Step
from tests.needs import missing

try:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
except ImportError:
    trace = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _otel() -> None:
    if trace is None:
        missing("opentelemetry-sdk", "pip install 'gradwarden[otel]'")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """A provider of the process, for one test, and what it exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


@pytest.fixture
def run() -> Iterator[Callable[..., Spans]]:
    """Train ``steps`` steps with spans every ``every``; the instrument, stopped."""
    begun: list[Any] = []

    def trained(every: int, steps: int, describe: dict[str, Any] | None = None) -> Spans:
        model = nn.Linear(3, 2)
        faults, numbers = Faults(), iter(range(steps))
        anatomy = Anatomy(model, FrameBook(0), faults)
        told = {"run": "r", "rank": 0, "attempt": 0} if describe is None else describe
        spans = Spans(every, lambda: next(numbers), lambda: told, faults)
        anatomy.on_step = spans.hear
        begun.extend([anatomy, spans])
        anatomy.start()
        spans.start()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: anatomy.step_ended())
        for _ in range(steps):
            for _ in range(2):
                model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
        spans.stop()
        assert faults.counts == {}
        return spans

    yield trained
    for instrument in begun:
        instrument.stop()


def roots(found: tuple[ReadableSpan, ...]) -> list[ReadableSpan]:
    return [s for s in found if s.parent is None]


def test_every_nth_step_is_a_trace_with_its_phases(
    exported: InMemorySpanExporter, run: Callable[..., Spans]
) -> None:
    before = time.time_ns()
    spans = run(3, 8)
    after = time.time_ns()
    found = exported.get_finished_spans()
    tops = roots(found)
    assert [s.attributes["step"] for s in tops if s.attributes] == [0, 3, 6]
    assert {s.name for s in tops} == {"step"}
    assert dict(tops[1].attributes or {}) == {"run": "r", "rank": 0, "attempt": 0, "step": 3}
    assert spans.dropped == 0
    for top in tops:
        inside = sorted(
            (s for s in found if s.parent and s.parent.span_id == top.context.span_id),
            key=lambda s: s.start_time or 0,
        )
        names = [s.name for s in inside]
        assert names == ["forward", "backward", "forward", "backward", "optimizer"]
        assert len({s.context.trace_id for s in [top, *inside]}) == 1
        edges = [(s.start_time or 0, s.end_time or 0) for s in inside]
        assert all(begin <= end for begin, end in edges)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(edges)), "no overlap"
        assert (top.start_time or 0) <= edges[0][0] <= edges[-1][1] <= (top.end_time or 0)
    assert before <= (tops[0].start_time or 0) <= (tops[-1].end_time or 0) <= after
    assert len({s.context.trace_id for s in tops}) == 3


def test_a_users_own_span_is_not_a_parent(
    exported: InMemorySpanExporter, run: Callable[..., Spans]
) -> None:
    with trace.get_tracer("mine").start_as_current_span("epoch"):
        run(1, 2)
    tops = [s for s in roots(exported.get_finished_spans()) if s.name == "step"]
    assert len(tops) == 2


def test_off_by_default_and_every_absence_is_said(
    exported: InMemorySpanExporter,
    run: Callable[..., Spans],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(0, 2).status() == "off: spans=0"
    assert not exported.get_finished_spans()
    assert run(5, 2).status() == "on, every 5 steps"
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    assert run(5, 2).status() == "waiting: the process has set no tracer provider"


def test_without_opentelemetry_the_status_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from gradwarden.errors import Faults\n"
        "from gradwarden.instruments.spans import Spans\n"
        "s = Spans(1, int, dict, Faults()); s.start(); print(s.status()); s.stop()"
    )
    path = {"PYTHONPATH": "client_sdk", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert done.stdout.strip().startswith("off:"), done.stderr
    assert "pip install 'gradwarden[otel]'" in done.stdout


def test_an_exporter_that_hangs_costs_spans_and_nothing_else(
    exported: InMemorySpanExporter, run: Callable[..., Spans], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, stuck = threading.Event(), threading.Event()
    export = exported.export

    def hangs(batch: Any) -> Any:
        stuck.set()
        gate.wait(60)
        return export(batch)

    monkeypatch.setattr(exported, "export", hangs)
    monkeypatch.setattr(spans_module, "_DEADLINE", 0.0)
    spans = run(1, 3 * WAITING)
    assert stuck.wait(60)
    assert 2 * WAITING - 2 <= spans.dropped <= 2 * WAITING
    gate.set()


class Event:
    """A device's event, which has happened once ``now`` came past it."""

    now = 0.0

    def __init__(self, at: float) -> None:
        self.at = at

    def query(self) -> bool:
        return Event.now >= self.at

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.at - self.at)


def mark(host: float, device: float) -> Mark:
    made = Mark(Event(device))
    made.at = host
    return made


def test_the_devices_times_are_tied_to_the_hosts_where_the_device_was_idle(
    exported: InMemorySpanExporter,
) -> None:
    """The device's clock starts at 100; the host queues ahead of it but for the data wait."""
    cuts = [
        Cut("data", mark(10.0, 100.0)),
        Cut("forward", mark(14.0, 104.0)),  # it idled, so that it is here when the host is
        Cut("backward", mark(14.1, 106.0)),
        Cut("", mark(14.2, 109.0)),
    ]
    Event.now = 108.0
    step = Step(mark(9.0, 99.5), cuts, mark(14.3, 109.5), {}, 0)
    assert not step.ready
    faults = Faults()
    spans = Spans(1, lambda: 7, lambda: {"run": "r"}, faults)
    spans.start()
    spans.hear(step)
    Event.now = 110.0
    spans.stop()
    found = {s.name: s for s in exported.get_finished_spans()}
    length = {n: ((s.end_time or 0) - (s.start_time or 0)) * 1e-9 for n, s in found.items()}
    expected = {"step": 10.0, "data": 4.0, "forward": 2.0, "backward": 3.0}
    assert length == pytest.approx(expected, abs=1e-6)
    shift = time.time() - time.perf_counter()
    begin = (found["forward"].start_time or 0) * 1e-9 - shift
    assert begin == pytest.approx(14.0, abs=0.01)
    assert faults.counts == {}


def test_a_devices_phases_become_known_when_it_comes_past_them() -> None:
    """The scalars are read later, as any value that is on its way from a device."""
    model = nn.Linear(2, 2)
    anatomy = Anatomy(model, FrameBook(0), Faults())
    times = iter([1.0, 2.0, 4.0, 7.0, 8.0])

    class Device:
        def mark(self) -> Mark:
            return Mark(Event(next(times)))

    timeline = anatomy._timeline
    timeline._clock, timeline._on_device = Device(), True  # type: ignore[assignment]
    Event.now = 7.5
    anatomy.enter("forward")
    anatomy.leave("forward")
    anatomy.enter("backward")
    anatomy.leave("backward")
    found = dict(anatomy.step_ended())
    assert all(isinstance(v, Pending) and not v.ready and not v.at_hand for v in found.values())
    Event.now = 8.0
    seconds = {k: float(v.take()) for k, v in found.items() if isinstance(v, Pending) and v.ready}
    assert seconds == {"step_seconds": 7.0, "forward_seconds": 1.0, "backward_seconds": 3.0}


def test_a_real_collector_receives_the_trace(run: Callable[..., Spans]) -> None:
    """In a process of its own: a tracer provider is set once and for all."""
    try:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )
    except ImportError:
        missing("opentelemetry-exporter-otlp-proto-http", "pip install 'gradwarden[dev]'")
    received: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()
            received.put(ExportTraceServiceRequest.FromString(body))

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRAINING, json.dumps(endpoint)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        server.shutdown()
        server.server_close()
    sent = []
    while not received.empty():
        for resource in received.get().resource_spans:
            sent += [s for scope in resource.scope_spans for s in scope.spans]
    top = next(s for s in sent if s.name == "step")
    children = [s.name for s in sent if s.parent_span_id == top.span_id]
    assert sorted(children) == ["backward", "forward", "optimizer"]
    assert {a.key for a in top.attributes} == {"run", "rank", "attempt", "step"}


_TRAINING = """
import json, sys, torch
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.anatomy import Anatomy
from gradwarden.instruments.spans import Spans
provider = TracerProvider()
exporter = OTLPSpanExporter(endpoint=json.loads(sys.argv[1]))
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
model = torch.nn.Linear(3, 2)
faults = Faults()
anatomy = Anatomy(model, FrameBook(0), faults)
spans = Spans(1, lambda: 0, lambda: {"run": "r", "rank": 0, "attempt": 0}, faults)
anatomy.on_step = spans.hear
anatomy.start(); spans.start()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    anatomy.step_ended()
spans.stop()
provider.shutdown()
assert faults.counts == {}, faults.counts
"""
