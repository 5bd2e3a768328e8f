"""When groups are told, of what and whom: the decision alone, at a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.alerting.lifecycle import advance, settle
from gradwarden_server.model import Alert, Condition
from gradwarden_server.notify.routes import Escalation, Route, Routing
from gradwarden_server.notify.spec import Receiver
from tests.server.board import Board, brief
from tests.server.pager import SECOND, run_facts, sick, well

PAGER = Receiver("pager", "webhook", "https://pager.example")
BOSS = Receiver("boss", "webhook", "https://boss.example")
HOUR = 3600
BEGAN = 1_800_000_000


class Desk:
    """Runs and what is told of them, second by second from nought."""

    def __init__(self, *routes: Route) -> None:
        self.board = Board(Routing([PAGER, BOSS], routes))
        self.alerts: dict[str, dict[str, Alert]] = {}

    def say(self, second: float, *conditions: Condition, run: str = "r1") -> list[str]:
        """What a run's detectors say; then what is told."""
        self._change(second, conditions, run)
        return self.at(second)

    def _change(self, second: float, conditions: Sequence[Condition], run: str) -> None:
        now_ns = round((BEGAN + second) * SECOND)
        standing = self.alerts.get(run, {})
        changes = advance(standing, run_facts(run), conditions, now_ns)
        self.alerts[run] = settle(standing, changes)
        self.board.change(changes, now_ns)

    def unseen(self, second: float, *conditions: Condition) -> None:
        """What a run's detectors say while nobody looks."""
        self._change(second, conditions, "r1")

    def at(self, second: float) -> list[str]:
        told = self.board.tell(round((BEGAN + second) * SECOND))
        return [_line(told_one) for told_one in brief(told)]

    def until(self, second: float) -> list[tuple[float, str]]:
        """Everything that time alone brings."""
        lines = []
        while (due := self.board.next_ns()) is not None and due <= (BEGAN + second) * SECOND:
            at = due / SECOND - BEGAN
            lines += [(round(at, 3), line) for line in self.at(at)]
        return lines

    @property
    def why(self) -> list[str]:
        return [why for _, why, _ in self.board.said]


def _line(told: tuple[str, str, Sequence[str]]) -> str:
    receiver, status, alerts = told
    return f"{receiver} {status} {' '.join(alerts)}"


PLAIN = Route("pager", repeat_interval_seconds=0.0)
FIRES, OVER = "pager firing NonFiniteGradient:firing", "pager resolved NonFiniteGradient:resolved"


def test_a_page_leaves_at_once_and_a_ticket_waits_for_others() -> None:
    desk = Desk(PLAIN)
    assert desk.say(0, sick()) == [FIRES]
    assert desk.say(1, sick("DeadLayer", "ticket")) == []
    assert desk.say(9, sick("VanishingGradient", "ticket")) == []
    assert desk.until(60) == [(31.0, "pager firing DeadLayer:firing VanishingGradient:firing")]


def test_a_page_that_was_over_before_it_could_be_told_is_told_once_as_over() -> None:
    desk = Desk(PLAIN)
    desk.unseen(0, sick())
    assert desk.say(1, well()) == [OVER]
    assert desk.why == ["resolved"]
    desk.unseen(10, sick())
    assert desk.say(11, well()) == [], "within the interval it is flapping"
    assert desk.until(HOUR) == []


def test_a_page_that_was_over_is_told_with_the_ticket_that_its_group_waits_for() -> None:
    desk = Desk(replace(PLAIN, group_by=("run",)))
    desk.unseen(0, sick())
    desk.unseen(1, well())
    assert desk.say(2, sick("DeadLayer", "ticket")) == []
    assert [line for _, line in desk.until(60)] == [
        "pager firing DeadLayer:firing NonFiniteGradient:resolved"
    ]


