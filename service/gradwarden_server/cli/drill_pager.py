"""A drill's own webhook receiver, for a receivers file that has one at this machine."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_MOST_BYTES = 16 << 20


class LocalPager:
    """Listens on loopback and notes when each alert of each run first came."""

    def __init__(self, port: int) -> None:
        """Raises OSError where the port is taken."""
        seen: dict[tuple[str, str], float] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                moment = time.monotonic()
                length = min(_MOST_BYTES, int(self.headers.get("Content-Length", 0)))
                body = self.rfile.read(length)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                for alert in _alerts(body):
                    seen.setdefault(alert, moment)

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        self._seen = seen
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def arrived(self, run: str, alert: str) -> float | None:
        """When a message about this alert first came, by the monotonic clock."""
        return self._seen.get((run, alert))

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _alerts(body: bytes) -> list[tuple[str, str]]:
    """Run and name of the alerts in a message; none of what is no message of ours."""
    try:
        labels = [alert["labels"] for alert in json.loads(body)["alerts"]]
        return [(label["run"], label["alertname"]) for label in labels]
    except (ValueError, KeyError, TypeError):
        return []
