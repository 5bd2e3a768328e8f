"""Commands to trainers: what may be asked, by whom it is asked, and who is told."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwarden import wire
from gradwarden_server.store.commands import LIFETIME_NS, CommandStore
from tests.server.fleet import Fleet, since
from tests.server.test_evaluator import SECOND, Bench
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store
from tests.server.traffic import batch, beat, begin, frame, problem, send
from tests.service import Service, gradwarden

GOOD = [
    ("checksums", {"steps": 4}, {"steps": 4}),
    ("checksums", {}, {"steps": 4}),
    ("capture", {"steps": 1000}, {"steps": 1000}),
    ("speak", {"on": False}, {"on": False}),
    ("speak", {}, {"on": True}),
    ("pause", {}, {}),
    ("resume", {}, {}),
    ("schedule", {"every": 10}, {"every": 10}),
    (
        "schedule",
        {"every": 1, "early": 0, "preset": "full"},
        {"every": 1, "early": 0, "preset": "full"},
    ),
    ("halt", {"reason": "node 7 flips bits"}, {"reason": "node 7 flips bits"}),
]
BAD = [
    ("checksums", {"steps": 0}, "args.steps"),
    ("checksums", {"steps": 1001}, "args.steps"),
    ("checksums", {"steps": "4"}, "args.steps"),
    ("checksums", {"step": 4}, "args.step"),
    ("capture", {"steps": 2.5}, "args.steps"),
    ("capture", {"steps": None}, "args.steps"),
    ("speak", {"on": "yes"}, "args.on"),
    ("speak", {"on": 1}, "args.on"),
    ("pause", {"seconds": 3}, "args.seconds"),
    ("resume", {"now": True}, "args.now"),
    ("schedule", {}, "args"),
    ("schedule", {"every": 0}, "args.every"),
    ("schedule", {"early": -1}, "args.early"),
    ("schedule", {"preset": "heavy"}, "args.preset"),
    ("halt", {"reason": "x" * 300}, "args.reason"),
    ("halt", {"force": True}, "args.force"),
]


def ask(service: Service, run: str, kind: str, **more: Any) -> Any:
    body = {"rank": 0, "kind": kind} | more
    return service.call("POST", f"/v1/runs/{run}/commands", json=body)


@pytest.mark.parametrize(("kind", "args", "heard"), GOOD)
def test_every_kind_reaches_its_rank_with_whole_arguments(
    service: Service, kind: str, args: dict[str, Any], heard: dict[str, Any]
) -> None:
    run = f"good-{kind}-{len(args)}-{sum(map(ord, str(args)))}"
    begin(service, run)
    issued = ask(service, run, kind, args=args)
    assert issued.status_code == 201, issued.text
    (told,) = beat(service, run).json()["commands"]
    assert told == {"id": issued.json()["id"], "kind": kind, "args": heard}


@pytest.mark.parametrize(("kind", "args", "field"), BAD)
def test_wrong_arguments_are_named_and_nobody_is_asked(
    service: Service, kind: str, args: dict[str, Any], field: str
) -> None:
    begin(service, "wrong")
    refusal = problem(ask(service, "wrong", kind, args=args), 422, "invalid-arguments")
    assert refusal["field"] == field
    assert field in refusal["detail"]
    assert beat(service, "wrong").json() == {"commands": []}


def test_a_kind_that_does_not_exist_is_malformed_and_the_kinds_are_listed(
    service: Service,
) -> None:
    begin(service, "unknown")
    refusal = problem(ask(service, "unknown", "reboot"), 400, "malformed")
    assert refusal["field"] == "kind"
    assert "'halt'" in refusal["detail"]


def test_a_halt_through_the_command_line_reaches_rank_0(service: Service) -> None:
    begin(service, "costly")
    at = ("--url", service.url)
    done = gradwarden("halt", "costly", "--reason", "it diverged", *at)
    assert (done.returncode, "asked rank 0 of costly to halt" in done.stdout) == (0, True)
    (told,) = beat(service, "costly").json()["commands"]
    assert (told["kind"], told["args"]) == ("halt", {"reason": "it diverged"})
    missing = gradwarden("halt", "nobody", *at)
    assert (missing.returncode, "no run of that name" in missing.stderr) == (2, True)


def test_a_run_that_is_over_is_not_asked_to_halt(service: Service) -> None:
    begin(service, "over")
    end = frame(1, events=({"kind": "finish", "status": "finished"},))
    assert send(service, batch("over", [end])).status_code == 200
    done = gradwarden("halt", "over", "--url", service.url)
    assert (done.returncode, "nobody was asked" in done.stdout) == (1, True)
    assert beat(service, "over").json() == {"commands": []}


def test_a_command_goes_to_every_rank_that_is_alive(service: Service) -> None:
    begin(service, "pair", world_size=2)
    begin(service, "pair", rank=1, nonce="n1", world_size=2)
    at = ("--url", service.url, "--json")
    done = gradwarden("command", "pair", "schedule", "every=10", "preset=light", *at)
    assert [item["rank"] for item in json.loads(done.stdout)["items"]] == [0, 1]
    for rank in (0, 1):
        (told,) = beat(service, "pair", rank=rank).json()["commands"]
        assert told["args"] == {"every": 10, "preset": "light"}
    one = gradwarden("command", "pair", "checksums", "--rank", "1", *at)
    assert [item["rank"] for item in json.loads(one.stdout)["items"]] == [1]
    for words in (["pause", "now"], ["checksums", "steps=many"], ["reboot"]):
        assert gradwarden("command", "pair", *words, *at).returncode == 2, words


def test_who_asked_what_is_audited(service: Service) -> None:
    begin(service, "audited")
    assert ask(service, "audited", "pause").status_code == 201
    with sqlite3.connect(service.db.removeprefix("sqlite:///")) as connection:
        rows = connection.execute(
            "SELECT actor, data FROM audit WHERE action = 'command.issue' AND subject = 'audited'"
        ).fetchall()
    ((actor, data),) = rows
    assert actor
    assert json.loads(data) == {"rank": 0, "kind": "pause", "args": {}}


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Store, CommandStore]]:
    store = Store(f"sqlite:///{tmp_path}/gw.sqlite")
    store.start()
    yield store, CommandStore(store.database)
    store.database.close()


def issue(commands: CommandStore, kind: Any, args: dict[str, Any], now_ns: int = NOW) -> int:
    made = commands.issue(PROJECT, "r", 0, kind, args, now_ns=now_ns, actor="mei").result()
    assert made is not None
    return made


def test_the_newest_of_a_kind_counts_and_is_not_repeated(
    held: tuple[Store, CommandStore],
) -> None:
    _, commands = held
    first = issue(commands, "pause", {})
    assert issue(commands, "pause", {}) == first
    second = issue(commands, "resume", {})
    third = issue(commands, "pause", {})
    assert len({first, second, third}) == 3, "a pause after a resume is meant"
    told = [c.kind for c in commands.open(PROJECT, "r", 0, NOW)]
    assert told == ["pause", "resume", "pause"]
    on = issue(commands, "speak", {"on": True})
    off = issue(commands, "speak", {"on": False})
    assert issue(commands, "speak", {"on": False}) == off
    assert issue(commands, "speak", {"on": True}) not in (on, off)


def test_commands_expire_and_may_be_given_again(held: tuple[Store, CommandStore]) -> None:
    _, commands = held
    first = issue(commands, "halt", {})
    later = NOW + LIFETIME_NS
    assert commands.open(PROJECT, "r", 0, later - 1)
    assert commands.open(PROJECT, "r", 0, later) == []
    assert issue(commands, "halt", {}, later) != first


def test_commands_stay_within_their_project(held: tuple[Store, CommandStore]) -> None:
    _, commands = held
    issue(commands, "pause", {})
    assert commands.open("other", "r", 0, NOW) == []
    assert not commands.ack("other", "r", 0, 1, NOW).result()


class Cell(Bench):
    """A bench whose run is a cell of three replicas over the three rows of its layout."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for rank in (1, 2):
            self.store.start(rank=rank, world_size=3)
        self.store.database.write(
            lambda connection: connection.exec_driver_sql("UPDATE run SET world_size = 3")
        ).result()

    def report(self, fleet: Fleet, first: int, end: int, mute: tuple[int, ...] = ()) -> None:
        """Steps [first, end) of every rank; those ``mute`` send no matrix, or nothing at all."""
        values = struct.pack("<18f", *([1.0, 0.5, 0, 0, 0, 0] * 3))
        for rank in range(3):
            frames = []
            for step in range(first, end):
                full = fleet.full(rank, step)
                words = [fleet.checksums(rank, step)[n] for n in ("checksum", "weight_checksum")]
                pairs = zip(*(struct.unpack("<3Q", w) for w in words), strict=True)
                wide = b"".join(struct.pack("<2Q", *pair) for pair in pairs)
                speaks = full or (rank == 0 and rank not in mute)
                frames.append(
                    wire.Frame(
                        step + 1,
                        step,
                        self.now + step,
                        {"loss": 1.0},
                        capture="unclipped",
                        stepped=True,
                        values=values if speaks else b"",
                        wide=wide if full else b"",
                        roots=fleet.roots(rank, step),
                    )
                )
            asked = any(fleet.full(rank, step) for step in range(first, end))
            key = wire.StreamKey("r", "a1", rank, f"n-a1-{rank}")
            columns = wire.CHECKSUMS if asked else ()
            self.store.send(wire.Batch(key, tuple(frames), LAYOUT.hash, 3, wide=columns), self.now)

    def asked(self, rank: int) -> list[tuple[str, dict[str, Any]]]:
        """What the service asks of a rank now."""
        held = self.commands.open(PROJECT, "r", rank, self.now)
        return [(command.kind, dict(command.args)) for command in held]


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    made = Cell(tmp_path)
    yield made
    made.store.database.close()


