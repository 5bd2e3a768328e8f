"""Alerts as people live with them: what they cost, what to do, who said what, how others ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.api.runbooks import parsed
from gradwarden_server.api.tallies import tallied
from gradwarden_server.assets import RUNBOOKS
from gradwarden_server.store.alerts.casebook import Outcome
from tests.server.pager import LocalReceiver, eventually, firing, local_receiver
from tests.server.test_diagnosis_api import checkpoint
from tests.server.traffic import LAYOUT, batch, begin, frame, problem, send
from tests.service import Service, gradwarden

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
STEPS, SICK_STEP = 420, 400
RECEIVERS = """\
receivers:
  - name: pager
    type: webhook
    url: {url}
    allow_private: true
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    with local_receiver() as listening:
        yield listening


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, receiver: LocalReceiver) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("life"), receivers=RECEIVERS.format(url=receiver.url))
    yield running
    running.close()


def sicken(house: Service, run: str, row: int = 2, **start: Any) -> None:
    """A run whose second step applies a NaN in one layer."""
    begin(house, run, **start)
    assert send(house, batch(run, [frame(1), frame(2, bad_row=row)])).status_code == 200


def heal(house: Service, run: str) -> None:
    """Enough clean steps for the alert to close."""
    sent = [frame(seq) for seq in range(3, 60)]
    assert send(house, batch(run, sent)).status_code == 200


def alert_of(house: Service, run: str, state: str = "firing") -> dict[str, Any]:
    def ask() -> Any:
        query = {"run": run, "alertname": "NonFiniteGradient", "state": state}
        return next(iter(house.get("/v1/alerts", params=query)["items"]), None)

    found: dict[str, Any] = eventually(ask)
    return found


def notified(house: Service, alert: int) -> dict[str, Any]:
    """The alert once somebody was told of it."""

    def ask() -> Any:
        found = house.get(f"/v1/alerts/{alert}")
        return found if any(n["ok"] for n in found["notified"]) else None

    found: dict[str, Any] = eventually(ask)
    return found


