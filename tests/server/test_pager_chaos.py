"""The line to people while everything fails: receivers that are down, slow, busy, broken or moved,
and a service that is killed at any moment. What is so in the end is what was told."""

from __future__ import annotations

import json
import random
import select as selecting
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.needs import missing
from tests.server.chaotic import FASTER, PATIENCE_SECONDS
from tests.server.pager import open_database, sqlite_url

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
GOOD, MOVED, NOBODY, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"
# What the host does, and where its name leads.
WEATHER = {
    "well": ("ok", GOOD),
    "down": ("ok", NOBODY),
    "slow": ("slow", GOOD),
    "busy": ("busy", GOOD),
    "broken": ("broken", GOOD),
    "lossy": ("lossy", GOOD),
    "another certificate": ("ok", STRANGER),
    "no name": ("ok", ""),
    "moved": ("ok", MOVED),
}


@dataclass(frozen=True)
class Taken:
    """A message that a receiver took, whether or not its answer arrived."""

    receiver: str
    incident: str
    identity: str
    status: str


@dataclass
class Host:
    """HTTPS servers on two addresses, and one on a third with a certificate of somebody else."""

    folder: Path
    mood: str = "ok"
    taken: list[Taken] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._wait = threading.Event()
        self._servers: list[ThreadingHTTPServer] = []
        self.certificate = _certificate(self.folder, "pager.test", "boss.test")
        stranger = _certificate(self.folder, "stranger.test")
        self.port = 0
        for address, certificate in (
            (GOOD, self.certificate),
            (MOVED, self.certificate),
            (STRANGER, stranger),
        ):
            server = ThreadingHTTPServer((address, self.port), self._handler())
            server.daemon_threads = True
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.port = int(server.server_address[1])
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._wait.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True  # the sender died in the middle
                    return
                mood = host.mood if self.path == "/pager" else "ok"
                status, more = host.take(mood, self.path[1:], dict(self.headers), body)
                if status == 0:
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    for name, value in more.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def take(
        self, mood: str, receiver: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str]]:
        self.tries[mood] += 1
        if mood == "busy":
            return 429, {"Retry-After": str(FASTER // 4)}
        if mood == "broken":
            return 500, {}
        payload = json.loads(body)
        incident = payload["groupLabels"]["run"]
        with self._lock:
            self.taken.append(Taken(receiver, incident, headers["webhook-id"], payload["status"]))
        if mood == "slow":  # it took the message, and nobody hears so
            self._wait.wait(3 * PATIENCE_SECONDS)
        return (0, {}) if mood == "lossy" else (200, {})


def _certificate(folder: Path, *names: str) -> Path:
    path = folder / f"{names[0]}.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-days", "2", "-subj", f"/CN={names[0]}"]
    words += ["-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)]
    try:
        subprocess.run(
            [*words, "-keyout", path.with_suffix(".key"), "-out", path],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        missing("openssl", "apt-get install -y openssl")
    return path


class Weather:
    """The service, its host and what befalls both."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.host = Host(folder)
        self.dns = folder / "dns"
        self._facts = {
            "began_ns": str(time.time_ns()),
            "dns": str(self.dns),
            "certificate": str(self.host.certificate),
            "db": sqlite_url(folder),
            "port": str(self.host.port),
        }
        open_database(self._facts["db"]).close()
        self.deaths = 0
        self._said_so_far = 0
        self.seen: Counter[str] = Counter()
        self.change("well")
        self._child = self._born()

    def change(self, weather: str) -> None:
        self.seen[weather] += 1
        mood, address = WEATHER[weather]
        self.host.mood = mood
        draft = self.dns.with_suffix(".new")
        draft.write_text(address)
        draft.replace(self.dns)

    def say(self, word: str, incident: str) -> None:
        """Until the service has it, however often it dies meanwhile."""
        self._said_so_far += 1
        dies = self._said_so_far % 9 == 4
        while not self._said(f"{word} {incident}", dies):
            dies = False
            self._child = self._born()

    def _said(self, line: str, dies: bool) -> bool:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        if dies:
            # Anywhere between hearing it and having told it.
            selecting.select([], [], [], self.chance.random() * 0.08)
            self.kill()
            return False
        answer = self._child.stdout.readline()
        assert answer.strip() == line, f"{answer!r}"
        return True

    def kill(self) -> None:
        self.deaths += 1
        self._child.kill()
        self._child.wait(PATIENCE)

    def _born(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.server.chaotic", json.dumps(self._facts)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self, receiver: str, incident: str) -> list[Taken]:
        return [
            one
            for one in list(self.host.taken)
            if (one.receiver, one.incident) == (receiver, incident)
        ]

    def settled(self, ends: dict[str, bool]) -> bool:
        """Whether the last word of everybody is what is so."""
        for incident, fires in ends.items():
            words = self.told("pager", incident)
            boss = self.told("boss", incident)
            if not words:
                return False
            for held in (words, boss):
                if held and (held[-1].status == "firing") != fires:
                    return False
        return True

    def close(self) -> None:
        self._child.kill()
        self._child.wait(PATIENCE)
        self.host.close()


@pytest.fixture
def weather(tmp_path: Path) -> Iterator[Weather]:
    made = Weather(tmp_path, seed=13)
    yield made
    made.close()


def storm(weather: Weather, incidents: int) -> dict[str, Any]:
    """Incidents that begin and end while the weather changes and the service dies."""
    chance = weather.chance
    kinds = list(WEATHER)
    ends: dict[str, bool] = {}
    open_: list[str] = []
    for number in range(incidents):
        if number % 2 == 0:
            weather.change(kinds[number // 2 % len(kinds)])
        incident = f"incident-{number}"
        weather.say("fires", incident)
        ends[incident] = True
        open_.append(incident)
        # Each weather is met by somebody, on a busy machine too.
        selecting.select([], [], [], 0.2 + chance.random() * 0.5)
        while open_ and chance.random() < 0.4:
            over = open_.pop(chance.randrange(len(open_)))
            weather.say("ends", over)
            ends[over] = False
    weather.change("well")
    until = time.monotonic() + PATIENCE
    while not weather.settled(ends):
        assert time.monotonic() < until, "the last word is not what is so"
        selecting.select([], [], [], 0.05)
    return _judged(weather, ends)


def _judged(weather: Weather, ends: dict[str, bool]) -> dict[str, Any]:
    found: Counter[str] = Counter()
    for incident in ends:
        for receiver in ("pager", "boss"):
            words = weather.told(receiver, incident)
            begun = {one.identity for one in words if one.status == "firing"}
            over = [one.status for one in words].index("resolved") if _over(words) else len(words)
            found[f"told {receiver}"] += bool(words)
            found["triggers after their resolve"] += any(
                one.status == "firing" for one in words[over:]
            )
            found["paged twice"] += len(begun) > 1
    counts = dict(found)
    counts |= {"incidents": len(ends), "fire still": sum(ends.values()), "deaths": weather.deaths}
    counts |= {"tries": dict(weather.host.tries), "weather": dict(weather.seen)}
    return counts


def _over(words: list[Taken]) -> bool:
    return any(one.status == "resolved" for one in words)


def check(counts: dict[str, Any], incidents: int) -> None:
    print(json.dumps(counts))
    assert counts["incidents"] == incidents
    assert counts["triggers after their resolve"] == 0
    assert counts["paged twice"] == 0
    assert counts["deaths"] > 0
    assert counts["told pager"] == incidents
    assert counts["told boss"] > 0


def test_twenty_incidents_in_all_weathers(weather: Weather) -> None:
    check(storm(weather, 20), 20)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_hundred_incidents_in_all_weathers(weather: Weather) -> None:
    check(storm(weather, 200), 200)
