"""Who watches the watchman: when the service dies, the dead man's switch goes off."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import free_port
from tests.needs import needs
from tests.server.pager import LocalReceiver, eventually
from tests.server.test_notify_alertmanager import Alertmanager
from tests.service import Service

INTERVAL_SECONDS = 1


class Switch(LocalReceiver):
    """A dead-man endpoint: it alarms when it hears nothing for ten intervals."""

    def alarms_after(self, heard: int) -> bool:
        """Whether, after so many beats, none came for ten intervals."""
        with self._changed:
            return not self._changed.wait_for(
                lambda: len(self.requests) > heard, 10 * INTERVAL_SECONDS
            )


def test_a_killed_service_sets_off_the_dead_mans_switch(tmp_path: Path) -> None:
    switch = Switch()
    service = Service(
        tmp_path,
        receivers=(
            f"receivers:\n  - name: deadman\n    type: webhook\n    url: {switch.url}\n"
            f"    allow_private: true\n    watchdog_seconds: {INTERVAL_SECONDS}\n"
        ),
    )
    try:
        beats = switch.wait(3)
        bodies = [json.loads(beat.body) for beat in beats]
        assert all(b["alerts"][0]["labels"]["alertname"] == "Watchdog" for b in bodies)
        assert all(b["status"] == "firing" for b in bodies)
        assert not switch.alarms_after(len(switch.requests))
        service.kill()
        assert switch.alarms_after(len(switch.requests))
        service.start()
        assert not switch.alarms_after(len(switch.requests))
    finally:
        service.stop()
        switch.close()


RULES = Path(__file__).parents[2] / "alert_rules" / "prometheus" / "gradwarden-self.rules.yml"
PROMETHEUS = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ['{rules}']
alerting:
  alertmanagers:
    - static_configs: [{{targets: ['{alertmanager}']}}]
scrape_configs:
  - job_name: gradwarden
    static_configs: [{{targets: ['{service}']}}]
"""


@contextmanager
def prometheus(folder: Path, config: str) -> Iterator[None]:
    """A real Prometheus, for as long as it is looked at."""
    (folder / "prometheus.yml").write_text(config)
    command = [
        needs("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{free_port()}",
        "--rules.alert.resend-delay=1s",
    ]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_prometheus_and_alertmanager_page_for_a_killed_service(tmp_path: Path) -> None:
    """The shipped rules, with a shorter patience, by the whole line that watches the watchman."""
    text = RULES.read_text()
    assert "for: 1m" in text
    hurried = tmp_path / "self.rules.yml"
    hurried.write_text(text.replace("for: 1m", "for: 2s"))
    behind = LocalReceiver()
    peer = Alertmanager(tmp_path, behind)
    service = Service(tmp_path / "service")

    def told(name: str, status: str) -> int:
        return sum(
            (alert["labels"]["alertname"], alert["status"]) == (name, status)
            for request in list(behind.requests)
            for alert in json.loads(request.body)["alerts"]
        )

    def down() -> bool:
        return told("GradwardenDown", "firing") > told("GradwardenDown", "resolved")

    try:
        peer.start()
        config = PROMETHEUS.format(
            rules=hurried,
            alertmanager=peer.url.removeprefix("http://"),
            service=service.url.removeprefix("http://"),
        )
        with prometheus(tmp_path, config):
            eventually(lambda: told("Watchdog", "firing"))
            eventually(lambda: not down())  # it may look before it scraped for the first time
            service.kill()
            eventually(down)
            service.start()
            eventually(lambda: not down())
    finally:
        service.close()
        peer.stop()
        behind.close()