def test_an_alert_says_what_it_costs_what_to_go_back_to_and_what_to_do(house: Service) -> None:
    began_ns = time.time_ns() - HOUR // 60  # a minute of training, seven steps a second
    begin(house, "costly", world_size=1, place={"resume_command": "resume {checkpoint}"})
    for first in range(1, STEPS + 1, 70):
        sent = []
        for seq in range(first, first + 70):
            at_ns = began_ns + (seq - 1) * (HOUR // 60) // STEPS
            saved = (checkpoint(seq - 1),) if seq == 101 else ()
            bad = 2 if seq > SICK_STEP else None
            sent.append(frame(seq, bad, time_ns=at_ns, events=saved))
        assert send(house, batch("costly", sent)).status_code == 200
    alert = notified(house, alert_of(house, "costly")["id"])
    assert (alert["owner"], alert["acknowledged_by"]) == ("mei", None)
    assert alert["runbook_url"].endswith("/runbooks/NonFiniteGradient")
    saved = alert["last_checkpoint"]
    assert (saved["step"], saved["path"], saved["verified"]) == (100, "ckpt/100.pt", False)
    assert saved["age_seconds"] > 40, "it was saved in the first quarter of the minute"
    assert alert["first_action"]["command"] == "resume ckpt/100.pt"
    impact = alert["impact"]
    assert (impact["gpus"], impact["devices"]) == (1, "process")
    sick_ns = began_ns + SICK_STEP * (HOUR // 60) // STEPS
    seconds = (time.time_ns() - sick_ns) / 1e9
    assert 0 < impact["gpu_hours"] * 3600 <= seconds + 1
    told = [(n["receiver"], n["ok"], n["why"]) for n in alert["notified"]]
    assert told == [("pager", True, "fired")]


def test_a_page_that_another_finding_explains_says_what_to_do_about_that_one(
    house: Service,
) -> None:
    """Whoever is woken by an effect is told the first safe action, not where to look for it."""
    begin(house, "badbatch")
    bad = replace(frame(41, bad_row=2), scalars={"loss": float("nan")})
    assert send(house, batch("badbatch", [*map(frame, range(1, 41)), bad])).status_code == 200

    def explained() -> Any:
        found = house.get("/v1/runs/badbatch/diagnosis")["findings"]
        known = {one["id"]: one for one in found}
        effect = next((f for f in found if f["explained_by"] and f["alerts"]), None)
        return effect and (effect["alerts"][0], known[effect["explained_by"]])

    number, cause = eventually(explained)
    alert = house.get(f"/v1/alerts/{number}")
    assert alert["first_action"]["text"] == cause["actions"][0]["text"]


def test_a_list_is_filtered_by_name_and_by_what_is_held_back(house: Service) -> None:
    body = {"matchers": ["run=hushed"], "duration_seconds": 600, "comment": "a known bug"}
    made = house.call("POST", "/v1/silences", json=body).json()
    sicken(house, "hushed")
    sicken(house, "heard")
    alert_of(house, "hushed")
    alert_of(house, "heard")

    def runs(**query: str) -> set[str]:
        items = house.get("/v1/alerts", params={"limit": "500", **query})["items"]
        return {a["labels"]["run"] for a in items} & {"hushed", "heard"}

    assert runs(muted="true") == {"hushed"}
    assert runs(muted="false", alertname="NonFiniteGradient") == {"heard"}
    assert runs(alertname="RunStalled") == set()
    assert runs(severity="page", run="heard", state="firing") == {"heard"}
    assert house.call("DELETE", f"/v1/silences/{made['id']}").status_code == 200


def test_a_timeline_tells_who_was_told_and_who_said_what(house: Service) -> None:
    sicken(house, "told")
    alert = alert_of(house, "told")["id"]
    notified(house, alert)
    done = house.call("POST", f"/v1/alerts/{alert}/ack", json={"note": "node 7 is drained"})
    assert done.json()["acknowledged_by"] == "loopback"
    again = house.call("POST", f"/v1/alerts/{alert}/ack", json={"note": "me too"})
    assert again.json()["acknowledged_at"] == done.json()["acknowledged_at"]
    body = {"matchers": ["run=told"], "duration_seconds": 600, "comment": "storage moves"}
    silence = house.call("POST", "/v1/silences", json=body).json()["id"]
    eventually(lambda: house.get(f"/v1/alerts/{alert}")["muted"])
    house.call("DELETE", f"/v1/silences/{silence}")
    eventually(lambda: not house.get(f"/v1/alerts/{alert}")["muted"])
    heal(house, "told")
    alert_of(house, "told", "resolved")
    written = house.call("POST", f"/v1/alerts/{alert}/notes", json={"text": "  a bad shard "})
    assert (written.status_code, written.json()["text"]) == (201, "a bad shard")
    eventually(lambda: len(house.get(f"/v1/alerts/{alert}")["notified"]) == 2)

    lines = house.get(f"/v1/alerts/{alert}")["timeline"]
    said = [(line["kind"], line["who"], line["text"]) for line in lines]
    assert ("acknowledged", "loopback", "node 7 is drained") in said
    assert ("note", "loopback", "me too") in said
    assert ("muted", None, f"silence {silence} of loopback: storage moves") in said
    assert ("unmuted", None, f"over: silence {silence} of loopback: storage moves") in said
    assert ("note", "loopback", "a bad shard") in said
    kinds = [kind for kind, _, _ in said]
    assert [kinds.count(kind) for kind in ("pending", "firing", "resolved", "notified")] == [
        1, 1, 1, 2,
    ]  # fmt: skip
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("notes", {"text": "   "}, "text"),
        ("notes", {}, "text"),
        ("notes", {"text": "x" * 5000}, "text"),
        ("ack", {"note": ""}, "note"),
        ("ack", {"notes": "x"}, "notes"),
    ],
)
def test_what_says_nothing_is_refused_and_not_kept(
    house: Service, path: str, body: dict[str, Any], field: str
) -> None:
    alert = house.get("/v1/alerts", params={"limit": "1"})["items"][0]["id"]
    before = house.get(f"/v1/alerts/{alert}")["timeline"]
    refused = house.call("POST", f"/v1/alerts/{alert}/{path}", json=body)
    assert field in problem(refused, 400, "malformed")["detail"]
    assert house.get(f"/v1/alerts/{alert}")["timeline"] == before
    absent = house.call("POST", "/v1/alerts/999999/notes", json={"text": "x"})
    problem(absent, 404, "not-found")
    other = {"Gradwarden-Project": "elsewhere"}
    for foreign in (
        house.call("POST", f"/v1/alerts/{alert}/notes", json={"text": "x"}, headers=other),
        house.call("GET", f"/v1/alerts/{alert}/similar", headers=other),
    ):
        problem(foreign, 404, "not-found")


