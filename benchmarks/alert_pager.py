"""A webhook receiver that notes when it was first told of each run."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Pager:
    """Listens on loopback; times are UTC nanoseconds."""

    def __init__(self) -> None:
        self.paged: dict[str, int] = {}
        self._changed = threading.Condition()
        pager = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                now_ns = time.time_ns()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                pager._note(body, now_ns)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def wait(self, runs: Sequence[str], seconds: float) -> bool:
        """Until all these were told of, or so many seconds are over; whether they were."""
        with self._changed:
            return self._changed.wait_for(lambda: self.paged.keys() >= set(runs), seconds)

    def _note(self, body: Mapping[str, Any], now_ns: int) -> None:
        with self._changed:
            for alert in body["alerts"]:
                run = alert["labels"].get("run")
                if run is not None and alert["status"] == "firing":
                    self.paged.setdefault(run, now_ns)
            self._changed.notify_all()


def spread(began_ns: Mapping[str, int], paged_ns: Mapping[str, int]) -> dict[str, float | int]:
    """Milliseconds from each beginning until its page: nearest-rank percentiles."""
    took = sorted(
        (paged_ns[run] - at_ns) / 1e6 for run, at_ns in began_ns.items() if run in paged_ns
    )
    if not took:
        return {"incidents": 0, "unpaged": len(began_ns)}
    return {
        "incidents": len(took),
        "unpaged": len(began_ns) - len(took),
        "p50_ms": round(took[max(0, math.ceil(0.50 * len(took)) - 1)], 1),
        "p99_ms": round(took[max(0, math.ceil(0.99 * len(took)) - 1)], 1),
        "most_ms": round(took[-1], 1),
    }
