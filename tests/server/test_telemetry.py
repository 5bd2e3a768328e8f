"""The service's own numbers, traces and log lines, read by the programs that will read them."""

from __future__ import annotations

import io
import json
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from gradwarden_server import logs
from gradwarden_server.telemetry import MOST_RUNS, RunGauges, Snapshot, Telemetry
from tests.needs import needs
from tests.server.pager import LocalReceiver
from tests.server.traffic import batch, begin, frame, problem, send, start_body
from tests.service import Service


def metrics(service: Service) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample on /metrics."""
    text = service.call("GET", "/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_promtool_finds_nothing_to_complain_about(service: Service) -> None:
    promtool = needs("promtool")
    begin(service, "linted")
    send(service, batch("linted", [frame(1, bad_row=1), frame(2)]))
    text = service.call("GET", "/metrics").text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_numbers_move_with_what_happens(service: Service) -> None:
    begin(service, "counted")
    before = metrics(service)
    sent = batch("counted", [frame(1), frame(2, bad_row=0)])
    send(service, sent)
    send(service, sent)
    problem(send(service, b"junk"), 400, "malformed")
    after = metrics(service)

    def moved(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    run = {"project": "default", "run": "counted"}
    assert moved("gradwarden_ingest_frames_total") == 2
    assert moved("gradwarden_ingest_requests_total", code="200") == 2
    assert moved("gradwarden_ingest_requests_total", code="400") == 1
    assert moved("gradwarden_ingest_commit_seconds_count") == 2
    assert moved("gradwarden_run_nonfinite_total", **run) == 16
    assert after["gradwarden_run_last_step", tuple(run.items())] == 1
    assert after["gradwarden_runs", (("status", "running"),)] >= 1
    assert after["gradwarden_metrics_truncated_runs", ()] == 0


def test_tries_to_tell_a_receiver_are_counted(tmp_path: Path) -> None:
    receiver = LocalReceiver()
    service = Service(
        tmp_path,
        receivers=f"receivers:\n  - name: hook\n    type: webhook\n    url: {receiver.url}\n"
        "    allow_private: true\n",
    )
    try:
        outcome = service.call("POST", "/v1/receivers/hook/test").json()
        assert outcome["ok"], outcome
        assert service.get("/v1/receivers")["items"] == [
            {
                "name": "hook",
                "type": "webhook",
                "severities": ["page", "ticket"],
                "links": False,
            }
        ]
        told = ("gradwarden_deliveries_total", (("receiver", "hook"), ("result", "ok")))
        assert metrics(service)[told] == len(receiver.requests) == 2, "firing, then resolved"
        problem(service.call("POST", "/v1/receivers/none/test"), 404, "not-found")
    finally:
        service.close()
        receiver.close()


def test_runs_on_the_metrics_page_are_bounded(service: Service) -> None:
    mine = {"Gradwarden-Project": "many"}
    for i in range(MOST_RUNS + 5):
        body = start_body(f"m{i}")
        assert service.call("POST", "/v1/start", json=body, headers=mine).status_code == 200
    found = metrics(service)
    named = [key for key in found if key[0] == "gradwarden_run_nonfinite_total"]
    assert len(named) == MOST_RUNS
    assert found["gradwarden_metrics_truncated_runs", ()] >= 5


def test_a_label_of_a_hostile_run_is_escaped() -> None:
    numbers = Telemetry()
    hostile = RunGauges("p", 'a"\n} evil 1\n', 1, float("nan"), 0)
    numbers.watch(lambda project: Snapshot(live=(hostile,), live_count=1))
    text = numbers.exposition("")[0].decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert "evil" not in families
    (sample,) = families["gradwarden_run_grad_norm"].samples
    assert sample.labels["run"] == 'a"\n} evil 1\n'


@contextmanager
def collector() -> Iterator[tuple[str, queue.Queue[ExportTraceServiceRequest]]]:
    """A real OTLP/HTTP endpoint on loopback."""
    received: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                raise AssertionError("not asked for")
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()
            message = ExportTraceServiceRequest()
            message.ParseFromString(body)
            received.put(message)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        server.server_close()


def test_spans_of_requests_commits_and_evaluations_reach_an_otlp_endpoint(tmp_path: Path) -> None:
    with collector() as (endpoint, received):
        service = Service(tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        try:
            begin(service, "traced")
            assert send(service, batch("traced", [frame(1)])).status_code == 200
            service.get("/-/healthy")
            deadline = time.monotonic() + 20
            while service.get("/v1/runs")["items"][0]["loss"] is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert service.stop() == 0, "the last spans leave at the end"
        finally:
            service.close()
        spans: dict[str, Span] = {}
        names = set()
        while not received.empty():
            for resource in received.get().resource_spans:
                names |= {
                    a.value.string_value
                    for a in resource.resource.attributes
                    if a.key == "service.name"
                }
                for scope in resource.scope_spans:
                    spans |= {span.name: span for span in scope.spans}
    assert names == {"gradwarden"}
    commit, request = spans["commit"], spans["POST /v1/ingest"]
    assert commit.parent_span_id == request.span_id
    assert {a.key for a in commit.attributes} >= {"run", "frames"}
    assert spans["evaluate"].trace_id != request.trace_id
    assert not any("healthy" in name for name in spans)


def test_without_an_endpoint_nothing_is_traced(service: Service) -> None:
    assert "opentelemetry" not in service.log_text().lower()


def test_log_lines_are_json_with_the_request_they_belong_to(service: Service) -> None:
    begin(service, "logged")
    refused = problem(send(service, batch("logged", [frame(1)], rank=7)), 409, "unknown-stream")
    deadline = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in service.log_text().splitlines()]
        mine = [line for line in lines if line.get("request_id") == refused["request_id"]]
        if mine:
            break
        assert time.monotonic() < deadline
    assert mine[0]["message"] == "POST /v1/ingest"
    assert (mine[0]["status"], mine[0]["project"], mine[0]["run"]) == (409, "default", "logged")
    assert mine[0]["level"] == "info"


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_log_line_cannot_be_forged(style: str) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        logs.configure(style, stream)  # type: ignore[arg-type]
        with logs.bound(request_id="r1"):
            logs.bind(run="x\n12:00:00 ERROR forged")
            logging.getLogger("gradwarden_server").info("hello\nERROR forged")
    finally:
        root.handlers[:], root.level = kept, level
    assert stream.getvalue().count("\n") == 1
