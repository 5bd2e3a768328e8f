"""A stand-in for the service: the people side of the HTTP contract over invented, larger data.

For working on the dashboard without a training run (``python tests/ui/fixture_server.py``) and
for the tests of what a small real run cannot show: many layers, many steps, several attempts.
"""

from __future__ import annotations

import argparse
import json
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt

DIST = Path(__file__).parents[2] / "dashboards" / "web" / "dist"
CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
KINDS = ["attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
         "mlp.up.weight", "mlp.up.bias", "mlp.down.weight", "mlp.down.bias"]
SICK = "blocks.3.attn.qkv.weight"
FIRST_STEP, FIRST_BAD, LAST_STEP, RESTART = 0, 3777, 3999, 2100


def iso(ago: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=ago)).isoformat()


@lru_cache
def layers() -> list[dict[str, Any]]:
    names = [("embed", "embed.weight")]
    names += [(f"blocks.{b}", f"blocks.{b}.{kind}") for b in range(8) for kind in KINDS]
    names += [("norm", "norm.weight"), ("norm", "norm.bias"), ("head", "head.weight")]
    return [
        {"i": i, "name": name, "layer": name.rsplit(".", 1)[0], "block": block,
         "kind": "Linear", "params": 4096 if name.endswith("weight") else 256, "dtype": "bfloat16"}
        for i, (block, name) in enumerate(names)
    ]


@lru_cache
def matrix() -> npt.NDArray[np.float64]:
    """parameters x steps: norms that drift, one spike, one quiet block, then NaN from one layer."""
    random = np.random.default_rng(7)
    steps = np.arange(FIRST_STEP, LAST_STEP + 1)
    rows = []
    for layer in layers():
        level = 10 ** random.normal(-1.2, 0.5) * (0.15 if "bias" in layer["name"] else 1)
        drift = 1.6 * np.exp(-steps / 900) + 0.25 * np.sin(steps / 300 + layer["i"])
        values = level * np.exp(drift + random.normal(0, 0.18, steps.size))
        if layer["block"] == "blocks.3":
            values *= np.exp(np.clip((steps - 3300) / 180, 0, 3))
        if layer["name"] == "blocks.6.mlp.up.weight":
            values[1234] *= 300
        if layer["block"] == "blocks.1":
            values[2600:3100] *= 1e-3
        rows.append(values)
    out = np.array(rows)
    out[:, 2990:3010] = -1  # no data: the service was away
    sick = next(x["i"] for x in layers() if x["name"] == SICK)
    out[sick, FIRST_BAD:] = np.nan
    out[: sick, FIRST_BAD + 1 :] = np.nan
    out[sick + 3, FIRST_BAD - 2] = np.inf
    out[:, FIRST_BAD + 3 :] = np.nan
    return out


def window(query: dict[str, str]) -> tuple[int, int]:
    first = max(FIRST_STEP, int(float(query.get("from", FIRST_STEP))))
    last = min(LAST_STEP, int(float(query.get("to", LAST_STEP))))
    return first, max(first, last)


def heatmap(query: dict[str, str]) -> bytes:
    first, last = window(query)
    values = matrix()[:, first : last + 1]
    bucket = 1
    while (last - first + 1) / bucket > int(query.get("cols", "2000")):
        bucket *= 2
    starts = list(range(first - first % bucket, last + 1, bucket))
    cells, bad = [], []
    finite = values[np.isfinite(values) & (values > 0)]
    low, high = np.log10(finite.min()), np.log10(finite.max())
    for column, start in enumerate(starts):
        part = values[:, max(0, start - first) : start - first + bucket]
        ok = np.isfinite(part) & (part > 0)
        top = np.max(np.where(ok, part, 0), axis=1)
        with np.errstate(divide="ignore"):
            byte = np.where(top > 0, 1 + np.rint((np.log10(top) - low) / (high - low) * 253), 0)
        nan, inf = np.isnan(part).sum(axis=1), np.isinf(part).sum(axis=1)
        byte = np.where(nan + inf > 0, 255, byte)
        cells.append(byte.astype(np.uint8))
        bad += [[int(r), column, int(nan[r]) * 40, int(inf[r]) * 3] for r in np.nonzero(nan + inf)[0]]
    header = {
        "rows": values.shape[0], "cols": len(starts), "layers": [x["i"] for x in layers()],
        "step": starts, "step_last": [min(last, s + bucket - 1) for s in starts],
        "time_ns": [s * 10**9 for s in starts], "lo": low, "hi": high, "bucket": bucket,
        "nonfinite": bad, "metric": query.get("metric", "l2"),
    }
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + np.stack(cells, axis=1).tobytes()


def number(x: float) -> float | str | None:
    return None if x < 0 else "NaN" if np.isnan(x) else "Infinity" if np.isinf(x) else float(x)


