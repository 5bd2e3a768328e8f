"""Who watches the watchman: when the service dies, the dead man's switch goes off."""

from __future__ import annotations

import json
from pathlib import Path

from tests.server.pager import LocalReceiver
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
