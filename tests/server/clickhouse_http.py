"""ClickHouse's HTTP interface over the embedded engine, as far as its Python client uses it."""

from __future__ import annotations

import base64
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "gradwarden", "p:w/d"


@contextmanager
def http_door(engine: Any) -> Iterator[int]:
    """Serve the embedded engine until the end; the port."""
    session = engine._session
    lock = threading.Lock()

    class Door(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(200, b"Ok.\n")

        def do_POST(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers.get("Authorization") != wanted:
                self._answer(403, b"Code: 516. DB::Exception: Authentication failed", 516)
                return
            whole = "\n".join(asked.get("query", [])).encode() + body
            # An INSERT has its rows behind its first line.
            told = re.match(rb"(INSERT [^\n]*)FORMAT (\w+)\n(.*)", whole, re.DOTALL)
            statement, data = (told[1], told[3]) if told else (whole, b"")
            ending = re.search(rb"\sFORMAT (\w+)[\s;]*$", b"" if told else statement)
            if ending:
                statement = statement[: ending.start()]
            form = (told[2] if told else ending[1] if ending else b"TabSeparated").decode()
            try:
                with lock, tempfile.NamedTemporaryFile() as file:
                    if data:
                        file.write(data)
                        file.flush()
                        statement += f"FROM INFILE '{file.name}' FORMAT {form}".encode()
                    answer = session.query(statement.decode(), form).bytes()
            except RuntimeError as error:
                code = re.match(r"Code: (\d+)", str(error))
                self._answer(500, str(error).encode(), int(code[1]) if code else 1)
                return
            self._answer(200, answer, format=form)

        def _answer(
            self, status: int, body: bytes, code: int | None = None, format: str = ""
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if code is not None:
                self.send_header("X-ClickHouse-Exception-Code", str(code))
            if format:
                self.send_header("X-ClickHouse-Format", format)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
