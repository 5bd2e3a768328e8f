"""A trainer that is none: it tells a service of a synthetic run, by the protocol of trainers."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time

from gradwarden import wire
from gradwarden.transport import JSON, Answer, HttpTransport, Unreachable
from gradwarden_server.cli.drill_faults import LAYOUT, ROWS, Fault
from gradwarden_server.cli.faults import REFUSED, UNREACHABLE, USAGE, CommandError
from gradwarden_server.model import DRILL

STEP_NS = 20_000_000
_SECONDS = 30.0
_TOGETHER = 50
_ATTEMPT = "drill"


class DrillRun:
    """One synthetic run, marked as a drill, with its ranks."""

    def __init__(self, url: str, token: str | None, project: str, fault: Fault) -> None:
        self.fault = fault
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.run = f"drill-{fault.name}-{moment}-{secrets.token_hex(2)}"
        self._nonce = secrets.token_hex(8)
        self._transport = HttpTransport(url, token, project)
        self._next = [0] * fault.ranks
        self._over = False
        self.begun = False

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def begin(self) -> None:
        """Announce all ranks, and tell of the healthy steps."""
        fault = self.fault
        self._began_ns = time.time_ns() - (fault.before + fault.sick) * STEP_NS
        for rank in range(fault.ranks):
            self._post(
                "/v1/start",
                {
                    **self._who(rank),
                    "host": socket.gethostname()[:256],
                    "pid": os.getpid(),
                    "world_size": fault.ranks,
                    "started_ns": self._began_ns,
                    "name": f"drill: {fault.about}",
                    "environment": DRILL,
                    "page": True,
                    "config": {"fault": fault.name},
                },
            )
            self.begun = True
        self._post("/v1/layouts", LAYOUT.to_json())
        self.beat()
        self._send(fault.before)

    def fall_ill(self) -> None:
        """Tell of the first of the sick steps, or of the failure."""
        fault = self.fault
        if fault.fails:
            self._finish("failed", error="RuntimeError: a drill")
        elif fault.sick:
            self._send(min(fault.before + fault.sick, fault.before + _TOGETHER))

    def go_on(self) -> None:
        """Tell of the rest of the sick steps."""
        self._send(self.fault.before + self.fault.sick)

    def beat(self, but_last: bool = False) -> None:
        """Heartbeats of all ranks, or of all but the last."""
        for rank in range(self.fault.ranks - but_last):
            step = max(0, self._next[rank] - 1)
            told = {**self._who(rank), "sent_ns": time.time_ns(), "step": step, "phase": "train"}
            self._post("/v1/heartbeat", told)

    def end(self) -> None:
        """Cancel the run, so that its alerts resolve; twice is fine."""
        if not self._over:
            self._finish("cancelled")

    def _finish(self, status: str, **more: str) -> None:
        self._over = status == "cancelled"
        event = {"kind": "finish", "status": status, **more}
        for rank in range(self.fault.ranks):
            step = self._next[rank]
            frame = wire.Frame(step + 1, step, time.time_ns(), events=(event,))
            self._ingest(rank, (frame,))
            self._next[rank] += 1

    def _send(self, until: int) -> None:
        for first in range(min(self._next), until, _TOGETHER):
            last = min(until, first + _TOGETHER)
            for rank in range(self.fault.ranks):
                steps = range(first, last)
                times = [self._began_ns + (step + 1) * STEP_NS for step in steps]
                frames = [self.fault.frame(rank, s, t) for s, t in zip(steps, times, strict=True)]
                self._ingest(rank, tuple(frames))
                self._next[rank] = last

    def _ingest(self, rank: int, frames: tuple[wire.Frame, ...]) -> None:
        key = wire.StreamKey(self.run, _ATTEMPT, rank, self._nonce)
        batch = wire.Batch(key, frames, LAYOUT.hash, ROWS, sent_ns=time.time_ns())
        self._answer("/v1/ingest", wire.encode(batch), wire.MEDIA_TYPE)

    def _who(self, rank: int) -> dict[str, object]:
        return {"run": self.run, "attempt": _ATTEMPT, "rank": rank, "nonce": self._nonce}

    def _post(self, path: str, body: object) -> None:
        self._answer(path, json.dumps(body).encode(), JSON)

    def _answer(self, path: str, body: bytes, media: str) -> Answer:
        try:
            answer = self._transport.post(path, body, media, _SECONDS)
        except Unreachable as error:
            raise CommandError(f"the service cannot be reached: {error}", UNREACHABLE) from None
        if answer.ok:
            return answer
        if answer.status in (401, 403):
            remedy = "a drill trains, reads and cleans up: GRADWARDEN_TOKEN needs scope admin"
            raise CommandError(f"{path}: {answer.detail}\n{remedy}", REFUSED)
        raise CommandError(f"{path}: {answer.detail}", USAGE)