def test_earlier_alerts_of_the_same_layer_come_first_with_how_they_ended(house: Service) -> None:
    sicken(house, "past-same", row=4)
    first = alert_of(house, "past-same")["id"]
    house.call("POST", f"/v1/alerts/{first}/notes", json={"text": "lowered the rate"})
    heal(house, "past-same")
    alert_of(house, "past-same", "resolved")
    sicken(house, "past-other", row=0)
    alert_of(house, "past-other")
    sicken(house, "now", row=4)
    mine = alert_of(house, "now")
    layer = LAYOUT.parameters[4].layer
    items = house.get(f"/v1/alerts/{mine['id']}/similar", params={"limit": "100"})["items"]
    same = [one["run"] for one in items if "layer" in one["alike"]]
    assert same == [one["run"] for one in items[: len(same)]], "what is most alike comes first"
    assert "past-same" in same
    assert "past-other" not in same
    before = next(one for one in items if one["run"] == "past-same")
    assert (before["layer"], before["state"]) == (layer, "resolved")
    assert before["seconds_to_resolve"] >= 0
    assert [n["text"] for n in before["notes"]] == ["lowered the rate"]


def test_what_is_noisy_stands_first_in_the_statistics(house: Service) -> None:
    sicken(house, "counted")
    alert = alert_of(house, "counted")["id"]
    notified(house, alert)
    house.call("POST", f"/v1/alerts/{alert}/ack")
    told = house.get("/v1/alerts/stats", params={"days": "1"})
    (of_name,) = (one for one in told["items"] if one["alertname"] == "NonFiniteGradient")
    assert of_name["paged"] == of_name["told"] >= 1
    assert 0 < of_name["acted_on"] <= of_name["told"]
    assert of_name["to_acknowledge"]["of"] >= 1
    assert of_name["to_detect"]["median"] == 0, "a NaN is seen in its own step"
    refused = house.call("GET", "/v1/alerts/stats", params={"days": "0"})
    assert "days" in problem(refused, 400, "malformed")["detail"]


def incident(name: str, fired: int, over: int | None, **more: Any) -> Outcome:
    noted, told = more.pop("noted", False), more.pop("told", True)
    base = firing(name=name, severity=more.pop("severity", "page"))
    ended = None if over is None else over * SECOND
    state = "firing" if over is None else "resolved"
    times = {"active_ns": fired * SECOND, "fired_ns": fired * SECOND, "resolved_ns": ended}
    return Outcome(replace(base, **{"told": True, "state": state, **times, **more}), noted, told)


