"""``gradwarden drill``: a fault is injected into a run of its own, and its page must arrive.

Delays are by this machine's clock, from the moment at which the first sick message left (or the
last sign of life); what happens inside the service is dated by asking it again and again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from gradwarden_server.cli.drill_faults import FAULTS, Fault
from gradwarden_server.cli.drill_pager import LocalPager
from gradwarden_server.cli.drill_run import DrillRun
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table
from gradwarden_server.model import DRILL

HOPS = ("left", "acked", "judged", "fired", "queued", "delivered")
_WORDS = {
    "left": "sick frames left",
    "acked": "acked: durable in the log",
    "judged": "judged",
    "fired": "alert fired",
    "queued": "message queued",
    "delivered": "delivered",
    "arrived": "arrived at --listen",
}
_BEAT_SECONDS = 1.0
_CLEAN_SECONDS = 30.0
_SOON_SECONDS = 10.0


@dataclass(slots=True)
class Drill:
    """What came of one drill; ``hops`` are seconds since the sick frames left."""

    fault: str
    run: str
    alert: int | None = None
    hops: dict[str, float] = field(default_factory=dict)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    muted: str | None = None
    ok: bool = False
    cleaned: bool = False


def drill(options: argparse.Namespace) -> int:
    """Inject a fault and wait for its page; exit code 1 when nobody was told."""
    client = Client(options)
    if options.list:
        return _list(client, options)
    fault = next((one for one in FAULTS if one.name == options.fault), None)
    if fault is None:
        known = ", ".join(one.name for one in FAULTS)
        raise CommandError(f"no fault {options.fault!r}; there are {known}", USAGE)
    wanted = _listeners(client, fault)
    token = os.environ.get("GRADWARDEN_TOKEN") or None
    run = DrillRun(options.url, token, options.project or "default", fault)
    told = Drill(fault.name, run.run)
    if not options.json:
        print(f"{run.run}: {fault.about}; {fault.severity} {fault.alert}", end=" ")
        print(f"is expected within about {fault.seconds} s", flush=True)
    try:
        with _pager(options.listen) as pager:
            run.begin()
            _inject(client, run, told, wanted, pager, fault.seconds + options.patience)
    finally:
        _clean(client, run, told, options.delete)
        run.close()
    if options.json:
        print(json.dumps(asdict(told), indent=2))
    else:
        _tell(told, fault, wanted)
        print("the run is deleted" if options.delete else f"{told.run} stays and counts nowhere")
    return DONE if told.ok else NO


def _list(client: Client, options: argparse.Namespace) -> int:
    rules = {rule["alert"] for rule in client.call("GET", "/v1/shadow")["rules"]}
    rows = [
        {
            "fault": fault.name,
            "alert": fault.alert,
            "severity": fault.severity,
            "seconds": fault.seconds,
            "rule": "yes" if fault.alert in rules else "not in the service's rules",
            "about": fault.about,
        }
        for fault in FAULTS
    ]
    if options.json:
        print(json.dumps({"items": rows}, indent=2))
        return DONE
    table(("fault", "alert", "severity", "seconds", "rule", "about"), rows, "")
    return DONE


def _listeners(client: Client, fault: Fault) -> list[str]:
    """Who should be told.

    Raises:
        CommandError: nobody, so there is nothing to drill.
    """
    facts = {"severity": fault.severity, "alertname": fault.alert, "environment": DRILL}
    asked = {"label": [f"{name}={value}" for name, value in {**facts, DRILL: "true"}.items()]}
    routes = client.call("GET", "/v1/routes", params=asked)["items"]
    names = list(dict.fromkeys(route["receiver"] for route in routes))
    if not names:
        raise CommandError(
            f"no receiver takes a {fault.severity}: start the service with --receivers FILE", USAGE
        )
    return names


@contextmanager
def _pager(port: int | None) -> Iterator[LocalPager | None]:
    if port is None:
        yield None
        return
    try:
        pager = LocalPager(port)
    except OSError as error:
        raise CommandError(f"--listen {port}: {error.strerror}; name a free port", USAGE) from None
    try:
        yield pager
    finally:
        pager.close()


def _inject(
    client: Client,
    run: DrillRun,
    told: Drill,
    wanted: Sequence[str],
    pager: LocalPager | None,
    patience: float,
) -> None:
    """Fall ill, and note when each hop was first seen."""
    fault = run.fault
    began = time.monotonic()
    told.hops["left"] = 0.0
    run.fall_ill()
    told.hops["acked"] = time.monotonic() - began
    run.go_on()
    until = began + patience
    beaten = began
    while not told.ok and time.monotonic() < until:
        now = time.monotonic()
        if fault.silence and now - beaten >= _BEAT_SECONDS:
            run.beat(but_last=fault.silence == "last_rank")
            beaten = now
        _look(client, run, told, wanted, began)
        if pager is not None and "arrived" not in told.hops:
            arrived = pager.arrived(run.run, fault.alert)
            if arrived is not None:
                told.hops["arrived"] = arrived - began
        told.ok = "delivered" in told.hops and (pager is None or "arrived" in told.hops)
        time.sleep(0.01 if now - began < _SOON_SECONDS else 0.25)


def _look(client: Client, run: DrillRun, told: Drill, wanted: Sequence[str], began: float) -> None:
    """Ask the service how far it is."""

    def hop(name: str) -> None:
        told.hops.setdefault(name, time.monotonic() - began)

    if told.alert is None:
        if "judged" not in told.hops and not client.call("GET", _of(run))["unjudged"]:
            hop("judged")
        found = _alert(client, run)
        if found is None:
            return
        told.alert = found["id"]
        hop("judged")
        hop("fired")
    story = client.call("GET", f"/v1/alerts/{told.alert}")
    told.muted = story.get("muted")
    told.deliveries = [d for d in story["deliveries"] if d["receiver"] in wanted]
    if told.deliveries:
        hop("queued")
    if {d["receiver"] for d in told.deliveries if d["ok"]} == set(wanted):
        hop("delivered")


def _alert(client: Client, run: DrillRun) -> dict[str, Any] | None:
    fault = run.fault
    asked = {"run": run.run, "severity": fault.severity, "limit": "500"}
    for alert in client.call("GET", "/v1/alerts", params=asked)["items"]:
        if alert["alertname"] == fault.alert and alert["fired_at"] is not None:
            found: dict[str, Any] = alert
            return found
    return None


def _clean(client: Client, run: DrillRun, told: Drill, delete: bool) -> None:
    """End the run, so that its alerts resolve, and delete it where that is asked for."""
    if not run.begun:  # the service refused it; why is being told
        return
    run.end()
    until = time.monotonic() + _CLEAN_SECONDS
    while time.monotonic() < until and not told.cleaned:
        standing = {"run": run.run, "state": "pending,firing"}
        judged = not client.call("GET", _of(run))["unjudged"]
        told.cleaned = judged and not client.call("GET", "/v1/alerts", params=standing)["items"]
        time.sleep(0.05)
    if delete:
        client.call("DELETE", _of(run))


def _of(run: DrillRun) -> str:
    return f"/v1/runs/{quote(run.run, safe='')}"


def _tell(told: Drill, fault: Fault, wanted: Sequence[str]) -> None:
    before = 0.0
    for name, words in _WORDS.items():
        if name in told.hops:
            at = told.hops[name]
            print(f"  {words:<28} {at:9.3f} s   +{max(0.0, at - before):.3f} s")
            before = max(before, at)
    for delivery in told.deliveries:
        state = delivery["detail"] or delivery["state"]
        print(f"  {delivery['receiver']}: {state} ({delivery['attempts']} attempts)")
    if told.muted:
        print(f"  its messages are held back: {told.muted}")
    if told.ok:
        print(f"the {fault.severity} arrived at {', '.join(wanted)}")
    else:
        missing = next((h for h in HOPS if h not in told.hops), "arrived")
        print(f"the {fault.severity} did NOT arrive: nothing was seen of: {_WORDS[missing]}")
    print("its alerts are resolved" if told.cleaned else "its alerts still stand", end="; ")