def column(name: str) -> npt.NDArray[np.float64]:
    steps = np.arange(FIRST_STEP, LAST_STEP + 1)
    if name == "lr":
        return 3e-4 * np.minimum(1, (steps + 1) / 200) * (0.5 + 0.5 * np.cos(steps / 4000 * 3))
    if name == "loss":
        noise = np.random.default_rng(3).normal(0, 0.03, steps.size)
        loss = 1.6 + 3.4 * np.exp(-steps / 700) + noise + np.clip((steps - 3500) / 900, 0, 1)
        return np.where(steps > FIRST_BAD, np.nan, loss)
    if name.startswith("layer:"):
        scale = 0.2 if name.endswith("absmax") else 1
        return matrix()[int(name.split(":")[1])] * scale
    values = matrix()
    norm = np.sqrt((np.where(values < 0, 0, values) ** 2).sum(axis=0))
    return np.minimum(norm, 1.0) if name == "clip_norm" else norm


def series(query: dict[str, str]) -> dict[str, Any]:
    first, last = window(query)
    size = max(1, -(-(last - first + 1) // int(query.get("points", "2000"))))
    starts = range(first, last + 1, size)
    keys: dict[str, Any] = {}
    for name in query.get("keys", "loss").split(","):
        values = column(name)
        out: dict[str, list[Any]] = {"min": [], "max": [], "last": [], "nonfinite": []}
        for start in starts:
            part = values[start : start + size]
            fine = part[np.isfinite(part) & (part >= 0)]
            out["min"].append(float(fine.min()) if fine.size else None)
            out["max"].append(float(fine.max()) if fine.size else None)
            out["last"].append(number(part[-1]))
            out["nonfinite"].append(int((~np.isfinite(part)).sum()))
        keys[name] = out
    return {"step": list(starts), "time_ns": [s * 10**9 for s in starts], "keys": keys}


def summary(run: str, health: str, **more: Any) -> dict[str, Any]:
    spark = [number(x) for x in column("loss")[-2000::42]]
    base = {
        "run": run, "name": run, "project": "language", "owner": "mei", "training_job": run,
        "environment": "production", "status": "running", "health": health, "reason": None,
        "attempt": 1, "step": LAST_STEP, "loss": 1.62, "spark": spark[:40], "worst_layer": None,
        "alerts": {"pending": 0, "firing": 0}, "world_size": 8, "started_at": iso(86000),
        "last_seen_at": iso(2), "ended_at": None,
    }
    return {**base, **more}


def run_list() -> list[dict[str, Any]]:
    spark = [number(x) for x in column("loss")[-2000::42]]
    return [
        summary("llama-7b-ft7", "crit", loss="NaN", spark=spark, attempt=2, worst_layer=SICK[:-7],
                reason=f"NaN began at step {FIRST_BAD} in {SICK}", world_size=64,
                alerts={"pending": 1, "firing": 2}),
        summary("vit-l-16", "warn", project="vision", owner="tom", loss=2.13, step=12_044,
                reason="gradient norm grows 40% per 100 steps", worst_layer="head.fc",
                alerts={"pending": 1, "firing": 0}),
        summary("moe-small", "ok", owner="ana", step=88_105, loss=1.98, world_size=16),
        summary("clip-base-retrain", "silent", project="vision", owner="tom", step=30_010,
                reason="no heartbeat for 4 minutes", last_seen_at=iso(250), loss=0.71),
        summary("digits-cnn", "ok", project="demo", owner=None, step=799, loss=0.0412,
                status="finished", ended_at=iso(9000), last_seen_at=iso(9000), world_size=1),
    ]


def detail(run: str) -> dict[str, Any]:
    found = next(item for item in run_list() if item["run"] == run)
    return {
        **found, "layers": layers(), "backward": [], "config": {"lr": 3e-4},
        "steps": [FIRST_STEP, LAST_STEP],
        "attempts": [
            {"ordinal": 1, "attempt": "01A", "status": "failed", "first_step": 0, "last_step": 2180,
             "superseded_after": RESTART - 1},
            {"ordinal": 2, "attempt": "01B", "status": "running", "first_step": RESTART,
             "last_step": LAST_STEP, "superseded_after": None},
        ],
        "ranks": [
            {"rank": r, "group": 0, "host": f"gpu-{r // 4:02d}", "place": {"node": f"n{r // 4}", "gpu": r % 4},
             "last_step": LAST_STEP - (9 if r == 5 else 0), "last_seen_at": iso(1 + r % 3), "ended": False}
            for r in range(8)
        ],
        "coverage": [
            {"alert": "NonFiniteGradient", "state": "armed", "detail": ""},
            {"alert": "ExplodingGradient", "state": "armed", "detail": ""},
            {"alert": "VanishingGradient", "state": "waiting", "detail": "37 of 200 steps"},
            {"alert": "LossDivergence", "state": "armed", "detail": ""},
            {"alert": "StalledRun", "state": "armed", "detail": ""},
            {"alert": "InputBound", "state": "blind",
             "detail": "arm it: with monitor.phase(\"data\"): batch = next(it)"},
        ],
    }


def alert(number_: int, name: str, severity: str, state: str, ago: float, **annotations: str) -> dict[str, Any]:
    return {
        "id": number_, "alertname": name, "severity": severity, "state": state,
        "labels": {"alertname": name, "severity": severity, "run": "llama-7b-ft7"},
        "annotations": annotations, "active_at": iso(ago), "fired_at": iso(ago - 1),
        "resolved_at": iso(ago / 2) if state == "resolved" else None, "reason": "condition",
        "fingerprint": "0" * 16,
    }


def alerts(run: str | None) -> list[dict[str, Any]]:
    if run not in (None, "llama-7b-ft7"):
        return []
    book = "https://example.org/runbooks/nonfinite"
    return [
        alert(3, "NonFiniteGradient", "page", "firing", 340, step=str(FIRST_BAD), layer=SICK, rank="5",
              summary=f"NaN in 40 of 4,096 gradients of {SICK} at step {FIRST_BAD}",
              first_action="Pause the run, reload checkpoint 3500 (verified), lower the learning rate by half",
              runbook_url=book),
        alert(4, "LossDivergence", "page", "firing", 330, step=str(FIRST_BAD + 1),
              summary="The loss is NaN since step 3778", first_action="See NonFiniteGradient"),
        alert(5, "ExplodingGradient", "ticket", "pending", 600, step="3410", layer="blocks.3.mlp.up.weight",
              summary="blocks.3 grows 8% per 10 steps"),
        alert(1, "ExplodingGradient", "ticket", "resolved", 9000, step="1234",
              layer="blocks.6.mlp.up.weight", summary="One spike, 300 times its past"),
    ]


def events() -> list[dict[str, Any]]:
    base = {"rank": 0, "attempt": 1, "data": {"ok": True}}
    saved = [{**base, "step": s, "time_ns": s * 10**9, "kind": "checkpoint", "text": f"ckpt-{s}.pt"}
             for s in range(500, 4000, 500)]
    mark = {**base, "step": 2600, "time_ns": 2600 * 10**9, "kind": "mark", "text": "tokenizer = v2"}
    return [*saved, mark]


class Handler(BaseHTTPRequestHandler):
    """Routes of the contract; the login state is one attribute of the server."""

    server: FixtureServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        parts = [p for p in url.path.split("/") if p]
        if parts[:1] != ["v1"]:
            return self._static(url.path)
        match parts[1:]:
            case ["session"]:
                self._json(self.server.session)
            case ["runs"]:
                found = [r for r in self.server.runs() if query.get("q", "") in r["run"]]
                self._json({"items": found, "next_cursor": None})
            case ["runs", run]:
                if all(r["run"] != run for r in run_list()):
                    return self._problem(404, "No such run")
                self._json(detail(run))
            case ["runs", _, "heatmap"]:
                self._send(200, "application/octet-stream", heatmap(query))
            case ["runs", _, "series"]:
                self._json(series(query))
            case ["runs", _, "events"]:
                self._json({"items": events()})
            case ["alerts"]:
                self._json({"items": alerts(query.get("run")), "next_cursor": None})
            case _:
                self._problem(404, "No such resource")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if body.get("token") != "gw_fixture":
            return self._problem(401, "Unknown token")
        self.server.session["authenticated"] = True
        self._json(self.server.session)

    def _static(self, path: str) -> None:
        file = DIST / path.lstrip("/")
        if not file.is_file():
            file = DIST / "index.html"
        self._send(200, TYPES[file.suffix], file.read_bytes())

    def _json(self, value: Any) -> None:
        self._send(200, "application/json", json.dumps(value).encode())

    def _problem(self, status: int, title: str) -> None:
        body = {"type": "about:blank", "title": title, "status": status, "detail": "", "request_id": "r1"}
        self._send(status, "application/problem+json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-security-policy", CSP)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class FixtureServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0, login: bool = False, empty: bool = False) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.session = {
            "authenticated": not login, "project": "language", "scope": "read",
            "login_required": login, "projects": ["language", "vision", "demo"], "version": "0",
        }
        self.empty = empty

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def runs(self) -> list[dict[str, Any]]:
        return [] if self.empty else run_list()

    def __enter__(self) -> FixtureServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--login", action="store_true")
    parser.add_argument("--empty", action="store_true")
    options = parser.parse_args()
    with FixtureServer(options.port, options.login, options.empty) as running:
        print(running.url, flush=True)
        while True:
            time.sleep(3600)
