"""The database's disk fills up: refusals say so, reading goes on, and nothing acked is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import PostgresServer
from tests.needs import missing
from tests.server.siege import announce, check_kept, message, until
from tests.server.traffic import FRAMES, problem
from tests.service import Service

BALLAST_BYTES = 2 << 20
SPARE_BYTES = 512 << 10
FRAMES_SENT = 48


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    """A file system of its own at ``at``, with two files that can be thrown out for room."""
    at.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "gradwarden-test", str(at)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(
            f"the right to mount a small file system ({done.stderr.strip()})",
            "run as root, or in a namespace: unshare -Urm make test",
        )
    try:
        (at / "ballast").write_bytes(os.urandom(BALLAST_BYTES))
        (at / "spare").write_bytes(os.urandom(SPARE_BYTES))
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def _post(service: Service, first: int) -> httpx.Response:
    return service.call(
        "POST", "/v1/ingest", content=message("r", first, FRAMES_SENT), headers=FRAMES
    )


def _fill_and_recover(service: Service, small: Path) -> int:
    """The last acked seq, after the disk was full and has room again."""
    announce(service, "r")
    acked = 0
    while (answer := _post(service, acked + 1)).status_code == 200:
        acked += FRAMES_SENT
        assert acked < 20_000, "the disk never fills"
    assert acked
    for _ in range(3):
        told = problem(answer, 507, "disk-full")
        assert "is full" in told["detail"]
        assert "Make room" in told["detail"]
        assert int(answer.headers["retry-after"]) > 0
        answer = _post(service, acked + 1)
    assert service.get("/v1/runs/r")["steps"] == [0, acked - 1], "what was acked is read"
    for path in ("/v1/runs", "/v1/alerts", "/-/healthy"):
        service.get(path)
    (small / "ballast").unlink()

    def taken() -> bool:
        return _post(service, acked + 1).status_code == 200

    until(taken, "it still refuses, though there is room")
    acked += FRAMES_SENT
    assert service.process is not None
    assert service.process.poll() is None, "and all that in one process"
    until(lambda: service.get("/v1/runs/r")["unjudged"] == 0, "it is not judged to its end")
    return acked


def test_sqlite_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "6m") as small:
        db = f"sqlite:///{small}/gw.sqlite"
        service = Service(tmp_path / "service", db=db)
        try:
            acked = _fill_and_recover(service, small)
            assert str(small / "gw.sqlite") in service.log_text(), "the log names the file"
            assert "Traceback" not in service.log_text()
        finally:
            service.close()
        (small / "spare").unlink()  # it may be full again, and even opening takes some room
        check_kept(db, {"r": acked})


def test_postgres_on_a_full_disk(own_postgres: PostgresServer, tmp_path: Path) -> None:
    # Beside the server's own folder, since its user cannot enter ours.
    with small_disk(own_postgres.folder / "small", "13m") as small:
        own_postgres.own(small)
        own_postgres.run(f"CREATE TABLESPACE small LOCATION '{small}'")
        db = own_postgres.create("TABLESPACE small")
        service = Service(tmp_path / "service", db=db)
        try:
            acked = _fill_and_recover(service, small)
        finally:
            service.close()
        check_kept(db, {"r": acked})
        own_postgres.stop()
