"""Routes of the receivers file: who is told of what, beside amtool over the same routes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwarden_server.model import Alert
from gradwarden_server.notify.routefile import Paging, load, parse
from gradwarden_server.notify.routes import Escalation, Routing, Storm
from gradwarden_server.notify.spec import Receiver, ReceiversError
from tests.needs import missing
from tests.server.pager import firing

NAMES = ("pager", "boss", "vision", "nlp", "chat")
FILE: dict[str, Any] = {
    "receivers": [
        {"name": name, "type": "webhook", "url": f"https://{name}.example"} for name in NAMES
    ],
    "routes": [
        {"matchers": ["environment!=prod", "severity=page"], "receiver": "chat"},
        {"matchers": ['owner="ada@example.com"'], "receiver": "boss", "continue": True},
        {
            "matchers": ["severity=page", "cluster=~a100-.*"],
            "receiver": "pager",
            "group_by": ["cluster"],
            "escalate": {"receiver": "boss", "after_seconds": 300, "unless": "acknowledged"},
        },
        {"matchers": ["team=vision"], "receiver": "vision", "repeat_interval_seconds": 0},
        {"matchers": ["team=~nlp|speech", "severity=ticket"], "receiver": "nlp"},
        {"receiver": "pager", "storm": {"groups": 3, "seconds": 30}},
    ],
}
# Labels of an alert, and who is told of it.
CASES: list[tuple[str, dict[str, str], list[str]]] = [
    ("a page of a run that is not in production goes to the chat alone",
     {"severity": "page", "environment": "dev", "team": "vision"}, ["chat"]),
    ("a page of production on a known cluster pages",
     {"severity": "page", "environment": "prod", "cluster": "a100-3"}, ["pager"]),
    ("an expression is anchored at both ends",
     {"severity": "page", "environment": "prod", "cluster": "xa100-3", "team": "nlp"}, ["pager"]),
    ("an owner is told as well, and the list goes on",
     {"severity": "page", "environment": "prod", "cluster": "a100-1", "owner": "ada@example.com"},
     ["boss", "pager"]),
    ("a ticket of a team goes to the team, whatever its environment",
     {"severity": "ticket", "environment": "dev", "team": "vision"}, ["vision"]),
    ("a team that names two words is told of either",
     {"severity": "ticket", "environment": "prod", "team": "speech"}, ["nlp"]),
    ("what no other route takes falls to the last",
     {"severity": "ticket", "environment": "prod", "team": "robots"}, ["pager"]),
    ("a label that is absent is empty, so it is not prod",
     {"severity": "page"}, ["chat"]),
    ("an owner's ticket goes on to the last",
     {"severity": "ticket", "owner": "ada@example.com"}, ["boss", "pager"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def paging() -> Paging:
    return parse(FILE, "receivers.yml", {})


@pytest.mark.parametrize(("sentence", "labels", "told"), CASES, ids=[case[0] for case in CASES])
def test_who_is_told(
    paging: Paging, sentence: str, labels: dict[str, str], told: list[str]
) -> None:
    assert paging.routing.receivers(labels) == told


def test_amtool_finds_the_same_receivers(tmp_path: Path, paging: Paging) -> None:
    amtool = shutil.which("amtool")
    if amtool is None:
        missing("amtool", "apt-get install prometheus-alertmanager")
    *some, last = paging.routes
    config = {
        "receivers": [{"name": name} for name in NAMES],
        "route": {
            "receiver": last.receiver,
            "routes": [
                {
                    "receiver": route.receiver,
                    "matchers": [str(matcher) for matcher in route.matchers],
                    "continue": route.goes_on,
                }
                for route in some
            ],
        },
    }
    path = tmp_path / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    for sentence, labels, told in CASES:
        words = [f"{name}={value}" for name, value in labels.items()]
        done = subprocess.run(
            [amtool, "config", "routes", "test", f"--config.file={path}", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        # Alertmanager's root takes an alert only where no child did.
        theirs = done.stdout.strip().split(",")
        fell = told[-1:] == ["pager"] and theirs == told[:-1]
        assert theirs == told or fell, sentence


def test_a_route_carries_its_times_escalation_and_storm(paging: Paging) -> None:
    pages, last = paging.routes[2], paging.routes[-1]
    assert pages.escalate == Escalation("boss", 300.0)
    assert pages.storm == Storm(10, 60.0)
    assert last.storm == Storm(3, 30.0)
    assert (last.timing("page").wait_ns, last.timing("ticket").wait_ns) == (0, 30 * 10**9)
    assert paging.routes[3].timing("page").repeat_ns == 0
    assert last.timing("page").repeat_ns == 4 * 3600 * 10**9


def test_groups_are_what_the_route_asks_for(paging: Paging) -> None:
    def keys(routing: Routing, *alerts: Alert) -> list[str]:
        return [lane.key for alert in alerts for lane in routing.lanes(alert)]

    plain = Routing([Receiver("pager", "webhook", "https://pager.example")])
    ticket = firing("r1", "DeadLayer", "ticket")
    assert keys(plain, firing("r1"), firing("r1", "RunStalled"), ticket) == [
        '{}:{alertname="NonFiniteGradient", project="default", run="r1"}',
        '{}:{alertname="RunStalled", project="default", run="r1"}',
        '{}:{project="default", run="r1"}',
    ]
    here = {"environment": "prod", "cluster": "a100-3"}
    cluster = [
        Alert(None, "default", run, {**firing(run).labels, **here}, {}, "firing", 1, 1)
        for run in ("r1", "r2")
    ]
    one, two = keys(paging.routing, *cluster)
    assert one == two
    assert one == ('{}/{severity="page",cluster=~"a100-.*"}:{cluster="a100-3", project="default"}')


def test_an_alert_of_no_run_has_a_group_of_its_name() -> None:
    plain = Routing([Receiver("pager", "webhook", "https://pager.example")])
    labels = {"project": "default", "alertname": "DiskFull", "severity": "ticket"}
    (lane,) = plain.lanes(Alert(None, "default", None, labels, {}, "firing", 1, 1))
    assert lane.labels == {"project": "default", "alertname": "DiskFull"}


def test_notes_wake_nobody_and_a_receiver_hears_only_what_it_asks_for() -> None:
    receivers = [
        Receiver("pager", "webhook", "https://pager.example", ("page",)),
        Receiver("am", "alertmanager", "https://am.example"),
        Receiver("dog", "webhook", "https://dog.example", watchdog_seconds=60),
    ]
    routing = Routing(receivers)
    assert routing.receivers({"severity": "page"}) == ["pager", "am"]
    assert routing.receivers({"severity": "ticket"}) == ["am"]
    assert routing.receivers({"severity": "note"}) == []


def test_nobody_is_told_where_the_last_route_says_so() -> None:
    document = {
        **FILE,
        "routes": [{"matchers": ["severity=page"], "receiver": "pager"}, {"receiver": "nobody"}],
    }
    routing = parse(document, "f", {}).routing
    assert routing.receivers({"severity": "page"}) == ["pager"]
    assert routing.receivers({"severity": "ticket"}) == []


def test_what_a_receiver_does_not_take_is_asked_of_the_routes_behind() -> None:
    chat = {"name": "tickets", "type": "webhook", "url": "https://t.example"}
    chat["severities"] = ["ticket"]
    document = {
        "receivers": [*FILE["receivers"], chat],
        "routes": [{"matchers": ["team=vision"], "receiver": "tickets"}, {"receiver": "pager"}],
    }
    routing = parse(document, "f", {}).routing
    assert routing.receivers({"severity": "page", "team": "vision"}) == ["pager"]
    assert routing.receivers({"severity": "ticket", "team": "vision"}) == ["tickets"]


def test_no_labels_to_group_by_are_one_group() -> None:
    document = {**FILE, "routes": [{"receiver": "pager", "group_by": []}]}
    routing = parse(document, "f", {}).routing
    lanes = [lane for run in ("r1", "r2") for lane in routing.lanes(firing(run))]
    assert {lane.key for lane in lanes} == {'{}:{project="default"}'}


MISTAKES = {
    "receivers": [
        {"name": "pager", "type": "webhook", "url": "ftp://pager.example"},
        {"name": "dog", "type": "webhook", "url": "https://d.example", "watchdog_seconds": 60},
    ],
    "routes": [
        {"receiver": "pagr", "matchers": ["severity~page"], "group_wait": 3},
        {"receiver": "dog", "group_wait_seconds": -1, "continue": "yes"},
        {"receiver": "pager", "escalate": {"receiver": "pager", "unless": "asleep"}},
        "pager",
        {"receiver": "pager", "matchers": ["team=a"], "group_by": "cluster", "storm": 7},
    ],
}


def test_all_mistakes_of_a_file_are_told_together_with_value_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "receivers.yml"
    path.write_text(yaml.safe_dump(MISTAKES))
    with pytest.raises(ReceiversError) as caught:
        load(path, {})
    told = "\n".join(caught.value.mistakes)
    for words in (
        "receiver 'pager': url:",
        "route 1: unknown field 'group_wait'; there are continue, cool_down_seconds, escalate",
        "route 1: receiver: 'pagr' is no receiver of this file; there are nobody, pager",
        "route 1: matchers: 'severity~page' is no matcher; write NAME=VALUE",
        "route 2: receiver: 'dog' hears of the Watchdog alone",
        "route 2: group_wait_seconds: -1; expected 0 to 604800",
        "route 2: continue: 'yes'; expected true or false",
        "route 2: takes everything, so those behind it are never asked",
        "route 3: escalate: receiver: 'pager' is told already",
        "route 3: escalate: unless: 'asleep'; expected acknowledged",
        "route 4: expected a mapping, not 'pager'",
        "route 5: group_by: 'cluster'; expected a list of labels such as [cluster]",
        "route 5: storm: 7; expected {groups: 10, seconds: 60} or false",
        "route 5: matchers: the last route must have none",
    ):
        assert words in told, words
    assert all(str(path) in line for line in caught.value.mistakes)
