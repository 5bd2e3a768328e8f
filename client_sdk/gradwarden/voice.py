"""What the SDK says by itself, on stderr and to a URL: tripwires, coverage, facts at exit."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gradwarden import aftermath, coverage, wire
from gradwarden.errors import Faults, say
from gradwarden.identity import Identity
from gradwarden.outbox import Losses
from gradwarden.settings import Settings
from gradwarden.spool import Spool
from gradwarden.tripwires import Finding, Tripwires, table


class Companion(Protocol):
    """Somebody else's tracker that is told what we hear."""

    def hear(self, frame: wire.Frame, layout: wire.Layout | None) -> None:
        """Take one frame, on the pump's thread; must not wait."""

    def ended(self, status: str, numbers: Mapping[str, float], text: str, deadline: float) -> None:
        """The run is over; wait for the tracker until the monotonic ``deadline`` at most."""


class Voice:
    """Hears every frame on the pump's thread and speaks when there is something to say."""

    def __init__(
        self,
        settings: Settings,
        faults: Faults,
        identity: Callable[[], Identity | None],
        reached: Callable[[], bool],
    ) -> None:
        self._settings, self._faults, self._identity = settings, faults, identity
        self._reached = reached
        self.hooks: tuple[str, ...] = ()
        """What was found to listen to when this run's watch began."""
        self.companions: list[Companion] = []
        self._tripwires = Tripwires()
        self._scalars: set[str] = set()
        self._costs: deque[float] = deque(maxlen=256)
        self._posts: list[threading.Thread] = []
        self._status = ""
        self._saved = False

    def cost(self) -> float:
        """Median seconds that a step spent in our hooks."""
        costs = sorted(self._costs)
        return costs[len(costs) // 2] if costs else 0.0

    def hear(self, frame: wire.Frame, layout: wire.Layout | None) -> None:
        """Take one frame as it is sealed."""
        self._scalars |= set(frame.scalars)
        self._saved = self._saved or any(e["kind"] == "checkpoint" for e in frame.events)
        if "overhead_seconds" in frame.scalars:
            self._costs.append(frame.scalars["overhead_seconds"])
        before = self._tripwires.steps
        for finding in self._tripwires.advance(frame, layout):
            self._speak(finding)
        if before < coverage.AT_STEP <= self._tripwires.steps and layout is not None:
            self._cover(layout)
        for companion in self.companions:
            self._faults.quiet("companion", companion.hear, frame, layout)

    def part(self, status: str, losses: Losses, deadline: float) -> None:
        """Tell the companions how the run ended and what was found."""
        self._status = status
        found = self._tripwires
        numbers = {"steps": found.steps, "skipped": found.skipped, "frames_lost": losses.total}
        text = "\n".join([f.text for f in found.findings] + table(found, losses.total))
        for companion in self.companions:
            self._faults.quiet("companion", companion.ended, status, numbers, text, deadline)

    def wait(self, deadline: float) -> None:
        """Let posts under way finish, until the monotonic deadline."""
        for post in self._posts:
            post.join(max(0.0, deadline - time.monotonic()))

    def report(self, losses: Losses, spool: Spool) -> None:
        """The facts at exit; silent after an uneventful run that was delivered."""
        for row in table(self._tripwires, losses.total):
            say(row)
        for reason, count in losses.counts().items():
            say(f"dropped {count} frames: {reason}")
        for feature, count in self._faults.counts.items():
            say(f"missed {count} times: {feature}")
        if spool.held:
            say(
                f"{spool.held} frames are spooled; deliver them with: "
                f"gradwarden sync {spool.directory}"
            )

    def diagnose(self, spool: Spool, deadline: float) -> None:
        """What ailed a run without a service, once its spool is whole; bounded in time.

        Silent behind a run too short to be judged in which nothing was noticed.
        """
        identity, settings = self._identity(), self._settings
        told = bool(self._tripwires.findings) or self._tripwires.steps >= coverage.AT_STEP
        if settings.url is None and settings.diagnose and spool.held and identity and told:
            left = deadline - time.monotonic()
            self._faults.quiet(
                "diagnosis", aftermath.tell, spool.directory, identity, self._status, left
            )

    def _cover(self, layout: wire.Layout) -> None:
        identity = self._identity()
        if identity is not None and identity.rank != 0:
            return
        facts = coverage.Facts(
            scalars=self._scalars,
            matrices=len({p.layer for p in layout.parameters if p.kind == "matrix"}),
            world=identity.world if identity is not None else 1,
            server=self._reached() if self._settings.url is not None else None,
            experts=any(p.kind == "expert" for p in layout.parameters),
            weights=self._settings.preset != "light",
            saved=self._saved,
            hooks=self.hooks,
            seconds=self.cost(),
        )
        say(coverage.line(facts))

    def _speak(self, finding: Finding) -> None:
        say(finding.text)
        if self._settings.notify_url is None:
            return
        identity = self._identity()
        body = {
            "run": identity.run if identity else None,
            "rank": identity.rank if identity else None,
            "kind": finding.kind,
            "step": finding.step,
            "layers": list(finding.layers[:50]),
            "text": finding.text,
        }
        post = threading.Thread(
            target=self._faults.quiet,
            args=("notify", _post, self._settings.notify_url, body),
            name="gradwarden-notify",
            daemon=True,
        )
        self._posts = [p for p in self._posts if p.is_alive()] + [post]
        post.start()


def _post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=5.0) as answer:
        answer.read(1024)
