"""Who watches the watchman: our own metrics and traces.

Counters move where things happen. Everything that the database knows better (runs, alerts,
the outbox, the latest gradient norms) is asked for at each scrape, through a snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

MOST_RUNS = 50
"""Live runs with series of their own on /metrics; the rest are counted, so it stays bounded."""

_MOST_COUNTED = 1000
_tracing = threading.Event()

disable_created_metrics()  # type: ignore[no-untyped-call]


def package_version() -> str:
    """The version of the installed distribution."""
    return version("gradwarden")


@dataclass(frozen=True, slots=True)
class RunGauges:
    """The latest of one live run."""

    project: str
    run: str
    last_step: int | None
    grad_norm: float | None
    nonfinite: int


class Compacting(Protocol):
    """How compaction is getting on."""

    segments: int
    frames: int
    failures: int
    backlog_frames: int
    backlog_bytes: int


class Ruling(Protocol):
    """How the evaluation of Prometheus's rules is getting on."""

    evaluations: int
    failures: int
    skipped: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the stores know at the moment of a scrape."""

    runs: Mapping[str, int] = field(default_factory=dict)
    alerts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    live: tuple[RunGauges, ...] = ()
    live_count: int = 0
    outbox_waiting: int = 0
    outbox_oldest_seconds: float = 0.0
    writer_queue_depth: int = 0
    streams: int = 0
    evaluator_lag_seconds: float = 0.0
    evaluator_errors: int = 0
    herald_errors: int = 0
    outbox_dead: int = 0
    circuits: Mapping[str, bool] = field(default_factory=dict)
    rules: Ruling | None = None
    reload_ok: bool = True
    reload_ns: int = 0
    compaction: Compacting | None = None


class Telemetry:
    """The metrics of one service; a registry of its own, so that tests can hold several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ingest_frames = Counter(
            "gradwarden_ingest_frames",
            "Frames stored durably, each counted once however often it was sent.",
            registry=self.registry,
        )
        self.ingest_requests = Counter(
            "gradwarden_ingest_requests",
            "Requests to /v1/ingest by HTTP status.",
            ["code"],
            registry=self.registry,
        )
        self.ingest_commit_seconds = Histogram(
            "gradwarden_ingest_commit_seconds",
            "From a decoded batch to its durable commit.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.deliveries = Counter(
            "gradwarden_deliveries",
            "Tries to tell a receiver, by how they went.",
            ["receiver", "result"],
            registry=self.registry,
        )
        self.retries = Counter(
            "gradwarden_delivery_retries",
            "Tries of messages that were tried before.",
            ["receiver"],
            registry=self.registry,
        )
        self.exports = Counter(
            "gradwarden_exports",
            "Exports that ended, by format and how: done, left by the client, or failed.",
            ["format", "result"],
            registry=self.registry,
        )
        self.export_frames = Counter(
            "gradwarden_export_frames",
            "Frames that exports read.",
            registry=self.registry,
        )
        self._source: Callable[[str | None], Snapshot] = lambda project: Snapshot()
        self._lock = threading.Lock()
        self._nonfinite: dict[tuple[str, str], int] = {}
        build = Gauge(
            "gradwarden_build_info",
            "1, with the version of the service as its label.",
            ["version"],
            registry=self.registry,
        )
        build.labels(package_version()).set(1)

    def add_nonfinite(self, project: str, run: str, count: int) -> None:
        """Count the non-finite gradient values of frames that were just stored."""
        with self._lock:
            while len(self._nonfinite) >= _MOST_COUNTED and (project, run) not in self._nonfinite:
                self._nonfinite.pop(next(iter(self._nonfinite)))
            self._nonfinite[project, run] = self.nonfinite(project, run) + count

    def nonfinite(self, project: str, run: str) -> int:
        """Non-finite gradient values of a run since this process started."""
        return self._nonfinite.get((project, run), 0)

    def watch(self, source: Callable[[str | None], Snapshot]) -> None:
        """Ask ``source`` at every scrape; its argument is that of :meth:`exposition`."""
        self._source = source

    def exposition(self, accept: str, project: str | None = None) -> tuple[bytes, str]:
        """The metrics in the format that the scraper accepts, and its media type.

        Args:
            accept: The scraper's Accept header.
            project: Whose runs have series of their own here; None means everybody's.
        """
        encode, media_type = choose_encoder(accept)
        return encode(self.scrape(project)), media_type

    def scrape(self, project: str | None = None) -> Scrape:
        """What one scrape reads, as metric families."""
        return Scrape(self.registry, self._source(project))


class Scrape:
    """Counters and a snapshot as one registry, which is anything that collects."""

    def __init__(self, registry: CollectorRegistry, now: Snapshot) -> None:
        self._registry = registry
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        yield from self._registry.collect()
        yield from _service(self._now)
        yield from _config(self._now)
        if self._now.rules is not None:
            yield from _rules(self._now.rules)
        if self._now.compaction is not None:
            yield from _compaction(self._now.compaction)
        yield from _per_run(self._now)


