"""The facts that need no service: where it broke, what was skipped, what never moved."""

from __future__ import annotations

import json
import math
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from gradwarden import wire
from gradwarden.tripwires import (
    BORN_TIMES,
    DECLARED_STEPS,
    SKIPPED_RUN,
    UNSEEN_STEPS,
    Tripwires,
    table,
)

NAMES = ("stem.weight", "blocks.0.weight", "blocks.1.weight", "head.weight")
LAYOUT = wire.Layout(
    tuple(wire.Parameter(n, (4, 4), "float32", n.split(".weight")[0], "matrix") for n in NAMES),
    backward=(3, 2, 1, 0),
)
WIDTH = len(wire.COLUMNS)
CLEAN = (1.0, 0.5, 0.0, 0.0, 0.0, 0.0)
BAD = (math.nan, math.nan, 2.0, 0.0, 0.0, 0.0)


def frame(
    step: int, rows: list[tuple[float, ...]] | None, stepped: bool | None = True, open: bool = False
) -> wire.Frame:
    padded = [(*r, *(math.nan,) * (WIDTH - len(r))) for r in rows or []]
    values = b"".join(struct.pack(f"<{WIDTH}f", *r) for r in padded)
    return wire.Frame(step + 1, step, 0, stepped=stepped, values=values, open=open)


def told(wires: Tripwires, *args: Any) -> list[str]:
    return [f.kind for f in wires.advance(*args)]


def test_an_applied_nan_names_the_bracket_once() -> None:
    wires = Tripwires()
    assert told(wires, frame(0, [CLEAN] * 4), LAYOUT) == []
    (found,) = wires.advance(frame(1, [BAD, BAD, CLEAN, CLEAN]), LAYOUT)
    assert found.kind == "applied non-finite gradient"
    assert "between blocks.1 (clean) and blocks.0 (first bad)" in found.text
    assert found.layers == ("stem.weight", "blocks.0.weight")
    assert told(wires, frame(2, [BAD] * 4), LAYOUT) == []
    assert told(wires, frame(3, [CLEAN] * 4), LAYOUT) == []
    (again,) = wires.advance(frame(4, [BAD] * 4), LAYOUT)
    assert "every layer: look at the loss and the input" in again.text


def test_the_verdict_may_come_in_a_later_frame_of_the_step() -> None:
    wires = Tripwires()
    assert told(wires, frame(5, [BAD] * 4, None, open=True), LAYOUT) == []
    assert told(wires, frame(5, None, True), None) == ["applied non-finite gradient"]


def test_a_skipped_bad_step_is_a_line_and_a_row_of_them_another() -> None:
    wires = Tripwires()
    assert told(wires, frame(0, [BAD] * 4, False), LAYOUT) == ["skipped non-finite step"]
    for step in range(1, SKIPPED_RUN - 1):
        assert told(wires, frame(step, [BAD] * 4, False), LAYOUT) == []
    assert told(wires, frame(SKIPPED_RUN, [BAD] * 4, False), LAYOUT) == ["run of skipped steps"]
    assert wires.skipped == SKIPPED_RUN


def without_gradient(steps: int, names: list[str], declared: bool = False) -> wire.Frame:
    event = {"kind": "no_gradient", "optimizer": "SGD", "number": 0, "steps": steps}
    event |= {"count": len(names), "parameters": names, "declared": declared}
    return wire.Frame(1, steps, 0, events=(event,))


def test_a_parameter_that_never_had_a_gradient_is_named_once() -> None:
    wires = Tripwires()
    assert told(wires, without_gradient(UNSEEN_STEPS, []), None) == []
    assert told(wires, without_gradient(UNSEEN_STEPS, ["a.weight"]), None) == ["no gradient"]
    assert told(wires, without_gradient(UNSEEN_STEPS + 20, ["a.weight"]), None) == []
    assert wires.findings[0].layers == ("a.weight",)
    assert "no gradient in 50 steps of their SGD (a.weight)" in wires.findings[0].text


def test_declared_unused_parameters_have_a_thousand_steps() -> None:
    wires = Tripwires()
    assert told(wires, without_gradient(UNSEEN_STEPS, ["a.weight"], True), None) == []
    late = without_gradient(DECLARED_STEPS, ["a.weight"], True)
    assert told(wires, late, None) == ["no gradient"]


def test_a_weight_that_begins_at_zero_has_no_size_to_be_compared_with() -> None:
    wires = Tripwires()
    unmeasured = (math.nan,) * len(wire.HISTOGRAM)
    for step in range(10):
        rows = [(*CLEAN, *unmeasured, 1e-3 * step)] * 4
        assert told(wires, frame(step, rows), LAYOUT) == []


def test_exploding_from_birth_needs_five_of_the_first_steps() -> None:
    wires = Tripwires()
    unmeasured = (math.nan,) * len(wire.HISTOGRAM)
    rows = [(*CLEAN, *unmeasured, weight) for weight in (1.0, 0.001, 1.0, 0.0)]
    kinds = [told(wires, frame(s, rows), LAYOUT) for s in range(BORN_TIMES)]
    assert kinds == [[]] * (BORN_TIMES - 1) + [["exploding from birth"]]
    assert wires.findings[0].layers == ("blocks.0.weight",)


def test_a_clean_run_has_no_table() -> None:
    wires = Tripwires()
    wires.advance(frame(0, [CLEAN] * 4), LAYOUT)
    assert table(wires, 0) == []
    assert table(wires, 3)[-1] == "steps captured 1, skipped 0, frames dropped 3"


class Faulty(nn.Module):
    """Its backward is NaN although its forward is finite: sqrt'(0)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sqrt((x - x.detach()).pow(2)) * 0


def test_a_real_fault_in_the_middle_is_bracketed_and_posted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    posted: list[dict[str, Any]] = []
    arrived = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)),
        Faulty(),
        *(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    monitor = gradwarden.watch(model, optimizer, spool=tmp_path, notify_url=url)
    model(torch.randn(3, 6)).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert arrived.wait(10)
    monitor.finish()
    server.shutdown()
    server.server_close()
    err = capfd.readouterr().err
    assert (
        "step 0: the optimizer applied NaN or Inf; between 3.0 (clean) and 1.0 (first bad)" in err
    )
    assert "applied non-finite gradient           0" in err
    assert [(p["kind"], p["step"], p["layers"][0]) for p in posted] == [
        ("applied non-finite gradient", 0, "0.0.weight")
    ]
