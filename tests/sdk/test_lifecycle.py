"""How real processes end, and what of them is told: exit, exception, signals, fork, SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from gradwarden.sync import sync
from tests.sdk.fake import FakeService

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import os, signal, sys, time
import torch
import gradwarden
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
{before}
monitor = gradwarden.watch(model, optimizer, run="r")
print("watching", flush=True)
for step in range({steps}):
    optimizer.zero_grad()
    loss = model(torch.ones(1, 4)).sum()
    loss.backward()
    optimizer.step()
    monitor.log(loss=loss)
    {inside}
{after}
"""


def script(before: str = "", steps: int = 5, inside: str = "pass", after: str = "") -> str:
    return LOOP.format(before=before, steps=steps, inside=inside, after=textwrap.dedent(after))


def start(code: str, url: str | None, spool: Path, **environment: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
    env |= {"GRADWARDEN_SPOOL": str(spool), "PYTHONPATH": str(ROOT / "client_sdk")}
    env |= {"OMP_NUM_THREADS": "1", **environment}
    if url is not None:
        env["GRADWARDEN_URL"] = url
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def watching(process: subprocess.Popen[str], word: str = "watching") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(process.communicate()[1])


def finish(service: FakeService) -> dict[str, Any]:
    (event,) = service.events("finish")
    return event


def test_a_plain_end_is_finished_and_complete(service: FakeService, tmp_path: Path) -> None:
    code, _, err = ended(start(script(), service.url, tmp_path))
    assert code == 0, err
    assert finish(service) == {"kind": "finish", "status": "finished"}
    assert [f.step for f in service.all_frames() if f.values] == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == []


def test_an_exception_is_told_with_its_traceback(service: FakeService, tmp_path: Path) -> None:
    process = start(script(after="raise MemoryError('no room')"), service.url, tmp_path)
    code, _, err = ended(process)
    assert code == 1
    assert "MemoryError: no room" in err
    event = finish(service)
    assert (event["status"], event["error"]) == ("failed", "MemoryError: no room")
    assert "no room" not in event["traceback"] or "Traceback" in event["traceback"]
    assert event["memory_bytes"] > 1 << 20


def test_sigterm_is_a_preemption(service: FakeService, tmp_path: Path) -> None:
    process = start(script(steps=10**6, inside="time.sleep(0.01)"), service.url, tmp_path)
    watching(process)
    process.send_signal(signal.SIGTERM)
    code, _, _ = ended(process)
    assert code == -signal.SIGTERM
    assert finish(service)["status"] == "preempted"


def test_a_handler_of_the_host_still_runs(service: FakeService, tmp_path: Path) -> None:
    before = "signal.signal(signal.SIGTERM, lambda *_: (print('saving', flush=True), sys.exit(3)))"
    process = start(script(before, 10**6, "time.sleep(0.01)"), service.url, tmp_path)
    watching(process)
    process.send_signal(signal.SIGTERM)
    code, out, _ = ended(process)
    assert (code, out.strip()) == (3, "saving")
    assert finish(service)["status"] == "preempted"


def test_ctrl_c_is_a_cancel(service: FakeService, tmp_path: Path) -> None:
    process = start(script(steps=10**6, inside="time.sleep(0.01)"), service.url, tmp_path)
    watching(process)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert "KeyboardInterrupt" in err
    assert code != 0
    assert finish(service) == {"kind": "finish", "status": "cancelled"}


def test_what_sigkill_left_in_the_spool_is_synced(service: FakeService, tmp_path: Path) -> None:
    loop = script(steps=10**6, inside="time.sleep(0.005); step == 200 and print('far', flush=True)")
    process = start(loop, None, tmp_path)
    watching(process, "far")
    process.kill()
    ended(process)
    report = sync(tmp_path, service.url)
    assert report.ok
    (held,) = service.frames.values()
    assert sorted(held) == list(range(1, len(held) + 1))
    assert len(held) > 100
    assert list(tmp_path.iterdir()) == []


def test_a_restart_delivers_what_the_killed_process_left(
    service: FakeService, tmp_path: Path
) -> None:
    service.script = lambda path, n: (503, {}, {})
    loop = script(steps=10**6, inside="time.sleep(0.005); step == 200 and print('far', flush=True)")
    process = start(loop, service.url, tmp_path)
    watching(process, "far")
    process.kill()
    ended(process)
    service.script = None
    code, _, err = ended(start(script(), service.url, tmp_path))
    assert code == 0, err
    first, second = sorted(service.frames, key=lambda key: key[1])
    assert len(service.frames[first]) > 100
    assert [f.step for f in service.frames[second].values() if f.values] == [0, 1, 2, 3, 4]
    assert list(dict.fromkeys(s["attempt"] for s in service.starts)) == [first[1], second[1]]
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_service_holds_the_exit_for_no_longer_than_told(tmp_path: Path) -> None:
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as black_hole:  # accepts and never answers
        url = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        after = "begun = time.monotonic(); monitor.finish(); print(time.monotonic() - begun)"
        process = start(script(after=after), url, tmp_path, GRADWARDEN_EXIT_SECONDS="1")
        code, out, err = ended(process)
    assert code == 0, err
    assert float(out.split()[-1]) < 3
    assert "frames are spooled; deliver them with: gradwarden sync" in err
    with FakeService() as service:
        assert sync(tmp_path, service.url).ok
        assert [f.step for f in service.all_frames() if f.values] == [0, 1, 2, 3, 4]
    assert time.monotonic() > 0


def test_a_forked_child_is_silent_and_harmless(service: FakeService, tmp_path: Path) -> None:
    inside = """
    if step == 2:
        child = os.fork()
        if child == 0:
            loss = model(torch.ones(1, 4)).sum()
            loss.backward(); optimizer.step(); monitor.log(loss=loss); monitor.finish()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    code, _, err = ended(
        start(
            script(inside=textwrap.indent(textwrap.dedent(inside), "    ").strip()),
            service.url,
            tmp_path,
        )
    )
    assert code == 0, err
    assert [f.step for f in service.all_frames() if f.values] == [0, 1, 2, 3, 4]
    assert len(service.starts) == 1
    assert finish(service)["status"] == "finished"


def test_data_loader_workers_fork_in_peace(service: FakeService, tmp_path: Path) -> None:
    code = script(
        after="""
        data = torch.utils.data.TensorDataset(torch.ones(12, 4))
        loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)
        for (x,) in loader:
            optimizer.zero_grad(); model(x).sum().backward(); optimizer.step()
        """
    )
    status, _, err = ended(start(code, service.url, tmp_path))
    assert status == 0, err
    assert [f.step for f in service.all_frames() if f.values] == list(range(8))


def test_a_failing_block_tells_its_error(service: FakeService, tmp_path: Path) -> None:
    after = """
    try:
        with monitor:
            raise ValueError("inside")
    except ValueError:
        print("caught")
    """
    code, out, _ = ended(start(script(after=after), service.url, tmp_path))
    assert (code, out.split()[-1]) == (0, "caught")
    assert finish(service)["error"] == "ValueError: inside"


@pytest.mark.parametrize(("status", "told"), [("0", "finished"), ("", "finished"), ("3", "failed")])
def test_leaving_a_block_by_exit_is_judged_by_its_status(
    status: str, told: str, service: FakeService, tmp_path: Path
) -> None:
    after = f"""
    with monitor:
        sys.exit({status})
    """
    code, _, _ = ended(start(script(after=after), service.url, tmp_path))
    assert code == int(status or 0)
    assert finish(service)["status"] == told


@pytest.mark.parametrize("flags", [["-I", "-S"]])
def test_the_package_imports_without_torch_and_the_server_extra(flags: list[str]) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "client_sdk")!r})
import gradwarden
from gradwarden import wire, sync, errors
assert gradwarden.__version__
assert dir(gradwarden) == sorted(gradwarden.__all__)
for name in ("torch", "numpy", "fastapi", "sqlalchemy", "httpx"):
    assert name not in sys.modules, name
assert gradwarden.ConfigurationError is errors.ConfigurationError
try:
    gradwarden.watch
except ModuleNotFoundError as error:
    assert error.name == "torch", error
else:
    raise SystemExit("torch was there")
"""
    subprocess.run([sys.executable, *flags, "-c", code], check=True, timeout=60)
