"""Silences and causes hold messages back, and nothing that lasts is lost by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.alerting.lifecycle import advance
from gradwarden_server.alerting.muting import Muting
from gradwarden_server.matchers import parse
from gradwarden_server.model import Alert, Change, Condition, Severity, Silence
from gradwarden_server.notify.routes import Route, Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.rules.spec import Inhibition
from tests.server.board import Board
from tests.server.detection import RULES
from tests.server.test_lifecycle import RUN

SECOND = 1_000_000_000
CAUSE = Inhibition("NonFiniteGradient", frozenset({"NonFiniteLoss", "LossSpike"}), 60.0)
PAGER = Receiver("pager", "webhook", "https://pager.example/hook")


def silence(text: str, starts: int, ends: int) -> Silence:
    return Silence(
        7, "default", (parse(text),), starts * SECOND, ends * SECOND, "sre", "maintenance"
    )


@dataclass
class Line:
    """One run's alerts from what rules say to what the pager gets, second by second."""

    muting: Muting
    open: dict[str, Alert] = field(default_factory=dict)
    messages: list[tuple[int, str, str]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        at_once = Route("pager", group_interval_seconds=0.0, repeat_interval_seconds=0.0)
        self._board = Board(Routing([PAGER], [at_once]))

    def say(self, second: int, *says: tuple[str, Severity, bool]) -> None:
        now_ns = second * SECOND
        conditions = [Condition(name, severity, active) for name, severity, active in says]
        raw = advance(self.open, RUN, conditions, now_ns)
        changes, settled = self.muting.apply(self.open, raw, now_ns)
        self._board.change(changes, now_ns)
        for message in self._board.tell(now_ns):
            for told in message.payload["alerts"]:
                word = (second, told["labels"]["alertname"], told["status"])
                self.messages.append(word)
        self.changes += changes
        self.open = settled

    def heard(self) -> list[tuple[int, str, str]]:
        return self.messages


GRADIENT, LOSS = ("NonFiniteGradient", "page", True), ("NonFiniteLoss", "page", True)
GRADIENT_OVER, LOSS_OVER = ("NonFiniteGradient", "page", False), ("NonFiniteLoss", "page", False)


def lines(*muting: Silence, inhibitions: Iterable[Inhibition] = (CAUSE,)) -> Line:
    return Line(Muting(tuple(inhibitions), muting))


def test_one_applied_nan_is_one_page() -> None:
    line = lines()
    line.say(1, GRADIENT, LOSS)
    line.say(2, GRADIENT_OVER)
    line.say(20, LOSS_OVER)
    assert line.heard() == [
        (1, "NonFiniteGradient", "firing"),
        (2, "NonFiniteGradient", "resolved"),
    ]


def test_an_effect_that_lasts_is_told_behind_its_cause() -> None:
    line = lines()
    line.say(1, LOSS, GRADIENT)
    line.say(2, GRADIENT_OVER)
    line.say(61)
    assert ("NonFiniteLoss", "firing") not in {(name, state) for _, name, state in line.heard()}
    line.say(62)
    assert line.heard()[-1] == (62, "NonFiniteLoss", "firing")
    line.say(63, LOSS_OVER)
    assert line.heard()[-1] == (63, "NonFiniteLoss", "resolved")


def test_what_is_worse_than_its_cause_is_told() -> None:
    line = lines()
    line.say(1, ("NonFiniteGradient", "ticket", True), LOSS)
    assert (1, "NonFiniteLoss", "firing") in line.heard()


def test_a_cause_that_comes_later_takes_nothing_back() -> None:
    line = lines()
    line.say(1, LOSS)
    line.say(2, GRADIENT)
    line.say(3, LOSS_OVER)
    assert (1, "NonFiniteLoss", "firing") in line.heard()
    assert (3, "NonFiniteLoss", "resolved") in line.heard()


def test_a_silence_holds_back_and_its_end_tells() -> None:
    line = lines(silence("alertname=NonFiniteGradient", 0, 10))
    line.say(1, GRADIENT)
    line.say(9)
    assert line.heard() == []
    line.say(10)
    assert line.heard() == [(10, "NonFiniteGradient", "firing")]


def test_what_begins_and_ends_under_a_silence_is_never_told() -> None:
    line = lines(silence("alertname=~NonFinite.*", 0, 10))
    line.say(1, GRADIENT)
    line.say(5, GRADIENT_OVER)
    line.say(11)
    assert line.heard() == []
    assert [c.to_state for c in line.changes] == ["pending", "firing", "resolved"]


def test_a_silence_in_the_middle_keeps_the_end() -> None:
    line = lines(silence("alertname=NonFiniteGradient", 2, 100))
    line.say(1, GRADIENT)
    line.say(3)
    line.say(4, GRADIENT_OVER)
    assert line.heard() == [
        (1, "NonFiniteGradient", "firing"),
        (4, "NonFiniteGradient", "resolved"),
    ]
    assert "muted" in {change.reason for change in line.changes}


def test_other_alerts_are_not_silenced() -> None:
    line = lines(silence("alertname=RunStalled", 0, 10))
    line.say(1, GRADIENT)
    assert line.heard() == [(1, "NonFiniteGradient", "firing")]


def test_a_repeated_judgement_changes_nothing() -> None:
    line = lines(silence("alertname=NonFiniteGradient", 0, 10))
    line.say(1, GRADIENT, LOSS)
    before = len(line.changes)
    for _ in range(3):
        line.say(1, GRADIENT, LOSS)
    assert len(line.changes) == before


def test_shipped_causes_never_wait_for_each_other() -> None:
    """Where two causes name each other's effects, one page is left at least."""
    ships = {i.cause: i.effects for i in RULES.inhibitions}
    assert ships
    for cause, effects in ships.items():
        assert cause not in effects
        for effect in effects:
            assert cause not in ships.get(effect, frozenset()), f"{cause} and {effect}"


NAMES = st.sampled_from(["NonFiniteGradient", "NonFiniteLoss", "LossSpike", "RunStalled"])
SAYS = st.tuples(NAMES, st.sampled_from(["page", "ticket"]), st.booleans())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(SAYS, max_size=4), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), NAMES), max_size=3),
)
def test_nobody_is_told_twice_or_left_open(
    history: list[list[tuple[str, Severity, bool]]], silences: list[tuple[int, int, str]]
) -> None:
    """Told alternate beginnings and ends; what still fires at last, unmuted, was told."""
    line = lines(*(silence(f"alertname={n}", at, at + long) for at, long, n in silences))
    for second, says in enumerate(history):
        line.say(3 * second, *says)
    line.say(3 * len(history) + 500)  # every silence and every grace is over
    told: dict[str, str] = {}
    for change in line.changes:
        alert = change.alert
        key = alert.fingerprint
        began = change.to_state == "firing" and change.from_state != "firing" and not alert.muted
        if began or change.reason == "told_late":
            assert told.get(key, "over") == "over"
            told[key] = "firing"
        elif change.to_state == "resolved" and change.from_state == "firing" and alert.told:
            assert told[key] == "firing"
            told[key] = "over"
    standing = {a.fingerprint: a for a in line.open.values() if a.state == "firing"}
    for key, alert in standing.items():
        assert alert.muted or told[key] == "firing"
    assert {key for key, word in told.items() if word == "firing"} <= standing.keys()
