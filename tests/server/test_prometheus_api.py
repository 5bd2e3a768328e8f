"""The API of Prometheus as its own tools speak it: promtool, vmalert, and what Grafana asks."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port
from tests.needs import needs
from tests.server.pager import LocalReceiver, eventually, local_receiver
from tests.server.traffic import LAYOUT, batch, begin, frame, problem, send
from tests.service import Service

STEPS = 120
NS = 1_000_000_000
LAYERS = [parameter.name for parameter in LAYOUT.parameters]


@pytest.fixture(scope="module")
def start_s() -> int:
    return int(time.time()) - 2 * STEPS


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, start_s: int) -> Iterator[Service]:
    """One run with a step a second: its loss is its step, layer norms one over it."""
    running = Service(tmp_path_factory.mktemp("prometheus"))
    begin(running, "r1", team="vision", training_job="digits", started_ns=start_s * NS)
    frames = [
        frame(n, time_ns=(start_s + n) * NS, scalars={"loss": float(n)}) for n in range(1, STEPS)
    ]
    answer = send(running, batch("r1", frames))
    assert answer.status_code == 200, answer.text
    begin(running, "poisoned")
    send(running, batch("poisoned", [frame(1), frame(2, bad_row=2)]))
    yield running
    running.close()


def ask(service: Service, path: str, **params: Any) -> Any:
    answer = service.call("GET", f"/api/v1/{path}", params=params)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["status"] == "success"
    return told["data"]


def test_an_instant_query_reads_layers_and_scalars(service: Service, start_s: int) -> None:
    at = start_s + 50
    layers = ask(service, "query", query='gradwarden_layer{run="r1",quantity="l2"}', time=at)
    assert layers["resultType"] == "vector"
    assert {one["metric"]["layer"] for one in layers["result"]} == set(LAYERS)
    assert {one["value"][1] for one in layers["result"]} == {"0.019999999552965164"}
    [loss] = ask(service, "query", query='gradwarden_scalar{run="r1",quantity="loss"}', time=at)[
        "result"
    ]
    assert loss["value"] == [at, "50"]
    assert loss["metric"] == {
        "__name__": "gradwarden_scalar",
        "project": "default",
        "run": "r1",
        "run_name": "name of r1",
        "training_job": "digits",
        "owner": "mei",
        "team": "vision",
        "environment": "prod",
        "quantity": "loss",
        "rank": "0",
    }


def test_functions_run_over_layers(service: Service, start_s: int) -> None:
    query = 'max by (run) (sum_over_time(gradwarden_scalar{quantity="loss",run="r1"}[10s]))'
    [one] = ask(service, "query", query=query, time=start_s + 20)["result"]
    assert one["metric"] == {"run": "r1"}
    assert float(one["value"][1]) == sum(range(11, 21))
    query = 'count(gradwarden_layer{run="r1",quantity="nan"} == 0)'
    [count] = ask(service, "query", query=query, time=start_s + 20)["result"]
    assert count["value"][1] == str(len(LAYERS))


def test_a_range_query_has_its_steps(service: Service, start_s: int) -> None:
    told = ask(
        service,
        "query_range",
        query='gradwarden_scalar{run="r1",quantity="loss"}',
        start=start_s + 10,
        end=start_s + 40,
        step="10s",
    )
    assert told["resultType"] == "matrix"
    assert told["result"][0]["values"] == [[start_s + n, str(n)] for n in (10, 20, 30, 40)]


def test_alerts_are_series(service: Service) -> None:
    query = 'ALERTS{run="poisoned",alertname="NonFiniteGradient",alertstate="firing"}'
    [one] = eventually(lambda: ask(service, "query", query=query)["result"])
    assert one["value"][1] == "1"
    assert one["metric"]["severity"] == "page"
    derived = eventually(
        lambda: ask(service, "query", query='gradwarden_loss{run="r1"}', time=time.time() - 130)[
            "result"
        ]
    )
    assert derived[0]["metric"]["training_job"] == "digits"


def test_a_form_and_a_url_are_read_alike(service: Service, start_s: int) -> None:
    query = {"query": "vector(1) + 1", "time": str(start_s)}
    as_form = service.call("POST", "/api/v1/query", data=query).json()
    in_url = service.call(
        "POST", "/api/v1/query", params=query, headers={"Content-Type": "application/json"}
    ).json()
    assert as_form == in_url == service.call("GET", "/api/v1/query", params=query).json()
    assert as_form["data"]["result"][0]["value"] == [start_s, "2"]
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start_s))
    assert ask(service, "query", query="time()", time=at)["result"] == [start_s, str(start_s)]


@pytest.mark.parametrize(
    ("path", "params", "status", "kind", "words"),
    [
        ("query", {"query": "sum("}, 400, "bad_data", "parse error"),
        ("query", {}, 400, "bad_data", '"query"'),
        ("query", {"query": "1", "time": "soon"}, 400, "bad_data", '"time"'),
        ("query", {"query": '{run=~".*"}'}, 400, "bad_data", "non-empty matcher"),
        ("query", {"query": 'label_replace(vector(1), "a", "", "b", "(")'}, 422, "execution", "("),
        ("query_range", {"query": "1", "start": 1, "end": 2}, 400, "bad_data", '"step"'),
        (
            "query_range",
            {"query": "1", "start": 0, "end": 100_000, "step": 1},
            422,
            "execution",
            "11,000 points",
        ),
        ("series", {}, 400, "bad_data", "match[]"),
    ],
)
def test_what_cannot_be_answered_is_told(
    service: Service, path: str, params: dict[str, Any], status: int, kind: str, words: str
) -> None:
    answer = service.call("GET", f"/api/v1/{path}", params=params)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert (told["status"], told["errorType"]) == ("error", kind)
    assert words in told["error"]


def test_names_labels_and_values_for_an_editor(service: Service, start_s: int) -> None:
    names = ask(service, "label/__name__/values")
    assert {"gradwarden_layer", "gradwarden_scalar", "ALERTS"} <= set(names)
    layers = ask(service, "label/layer/values", **{"match[]": 'gradwarden_layer{run="r1"}'})
    assert layers == sorted(LAYERS)
    assert {"layer", "quantity", "run", "team"} <= set(ask(service, "labels"))
    runs = {s["run"] for s in ask(service, "series", **{"match[]": "gradwarden_run_info"})}
    assert runs == {"r1", "poisoned"}
    assert ask(service, "metadata", metric="gradwarden_layer")["gradwarden_layer"]
    assert ask(service, "status/buildinfo")["version"]
    assert ask(service, "format_query", query="sum(a)by(b)").startswith("sum by (b)")


def test_a_project_sees_its_own(service: Service) -> None:
    headers = {"Gradwarden-Project": "elsewhere"}
    query = {"query": '{__name__=~"gradwarden_.+"}'}
    told = service.call("GET", "/api/v1/query", params=query, headers=headers).json()
    assert told["data"]["result"] == []


def promtool(service: Service, kind: str, *words: str) -> str:
    options = [word for word in words if word.startswith("--")]
    asked = [word for word in words if not word.startswith("--")]
    command = [needs("promtool"), "query", kind, *options, service.url, *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_promtool_queries(service: Service, start_s: int) -> None:
    loss = 'gradwarden_scalar{run="r1",quantity="loss"}'
    at, later = start_s + 30, start_s + 50
    assert f"=> 30 @[{at}]" in promtool(service, "instant", f"--time={at}", loss)
    span = (f"--start={at}", f"--end={later}", "--step=10s")
    told = promtool(service, "range", *span, loss)
    assert f"30 @[{at}]\n40 @[{at + 10}]\n50 @[{later}]" in told
    found = promtool(service, "series", f"--match={loss}", f"--start={at}", f"--end={later}")
    assert 'training_job="digits"' in found
    assert "blocks.0.weight" in promtool(service, "labels", "layer")


def test_a_prometheus_federates_us(service: Service, tmp_path: Path) -> None:
    text = service.call("GET", "/federate", params={"match[]": 'ALERTS{run="poisoned"}'})
    assert text.status_code == 200, text.text
    problem(service.call("GET", "/federate", params={"match[]": "1 + 1"}), 400, "malformed")
    lint = subprocess.run(
        [needs("promtool"), "check", "metrics"],
        input=service.call("GET", "/federate", params={"match[]": "gradwarden_run_info"}).text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert lint.returncode in (0, 3), lint.stderr  # 3: it misses help texts, which are not ours
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: gradwarden\n"
        "  honor_labels: true\n  metrics_path: /federate\n"
        "  params: {'match[]': ['ALERTS', 'gradwarden_run_info']}\n"
        f"  static_configs: [{{targets: ['{service.url.removeprefix('http://')}']}}]\n"
    )
    command = [
        needs("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        query = {"query": 'ALERTS{run="poisoned",severity="page"}'}

        def scraped() -> Any:
            try:
                told = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params=query)
            except httpx.TransportError:
                return None
            # Until its storage is open it answers in plain text.
            return told.json()["data"]["result"] if told.status_code == 200 else None

        found = eventually(scraped)
        assert found[0]["metric"]["run"] == "poisoned"
        assert found[0]["metric"]["project"] == "default"
    finally:
        process.kill()
        process.wait()


def test_vmalert_fires_over_our_api(service: Service, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "groups:\n- name: ours\n  interval: 1s\n  rules:\n"
        "  - alert: SomethingPages\n"
        '    expr: count(ALERTS{alertstate="firing",severity="page"}) > 0\n'
    )
    with local_receiver() as receiver:
        _vmalert(service, rules, receiver)


def _vmalert(service: Service, rules: Path, receiver: LocalReceiver) -> None:
    command = [
        needs("vmalert"),
        f"-rule={rules}",
        f"-datasource.url={service.url}",
        f"-notifier.url=http://127.0.0.1:{receiver.port}",
        "-httpListenAddr=127.0.0.1:0",
        "-evaluationInterval=1s",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        [first, *_] = receiver.wait(1)
        [alert] = json.loads(first.body)
        assert alert["labels"]["alertname"] == "SomethingPages"
    finally:
        process.kill()
        process.communicate()