def test_statistics_count_what_was_told_acted_on_and_flapping() -> None:
    outcomes = [
        incident("Loud", 100, 110),
        incident("Loud", 120, 130, acked_ns=125 * SECOND),
        incident("Loud", 9000, 9050, noted=True),
        incident("Loud", 9900, None),
        incident("Quiet", 100, 200, severity="note"),
        incident("Held", 300, 400, told=False),
    ]
    told = tallied(30.0, outcomes, lambda alert: (alert.fired_ns or 0) - 4 * SECOND)
    loud, *rest = told.items
    assert (loud.alertname, loud.count, loud.told, loud.acted_on) == ("Loud", 4, 4, 2)
    assert (loud.acted_ratio, loud.flapping) == (0.5, 2)
    assert (loud.to_detect.median, loud.to_detect.p90, loud.to_detect.of) == (4.0, 4.0, 4)
    assert (loud.to_resolve.median, loud.to_resolve.p90, loud.to_resolve.of) == (10.0, 50.0, 3)
    assert (loud.to_acknowledge.median, loud.to_acknowledge.of) == (5.0, 1)
    assert [(one.alertname, one.told, one.acted_ratio) for one in rest] == [
        ("Held", 0, None),
        ("Quiet", 0, None),
    ]
    assert (told.count, told.told, told.acted_ratio) == (6, 4, 0.5)


def test_a_silence_is_previewed_over_a_week_and_moved(house: Service) -> None:
    sicken(house, "previewed")
    heal(house, "previewed")
    alert_of(house, "previewed", "resolved")
    page = house.get("/v1/silences/preview", params={"matcher": ["run=previewed"]})
    assert (page["items"], page["past_7d"]) == ([], 1)
    body = {"matchers": ["run=previewed"], "duration_seconds": 60, "comment": "short"}
    made = house.call("POST", "/v1/silences", json=body).json()
    path = f"/v1/silences/{made['id']}"
    moved = house.call("PATCH", path, json={"extend_seconds": 3600}).json()
    assert moved["ends_at"] > made["ends_at"]
    for wrong in ({}, {"ends_at": "2001-01-01T00:00:00Z"}, {"extend_seconds": 1e12}):
        problem(house.call("PATCH", path, json=wrong), 400, "malformed")
    assert house.get(path)["ends_at"] == moved["ends_at"]
    longer = gradwarden("silence", "extend", str(made["id"]), "--for", "1h", "--url", house.url)
    assert longer.returncode == 0, longer.stderr
    assert house.get(path)["ends_at"] > moved["ends_at"]
    house.call("DELETE", path)
    over = problem(house.call("PATCH", path, json={"extend_seconds": 60}), 400, "malformed")
    assert "make a new one" in over["detail"]


def test_every_runbook_has_a_summary_and_steps(house: Service) -> None:
    told = house.get("/v1/runbooks/NonFiniteGradient")
    assert told["title"] == "NonFiniteGradient"
    assert told["summary"].startswith("A gradient holds NaN or Inf.")
    by_title = {section["title"]: section for section in told["sections"]}
    assert by_title["Mitigate, safest first"]["steps"][0].startswith("Skipped, and a single one")
    assert told["markdown"].startswith("# NonFiniteGradient\n")
    for file in RUNBOOKS.glob("*.md"):
        book = parsed(file.stem, file.read_text(encoding="utf-8"))
        assert book.summary, file.name
        assert any(section.steps for section in book.sections), file.name
        words = " ".join(" ".join((s.title, s.text, *s.steps)) for s in book.sections)
        kept = {word.strip(".*") for word in f"{book.title} {book.summary} {words}".split()}
        lost = {word.strip(".*") for word in book.markdown.split()} - kept
        assert not {word for word in lost if word.strip("#0123456789")}, file.name
    problem(house.call("GET", "/v1/runbooks/Nothing"), 404, "not-found")
    problem(house.call("GET", "/v1/runbooks/..%2FREADME"), 404, "not-found")


