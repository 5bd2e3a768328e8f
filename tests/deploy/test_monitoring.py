"""Prometheus, Alertmanager and Grafana: the shipped files, checked and run by the real programs."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwarden_server.alerting.ruler import Tally
from gradwarden_server.telemetry import RunGauges, Snapshot, Telemetry
from tests.deploy import stack
from tests.deploy.stack import ALERTMANAGER, ROOT, RULES
from tests.needs import needs

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
DASHBOARDS = sorted((ROOT / "dashboards" / "grafana").glob("*.json"))
SCRAPED = [path for path in DASHBOARDS if '"uid": "gradwarden"' not in path.read_text()]
"""Those over /metrics; the others ask the service itself."""
CASES = Path(__file__).with_name("self.rules.test.yml")
TOKEN = "gw_test"
METRIC = re.compile(r"\bgradwarden_[a-z_]+")


def lively() -> tuple[Telemetry, Callable[[], None]]:
    """The service's own telemetry with every metric present, and a call that moves it on."""
    telemetry = Telemetry()
    now = Snapshot(
        rules=Tally(),
        runs={"running": 2, "failed": 1},
        alerts={("page", "firing"): 1, ("ticket", "pending"): 1},
        live=(RunGauges("default", "r1", 0, 1.5, 0.0),),
        outbox_waiting=1,
        outbox_oldest_seconds=2.0,
        writer_queue_depth=1,
        evaluator_lag_seconds=0.1,
    )
    telemetry.watch(lambda project: now)

    def move() -> None:
        nonlocal now
        (run,) = now.live
        now = replace(now, live=(replace(run, last_step=(run.last_step or 0) + 10),))
        telemetry.ingest_frames.inc(10)
        telemetry.ingest_requests.labels("200").inc()
        telemetry.ingest_commit_seconds.observe(0.004)
        telemetry.deliveries.labels("alertmanager", "ok").inc()

    move()
    return telemetry, move


def metric_names() -> set[str]:
    """Every sample name that the service's /metrics can carry."""
    telemetry, _ = lively()
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + suffix
        for family in telemetry.scrape().collect()
        for suffix in suffixes.get(family.type, ("",))
    }