def test_corrupt_weights_are_found_confirmed_and_named_through_the_commands(cell: Cell) -> None:
    fleet = Fleet(ranks=3, rows=3, weights={(1, 2): since(90)})
    cell.report(fleet, 0, 98)
    cell.round()
    assert cell.story() == []
    assert cell.asked(0) == []
    cell.report(fleet, 98, 100)
    cell.round()
    assert [line[:3] for line in cell.story()] == [
        ("ReplicaMismatch", "ticket", "firing"),
        ("ReplicaMismatch", "ticket", "pending"),
    ]
    for rank in range(3):
        assert cell.asked(rank) == [("checksums", {"steps": 256})]
    answering = Fleet(ranks=3, rows=3, weights=fleet.weights, full=lambda rank, step: True)
    cell.report(answering, 100, 104)
    cell.round()
    (page,) = cell.ledger.list(PROJECT, ("firing",), severity="page").items
    assert page.alertname == "ReplicaMismatch"
    words = page.annotations
    assert (words["rank"], words["parameter"]) == ("1", "blocks.2.weight")
    assert (words["last_equal_step"], words["step"]) == ("82", "98")
    assert words["runbook_url"] == "http://gw.example/runbooks/ReplicaMismatch"
    assert len(cell.asked(0)) == 1, "once is enough"