def _service(now: Snapshot) -> Iterator[Metric]:
    runs = GaugeMetricFamily("gradwarden_runs", "Runs known, by status.", labels=["status"])
    for status, count in sorted(now.runs.items()):
        runs.add_metric([status], count)
    alerts = GaugeMetricFamily(
        "gradwarden_alerts", "Alerts that are open.", labels=["severity", "state"]
    )
    for (severity, state), count in sorted(now.alerts.items()):
        alerts.add_metric([severity, state], count)
    yield from (runs, alerts)
    yield GaugeMetricFamily(
        "gradwarden_outbox_waiting",
        "Notifications that wait for delivery.",
        value=now.outbox_waiting,
    )
    yield GaugeMetricFamily(
        "gradwarden_outbox_oldest_unsent_seconds",
        "Age of the oldest notification not delivered yet; 0 when none waits.",
        value=now.outbox_oldest_seconds,
    )
    yield GaugeMetricFamily(
        "gradwarden_outbox_dead",
        "Notifications of the last day that were given up.",
        value=now.outbox_dead,
    )
    circuits = GaugeMetricFamily(
        "gradwarden_circuit_open",
        "1 while a receiver's host does not answer and its messages wait.",
        labels=["receiver"],
    )
    for name, broken in sorted(now.circuits.items()):
        circuits.add_metric([name], broken)
    yield circuits
    yield CounterMetricFamily(
        "gradwarden_herald_errors",
        "Groups of alerts that could not be told and are tried again.",
        value=now.herald_errors,
    )
    yield GaugeMetricFamily(
        "gradwarden_writer_queue_depth",
        "Writes that wait for the next commit.",
        value=now.writer_queue_depth,
    )
    yield GaugeMetricFamily(
        "gradwarden_streams",
        "Open connections over which browsers hear news.",
        value=now.streams,
    )
    yield GaugeMetricFamily(
        "gradwarden_evaluator_lag_seconds",
        "Age of the oldest stored frame that is not evaluated yet; 0 when none waits.",
        value=now.evaluator_lag_seconds,
    )
    yield CounterMetricFamily(
        "gradwarden_evaluator_errors",
        "Evaluations that raised; the run is tried again at the next tick.",
        value=now.evaluator_errors,
    )


def _config(now: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "gradwarden_config_last_reload_successful",
        "Whether the last reading of rules and receivers found no mistake.",
        value=now.reload_ok,
    )
    yield GaugeMetricFamily(
        "gradwarden_config_last_reload_success_timestamp_seconds",
        "When rules and receivers were last read without a mistake.",
        value=now.reload_ns / 1e9,
    )


def _rules(now: Ruling) -> Iterator[Metric]:
    done = {
        "evaluations": (now.evaluations, "Prometheus's rules that this process evaluated."),
        "failures": (now.failures, "Evaluations of such rules that failed."),
        "skipped": (now.skipped, "Evaluations of groups left out: the one before took too long."),
        "seconds": (now.seconds, "Time spent on evaluating groups of such rules."),
    }
    for name, (value, text) in done.items():
        yield CounterMetricFamily(f"gradwarden_rules_{name}", text, value=value)


def _compaction(now: Compacting) -> Iterator[Metric]:
    """What this process did; what waits is the whole database's."""
    done = {
        "segments": (now.segments, "Segments that frames were compacted into."),
        "frames": (now.frames, "Frames that were compacted."),
        "failures": (now.failures, "Compactions that failed; the log is kept and read."),
    }
    for name, (value, text) in done.items():
        yield CounterMetricFamily(f"gradwarden_compaction_{name}", text, value=value)
    yield GaugeMetricFamily(
        "gradwarden_compaction_backlog_frames",
        "Frames in the log beyond one segment's worth of each stream.",
        value=now.backlog_frames,
    )
    yield GaugeMetricFamily(
        "gradwarden_compaction_backlog_bytes",
        "The size of these frames' matrices, inflated.",
        value=now.backlog_bytes,
    )


def _per_run(now: Snapshot) -> Iterator[Metric]:
    labels = ["project", "run"]
    norm = GaugeMetricFamily(
        "gradwarden_run_grad_norm", "Latest global gradient norm of a live run.", labels=labels
    )
    bad = CounterMetricFamily(
        "gradwarden_run_nonfinite",
        "Non-finite gradient values that a live run reported.",
        labels=labels,
    )
    step = GaugeMetricFamily(
        "gradwarden_run_last_step", "Latest step that a live run reported.", labels=labels
    )
    for run in now.live[:MOST_RUNS]:
        names = [run.project, run.run]
        if run.grad_norm is not None:
            norm.add_metric(names, run.grad_norm)
        bad.add_metric(names, run.nonfinite)
        if run.last_step is not None:
            step.add_metric(names, run.last_step)
    yield from (norm, bad, step)
    yield GaugeMetricFamily(
        "gradwarden_metrics_truncated_runs",
        f"Live runs left out above, beyond the {MOST_RUNS} newest.",
        value=max(0, now.live_count - MOST_RUNS),
    )


def start_tracing(endpoint: str) -> TracerProvider:
    """Send spans to an OTLP/HTTP endpoint from now on; shut the provider down at the end."""
    resource = Resource.create({"service.name": "gradwarden", "service.version": package_version()})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _tracing.set()
    return provider


def span(name: str, **attributes: str | int | float) -> AbstractContextManager[trace.Span]:
    """A span around a piece of work; costs next to nothing while tracing is off."""
    if not _tracing.is_set():
        return nullcontext(trace.INVALID_SPAN)
    return trace.get_tracer("gradwarden").start_as_current_span(name, attributes=attributes)