def dashboard(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(path.read_text())
    return parsed


def queries(path: Path) -> list[tuple[str, str]]:
    """Title and expression of every query of a dashboard."""
    return [
        (panel["title"], target["expr"])
        for panel in dashboard(path)["panels"]
        for target in panel["targets"]
    ]


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    config = stack.laid_out(tmp_path, "service:8321", "alertmanager:9093", TOKEN)
    checked = [needs("promtool"), "check", "config", str(config)]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_about_gradwarden_itself_pass_the_linter() -> None:
    checked = [needs("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(RULES)]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_about_gradwarden_itself_fire_when_they_should(tmp_path: Path) -> None:
    for path in (RULES, CASES):
        shutil.copy(path, tmp_path)
    tested = [needs("promtool"), "test", "rules", str(tmp_path / CASES.name)]
    done = subprocess.run(tested, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_name_metrics_that_exist() -> None:
    used = {
        name
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        for name in METRIC.findall(rule["expr"])
    }
    assert used <= metric_names()


def test_alertmanager_accepts_its_configuration() -> None:
    checked = [needs("amtool"), "check-config", str(ALERTMANAGER)]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=NonFiniteGradient", "severity=page"), "pager"),
        (("alertname=VanishingGradient", "severity=ticket"), "tickets"),
        (("alertname=NonFiniteGradient", "severity=note"), "nobody"),
        (("alertname=Watchdog", "severity=none"), "deadman"),
        (("alertname=GradwardenDown", "severity=page"), "pager"),
    ],
)
def test_alertmanager_routes_by_severity(labels: tuple[str, ...], receiver: str) -> None:
    command = [needs("amtool"), "config", "routes", "test", f"--config.file={ALERTMANAGER}"]
    done = subprocess.run([*command, *labels], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == receiver, done.stderr


@pytest.mark.parametrize("path", SCRAPED, ids=lambda path: path.stem)
def test_panels_name_metrics_that_exist(path: Path) -> None:
    names = metric_names()
    for title, expression in queries(path):
        used = set(METRIC.findall(expression))
        assert used, f"{title}: no metric of ours"
        assert used <= names, f"{title}: {used - names} are not exposed"


def test_all_of_telemetry_is_on_a_dashboard_or_left_off_knowingly() -> None:
    left_off = {"gradwarden_build_info", "gradwarden_metrics_truncated_runs", "gradwarden_streams"}
    left_off |= {"gradwarden_exports_total", "gradwarden_export_frames_total"}
    # Alerts of their own, by gradwarden-self.rules.yml; retries beside deliveries say little.
    left_off |= {"gradwarden_outbox_dead", "gradwarden_circuit_open"}
    left_off |= {"gradwarden_herald_errors_total", "gradwarden_delivery_retries_total"}
    left_off |= {f"gradwarden_ingest_commit_seconds_{part}" for part in ("sum", "count")}
    shown = {
        name
        for path in SCRAPED
        for _, expression in queries(path)
        for name in METRIC.findall(expression)
    }
    assert metric_names() - shown == left_off


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_provisioned_and_well_formed(path: Path) -> None:
    board = dashboard(path)
    assert board["uid"] == path.stem
    provided = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    sources = {source["uid"] for source in provided["datasources"]}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["description"], f"{panel['title']} does not say what it shows"
        assert panel["datasource"]["uid"] in sources


def test_grafana_finds_the_dashboards_where_compose_puts_them() -> None:
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "gradwarden.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    grafana = compose["services"]["grafana"]
    assert f"./dashboards/grafana:{folder}:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert home.name in {path.name for path in DASHBOARDS}


class Exposition(BaseHTTPRequestHandler):
    """/metrics of the real telemetry, behind the token, moved on at every scrape."""

    telemetry: Telemetry
    move: Callable[[], None]

    def do_GET(self) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.send_error(401)
            return
        type(self).move()
        body, media_type = self.telemetry.exposition(self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def metrics() -> Iterator[str]:
    """Address of a server of the telemetry."""
    telemetry, move = lively()
    handler = type("Bound", (Exposition,), {"telemetry": telemetry, "move": staticmethod(move)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_panel_has_data_and_the_watchdog_arrives(metrics: str, tmp_path: Path) -> None:
    with stack.running(tmp_path, metrics, TOKEN) as (prometheus, alertmanager):
        panels_have_data(prometheus)
        stack.until("the Watchdog in Alertmanager", lambda: watchdog_is_routed(alertmanager))


def panels_have_data(prometheus: str) -> None:
    """Asks Prometheus every query of every dashboard."""

    def scraped() -> bool:
        return stack.ask(prometheus, 'sum_over_time(up{job="gradwarden"}[1m])') >= [3.0]

    stack.until("three scrapes", scraped)
    for path in SCRAPED:
        for title, expression in queries(path):
            asked = expression.replace("$__rate_interval", "10s")
            asked = re.sub(r'=~"\$\w+"', '=~".*"', asked)
            values = stack.ask(prometheus, asked)
            assert values, f"{path.name}, {title}: {asked} has no data"
            assert not any(map(math.isnan, values)), f"{path.name}, {title}: {values}"


def watchdog_is_routed(alertmanager: str) -> bool:
    """Whether the dead man's switch hears the Watchdog, and nothing else is wrong."""
    alerts = stack.get(f"{alertmanager}/api/v2/alerts")
    found = {alert["labels"]["alertname"]: alert["receivers"] for alert in alerts}
    assert "GradwardenDown" not in found
    return found.get("Watchdog") == [{"name": "deadman"}]
