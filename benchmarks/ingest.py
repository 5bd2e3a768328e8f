"""How many samples a second, bytes a sample, and how much processor: our store beside others.

Real training runs are recorded once by ``recorder.py`` (two networks, every step, standard
preset). Every tool gets the same recorded samples over the same client, one process with kept
connections and prepared bodies: many ranks that trained at the same time, each playing the
recording once, from another place on. A sample is a value that was really measured; a column
that was not taken at a step counts for nobody. Ours also stores the steps' scalars, uncounted.

Ours runs in two modes, on SQLite and on PostgreSQL, acknowledging what is durable: flat out,
and sustained, where senders wait whenever compaction falls behind and the clock stops when
nothing is left to compact. Its bytes are pages in use after compaction, roll-ups included. It
judges nothing meanwhile, as the others do not; one line tells of it with evaluation on. The
tools that are slow are cut by time; those that are not installed are named, and what was to be
compared with them is null. The last line of stdout is one JSON object.

    python benchmarks/ingest.py                  # minutes; --quick: a smoke test
    python benchmarks/ingest.py --only sqlite,prometheus
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import recorder
from ingest_peers import (
    client,
    databases,
    modes,
    programs,
    recording,
    remote_write,
    trackers,
    verdict,
)
from ingest_peers.recording import RANKS, Network, Stream

QUICK_STEPS = 64
MOST_STREAMS = 96
TOOLS = (*verdict.DATABASES, "prometheus", "victoria-metrics", "mlflow", "trackio")

Figures = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run once; the exit code is 0 if every goal was met, or the run was a quick one."""
    options = arguments(argv)
    wanted = recorder.recipe(QUICK_STEPS if options.quick else recorder.STEPS)
    networks = recording.load(recorder.recorded(wanted))
    streams = recording.streams(networks, options.streams, time.time_ns())
    figures: Figures = {
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "recorded": describe(networks, options),
        "streams": len(streams),
        "samples": sum(stream.samples for stream in streams),
    }
    print(f"{len(streams)} streams, {figures['samples'] / 1e6:.1f} M samples", flush=True)
    with tempfile.TemporaryDirectory(prefix="gradwarden-bench-") as folder:
        bench = Bench(Path(folder), streams, networks, options)
        bench.run()
    figures |= {"ours": bench.ours, "peers": bench.peers, "absent": bench.absent}
    figures["reached"] = values = verdict.reached(bench.ours, bench.peers)
    figures["load_after"] = [round(load, 1) for load in os.getloadavg()]
    met, goals = verdict.met(values), verdict.goals()
    for name, value in values.items():
        word = {True: "met", False: "NOT MET", None: "NOT MEASURED"}[met[name]]
        print(f"{name:42} {value if value is not None else '-':>10} goal {goals[name]:<6} {word}")
    print(json.dumps({"name": "ingest", "figures": figures, "goals": goals, "met": met}))
    return 0 if options.quick or all(met.values()) else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little data: a smoke test")
    parser.add_argument("--only", default=",".join(TOOLS), help=f"of {', '.join(TOOLS)}")
    parser.add_argument("--streams", type=int, help=f"ranks, {RANKS} of a run (16; quick: 4)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the sustained mode, about")
    parser.add_argument("--patience", type=float, help="seconds for a slow tool (20; quick: 2)")
    options = parser.parse_args(argv)
    options.only = [name.strip() for name in options.only.split(",")]
    unknown = sorted(set(options.only) - set(TOOLS))
    if unknown:
        parser.error(f"--only: no tool {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    if options.streams is None:
        options.streams = 4 if options.quick else 16
    if options.streams < 1 or options.seconds <= 0:
        parser.error("--streams and --seconds: expected more than 0")
    if options.patience is None:
        options.patience = 2.0 if options.quick else 20.0
    return options


def describe(networks: Sequence[Network], options: argparse.Namespace) -> dict[str, Figures]:
    """Say what was recorded."""
    found = {}
    for network in networks:
        found[network.name] = {
            "parameters": len(network.layout.parameters),
            "steps": network.steps,
            "samples": network.samples,
            "holes": round(network.holes, 3),
            "step_ms": round(float(network.gaps_ns.mean()) / 1e6, 1),
        }
        print(
            f"recorded {network.name}: {len(network.layout.parameters)} parameters, "
            f"{network.steps} steps, {network.samples / 1e6:.2f} M samples, "
            f"{network.holes:.0%} of its matrices are holes (columns whose turn had not come)",
            flush=True,
        )
    return found


class Bench:
    """Every tool in its turn; what it measured and what is absent."""

    def __init__(
        self,
        folder: Path,
        streams: Sequence[Stream],
        networks: Sequence[Network],
        options: argparse.Namespace,
    ) -> None:
        self.ours: dict[str, Figures] = {}
        self.peers: dict[str, Figures] = {}
        self.absent: dict[str, str] = {}
        self._folder, self._streams, self._networks = folder, streams, networks
        self._options = options
        self._count = 0

    def run(self) -> None:
        """All that were asked for."""
        for name in self._options.only:
            try:
                if name in verdict.DATABASES:
                    self._database(name)
            except programs.Missing as missing:
                self._miss(name, missing)
        self._time_series()
        patience = self._options.patience
        for name, measure in (("mlflow", trackers.mlflow), ("trackio", trackers.trackio)):
            if name in self._options.only:
                self._peer(name, partial(measure, streams=self._streams, seconds=patience))

    def _database(self, name: str) -> None:
        ours = self.ours.setdefault(name, {})

        def keep(mode: str, figures: Figures) -> None:
            ours[mode] = figures
            show(f"{name} {mode.replace('_', ' ')}", figures)

        flat_out = partial(modes.flat_out, name, patience=5.0 if self._options.quick else 120.0)
        keep("flat_out", flat_out(self._streams, self._new()))
        show_quantities(ours["flat_out"])
        many, seconds = self._enough(ours["flat_out"]), self._options.seconds
        keep("sustained", modes.sustained(name, many, self._new(), seconds=seconds))
        keep("precision_12_bits", flat_out(self._streams, self._new(), bits=12))
        judged = self._streams[:RANKS]
        keep("with_evaluation", flat_out(judged, self._new(), evaluate=True))

    def _enough(self, flat_out: Figures) -> list[Stream]:
        """Streams that last about as long as the sustained mode should."""
        if self._options.quick:
            return list(self._streams)
        each = flat_out["samples"] / len(self._streams)
        lasting = self._options.seconds / (1 - modes.WARM_UP)
        wanted = round(flat_out["samples_per_second"] * lasting / each / RANKS) * RANKS
        count = min(max(wanted, len(self._streams)), MOST_STREAMS)
        return recording.streams(self._networks, count, time.time_ns())

    def _time_series(self) -> None:
        asked = [n for n in ("prometheus", "victoria-metrics") if n in self._options.only]
        if not asked:
            return
        try:
            written = remote_write.bodies(self._streams, remote_write.snappy())
        except programs.Missing as missing:
            for name in asked:
                self._miss(name, missing)
            return
        prepared = client.lanes(written)
        if "prometheus" in asked:
            self._peer("prometheus", partial(databases.prometheus, prepared=prepared))
        if "victoria-metrics" in asked:
            victoria = databases.victoria_metrics
            self._peer("victoria-metrics", partial(victoria, prepared=prepared))
            # JSON is bulky and slower to make: a quarter of the streams is enough to see.
            few = self._streams[: max(1, len(self._streams) // 4)]
            lines = client.lanes(remote_write.lines(few))
            measure = partial(
                victoria, prepared=lines, path="/api/v1/import", headers=databases.IMPORT
            )
            self._peer("victoria-metrics import", measure)

    def _peer(self, name: str, measure: Callable[[Path], Figures]) -> None:
        try:
            self.peers[name] = figures = measure(self._new())
        except programs.Missing as missing:
            self._miss(name, missing)
        else:
            show(name, figures)

    def _miss(self, name: str, missing: programs.Missing) -> None:
        self.absent[name] = str(missing)
        print(f"{name:28} NOT MEASURED: {missing}", flush=True)

    def _new(self) -> Path:
        self._count += 1
        return self._folder / str(self._count)


def show(name: str, figures: Figures) -> None:
    """One line: the rate, the processor in seconds a million samples, the disk."""
    parts = [
        f"{figures['samples_per_second'] / 1e6:9.4f} M samples/s",
        f"{figures['cpu_us_per_sample'] or 0:9.3f} CPU s/M",
    ]
    if "bytes_per_sample" in figures:
        parts.append(f"{figures['bytes_per_sample']:8.3f} bytes/sample")
    if "bytes_per_sample_in_wal" in figures:
        parts.append(f"({figures['bytes_per_sample_in_wal']:.3f} in its log)")
    if "ack_p99_ms" in figures:
        parts.append(f"ack p50 {figures['ack_p50_ms']} p99 {figures['ack_p99_ms']} ms")
    parts.append(f"[{figures['samples'] / 1e6:.2f} M]")
    print(f"{name:28} {'  '.join(parts)}", flush=True)


def show_quantities(figures: Figures) -> None:
    """What one value of each quantity weighs in chunks and roll-ups; histograms together."""
    if figures["samples_counted_by_service"] != figures["samples"]:
        print(f"    not all was compacted: {figures['logged_frames_when_settled']} frames wait")
        return
    for name, size in figures["bytes_per_sample_of"].items():
        if not name.startswith("hist_"):
            print(f"    {name:14} {size:7.3f} bytes/sample")
    print(f"    {'hist_0 to 15':14} {figures['bytes_per_sample_of_histograms']:7.3f} bytes/sample")
    print(
        f"    with the room that the log left {figures['bytes_per_sample_with_free_room']:.3f}, "
        f"without pages and indexes {figures['bytes_per_sample_bodies']:.3f}, "
        f"of it roll-ups {figures['bytes_per_sample_rollups']:.3f}, "
        f"steps, times and scalars {figures['bytes_per_sample_spines']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