def test_what_flaps_beside_an_incident_is_no_news_of_it() -> None:
    desk = Desk(replace(PLAIN, group_by=("run",)))
    assert desk.say(0, sick("RunStalled")) == ["pager firing RunStalled:firing"]
    stalled = sick("RunStalled")
    for second in range(2, 28, 4):
        assert desk.say(second, stalled, sick()) == []
        assert desk.say(second + 1, stalled, well()) == []
    assert desk.until(HOUR) == []


def test_a_ticket_that_is_over_within_its_wait_is_never_told() -> None:
    desk = Desk(PLAIN)
    assert desk.say(0, sick("DeadLayer", "ticket")) == []
    assert desk.say(10, well("DeadLayer", "ticket")) == []
    assert desk.until(HOUR) == []


def test_what_joins_a_group_waits_for_its_interval_and_the_end_does_not() -> None:
    desk = Desk(replace(PLAIN, group_by=("alertname",)))
    assert desk.say(0, sick()) == [FIRES]
    assert desk.say(5, sick(), run="r2") == []
    assert desk.until(40) == [
        (30.0, "pager firing NonFiniteGradient:firing NonFiniteGradient:firing")
    ]
    assert desk.say(41, well()) == []
    assert desk.say(42, well(), run="r2") == [
        "pager resolved NonFiniteGradient:resolved NonFiniteGradient:resolved"
    ]
    assert desk.until(HOUR) == []


def test_a_group_that_repeats_sooner_than_its_interval_waits_for_it() -> None:
    often = Route("pager", group_by=("alertname",), repeat_interval_seconds=10.0)
    desk = Desk(often)
    assert desk.say(0, sick()) == [FIRES]
    assert desk.say(20, sick(), run="r2") == []
    next_ns = desk.board.next_ns()
    assert next_ns is not None
    assert next_ns == (BEGAN + 30) * SECOND, "never in the past, where the herald would stand still"


def test_flapping_rings_once_an_interval_and_ends_each_time() -> None:
    desk = Desk(PLAIN)
    told = []
    for second in range(0, 60, 2):
        told += [(second, line) for line in desk.say(second, sick())]
        told += [(second + 1, line) for line in desk.say(second + 1, well())]
    told += desk.until(HOUR)
    assert [line for _, line in told] == [FIRES, OVER, FIRES, OVER]
    assert [at for at, _ in told] == [0, 1, 32, 33]


def test_what_comes_back_within_its_cool_down_is_told_if_it_stays() -> None:
    desk = Desk(replace(PLAIN, cool_down_seconds=600.0))
    assert desk.say(0, sick()) == [FIRES]
    assert desk.say(100, well()) == [OVER]
    for second in range(110, 500, 20):
        assert desk.say(second, sick()) == []
        assert desk.say(second + 10, well()) == []
    assert desk.say(600, sick()) == []
    assert desk.until(HOUR) == [(700.0, FIRES)]
    assert desk.say(HOUR, well()) == [OVER]


def test_what_comes_back_after_its_cool_down_is_told_at_once() -> None:
    desk = Desk(replace(PLAIN, cool_down_seconds=600.0))
    desk.say(0, sick())
    desk.say(100, well())
    assert desk.say(701, sick()) == [FIRES]


def test_a_group_is_repeated_until_somebody_cares() -> None:
    desk = Desk(replace(PLAIN, repeat_interval_seconds=4 * HOUR))
    desk.say(0, sick())
    assert desk.until(9 * HOUR) == [(4.0 * HOUR, FIRES), (8.0 * HOUR, FIRES)]
    assert desk.why == ["fired", "repeated", "repeated"]
    desk.board.acknowledge(BEGAN * SECOND)
    assert desk.until(99 * HOUR) == []
    assert desk.say(100 * HOUR, well()) == [OVER]


ESCALATING = replace(PLAIN, escalate=Escalation("boss", 300.0))