def test_a_crash_asks_neither_twice_nor_never(cell: Cell) -> None:
    fleet = Fleet(ranks=3, rows=3, weights={(1, 2): since(90)})
    cell.report(fleet, 0, 100)
    cell.crash()
    cell.round()
    cell.crash()
    cell.round()
    with cell.store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT rank FROM command ORDER BY rank").all()
    assert [row.rank for row in rows] == [0, 1, 2]


def test_nothing_is_asked_about_the_past(cell: Cell) -> None:
    cell.now -= 3600 * SECOND
    fleet = Fleet(ranks=3, rows=3, weights={(1, 2): since(90)})
    cell.report(fleet, 0, 100)
    cell.now += 3600 * SECOND
    cell.round()
    assert cell.story(), "it is history all the same"
    assert cell.asked(0) == []


def test_the_next_rank_is_asked_to_speak_for_a_mute_one_and_to_stop_again(cell: Cell) -> None:
    fleet = Fleet(ranks=3, rows=3)
    cell.report(fleet, 0, 5)
    for step in range(5, 20):
        cell.round()
        cell.report(fleet, step, step + 1, mute=(0,))
    cell.round()
    assert cell.asked(1) == [("speak", {"on": True})]
    assert cell.asked(2) == []
    cell.report(fleet, 20, 21)
    cell.round()
    assert cell.asked(1) == [("speak", {"on": True}), ("speak", {"on": False})]