def test_the_command_does_what_the_page_does(house: Service) -> None:
    sicken(house, "typed")
    alert = alert_of(house, "typed")["id"]
    at = ("--url", house.url)
    listed = gradwarden("alerts", "list", "--run", "typed", "--json", *at)
    assert [a["id"] for a in json.loads(listed.stdout)["items"]] == [alert]
    assert gradwarden("alerts", "ack", str(alert), "--note", "mine", *at).returncode == 0
    assert gradwarden("alerts", "note", str(alert), "a", "bad", "shard", *at).returncode == 0
    assert "name of typed" in gradwarden("alerts", "--run", "name of typed", *at).stdout
    shown = gradwarden("alerts", str(alert), *at)
    names = [line.split()[0] for line in shown.stdout.partition("\ntimeline")[0].splitlines()]
    assert "runbook_url" in names
    assert sorted(names) == sorted(set(names)), "each fact once"
    assert "acknowledged loopback: mine" in shown.stdout
    assert "note loopback: a bad shard" in shown.stdout
    told = json.loads(gradwarden("alerts", "show", str(alert), "--json", *at).stdout)
    assert {"timeline", "similar", "impact"} <= told.keys()
    stats = gradwarden("alerts", "stats", "--days", "1", *at)
    assert "NonFiniteGradient" in stats.stdout
    assert json.loads(gradwarden("alerts", "stats", "--json", *at).stdout)["days"] == 30
    for wrong in (("alerts", "ack"), ("alerts", "acks", "1"), ("alerts", "note", "x", "y")):
        assert gradwarden(*wrong, *at).returncode == 2


def test_a_run_may_be_said_by_its_name_where_only_one_has_it(house: Service) -> None:
    for run, name in (("n1", "only one"), ("n2", "only one more"), ("n3", "two"), ("n4", "two")):
        begin(house, run, name=name)
        send(house, batch(run, [frame(1)]))
    at = ("--url", house.url)
    assert json.loads(gradwarden("diagnose", "only one", "--json", *at).stdout)["run"] == "n1"
    assert json.loads(gradwarden("runs", "only one", "--json", *at).stdout)["run"] == "n1"
    assert "ranks of n1" in gradwarden("halt", "only one", *at).stdout.replace("rank 0", "ranks")
    written = gradwarden("export", "only one", "-o", "-", "--format", "csv", *at)
    assert written.returncode == 0, written.stderr
    unclear = gradwarden("diagnose", "two", *at)
    assert unclear.returncode == 2
    assert "n3" in unclear.stderr
    assert "n4" in unclear.stderr
    assert "no run of that name" in gradwarden("diagnose", "three", *at).stderr


def test_postgresql_tells_the_same(
    postgres_url: str, tmp_path: Path, receiver: LocalReceiver
) -> None:
    receivers = RECEIVERS.format(url=receiver.url)
    running = Service(tmp_path / "service", db=postgres_url, receivers=receivers)
    try:
        sicken(running, "pg-one", place={"gpu_name": "H100"}, world_size=1)
        first = notified(running, alert_of(running, "pg-one")["id"])
        assert first["impact"]["devices"] == "GPU"
        sicken(running, "pg-two")
        alert = notified(running, alert_of(running, "pg-two")["id"])
        written = running.call("POST", f"/v1/alerts/{alert['id']}/notes", json={"text": "seen"})
        assert written.status_code == 201
        (similar,) = running.get(f"/v1/alerts/{first['id']}/similar")["items"]
        assert [note["text"] for note in similar["notes"]] == ["seen"]
        (counted,) = running.get("/v1/alerts/stats")["items"]
        assert (counted["count"], counted["acted_on"]) == (2, 1)
        weekly = {"days": ["sun"], "at": "02:00", "duration_seconds": 3600}
        body = {"matchers": ["run=x"], "comment": "c", "weekly": weekly}
        made = running.call("POST", "/v1/maintenance", json=body)
        assert made.status_code == 201, made.text
        assert running.get("/v1/maintenance")["items"] == [made.json()]
        preview = running.get("/v1/silences/preview", params={"matcher": "run=pg-one"})
        assert preview["past_7d"] == 1
        assert "Traceback" not in running.log_text()
    finally:
        running.close()