def test_a_page_that_nobody_acknowledges_goes_to_the_second_receiver() -> None:
    desk = Desk(ESCALATING)
    assert desk.say(0, sick()) == [FIRES]
    assert desk.until(HOUR) == [(300.0, "boss firing NonFiniteGradient:firing")]
    assert desk.why[-1] == "escalated: nobody acknowledged it within 300 s"
    over = desk.say(HOUR, well())
    assert sorted(over) == ["boss resolved NonFiniteGradient:resolved", OVER]


def test_an_acknowledgement_stops_the_escalation() -> None:
    desk = Desk(ESCALATING)
    desk.say(0, sick())
    desk.at(299)
    desk.board.acknowledge(BEGAN * SECOND)
    assert desk.until(HOUR) == []
    assert desk.say(HOUR, well()) == [OVER]


def test_an_end_before_its_time_stops_the_escalation() -> None:
    desk = Desk(ESCALATING)
    desk.say(0, sick())
    assert desk.say(299, well()) == [OVER]
    assert desk.until(HOUR) == []


def test_a_page_that_cannot_be_delivered_goes_to_the_second_receiver_at_once() -> None:
    desk = Desk(ESCALATING)
    desk.say(0, sick())
    (held,) = desk.board.groups.values()
    held.group = replace(held.group, failing="pager.example does not answer")
    held.due_ns = (BEGAN + 3) * SECOND
    assert desk.at(3) == ["boss firing NonFiniteGradient:firing"]
    assert desk.why[-1] == "escalated: pager.example does not answer"


def test_a_ticket_does_not_escalate() -> None:
    desk = Desk(ESCALATING)
    desk.say(0, sick("DeadLayer", "ticket"))
    assert [line for _, line in desk.until(HOUR)] == ["pager firing DeadLayer:firing"]


def test_an_alertmanager_gets_everything_at_once_and_no_repeats() -> None:
    am = Receiver("am", "alertmanager", "https://am.example")
    desk = Desk()
    desk.board = Board(Routing([am]))
    assert desk.say(0, sick("DeadLayer", "ticket")) == ["am firing DeadLayer:firing"]
    assert desk.say(1, sick("VanishingGradient", "ticket"), sick("DeadLayer", "ticket")) == [
        "am firing DeadLayer:firing VanishingGradient:firing"
    ]
    assert desk.until(99 * HOUR) == []


RUNS = st.sampled_from(["r1", "r2", "r3"])
SAYS = st.tuples(st.integers(0, 90), RUNS, st.sampled_from(["page", "ticket"]), st.booleans())


@settings(max_examples=150, deadline=None)
@given(
    says=st.lists(SAYS, min_size=1, max_size=25),
    by_name=st.booleans(),
    interval=st.sampled_from([0.0, 7.0, 30.0]),
)
def test_whatever_happens_the_last_word_is_what_is_so(
    says: list[tuple[int, str, str, bool]], by_name: bool, interval: float
) -> None:
    """Nobody is left with an open incident or without one, and none is told twice to begin."""
    names = ("alertname",) if by_name else None
    desk = Desk(replace(PLAIN, group_by=names, group_interval_seconds=interval))
    second = 0
    for pause, run, severity, active in says:
        second += pause
        desk.until(second)
        condition = sick if active else well
        desk.say(second, condition("X", severity), run=run)  # type: ignore[arg-type]
    desk.until(second + HOUR)
    open_: dict[str, set[str]] = {}  # a relapse takes the place of what it followed on
    begun: set[tuple[str, str]] = set()
    for _, _, message in desk.board.said:
        for alert in message.payload["alerts"]:
            one = (alert["fingerprint"], alert["startsAt"])
            if alert["status"] == "firing":
                open_.setdefault(message.group_key, set()).add(alert["fingerprint"])
                begun.add(one)
            else:
                missed = alert["labels"]["severity"] == "page"
                assert missed or one in begun, "an end of what never began"
                open_[message.group_key].discard(alert["fingerprint"])
        if message.payload["status"] == "resolved":
            open_[message.group_key] = set()
    fires = {alert.fingerprint for held in desk.alerts.values() for alert in held.values()}
    assert {one for held in open_.values() for one in held} == fires
