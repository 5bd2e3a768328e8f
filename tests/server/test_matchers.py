"""Label matchers mean what they mean to Prometheus and Alertmanager."""

from __future__ import annotations

import pytest

from gradwarden_server.matchers import BadMatcher, Matcher, all_match, parse

LABELS = {"alertname": "RunStalled", "run_name": "gpt-7b", "team": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alertname=RunStalled", True),
        ('alertname="RunStalled"', True),
        ("alertname=Run", False),
        ("alertname!=RunStalled", False),
        ("alertname=~Run.*", True),
        ("alertname=~Run", False),
        ("alertname=~RankSilent|RunStalled", True),
        ("alertname!~Run.*", False),
        ("run_name=~gpt-[0-9]+b", True),
        ("cluster=", True),
        ("team=", True),
        ("cluster!=", False),
        ("cluster=~.+", False),
        ("cluster!~.+", True),
    ],
)
def test_a_matcher_reads_one_label(text: str, expected: bool) -> None:
    assert parse(text).matches(LABELS) is expected


def test_matchers_are_told_as_they_are_written() -> None:
    for text in ('a="b"', 'a!="b\\"c"', 'a=~"b.*"', 'a!~"\\\\d"'):
        assert str(parse(text)) == text
        assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize("text", ["", "alertname", "1a=b", "a=~(", "a b=c", "a=" + "x" * 2000])
def test_what_is_no_matcher_is_refused(text: str) -> None:
    with pytest.raises(BadMatcher):
        parse(text)


def test_all_must_match() -> None:
    both = (Matcher("alertname", "RunStalled"), Matcher("run_name", "gpt.*", is_regex=True))
    assert all_match(both, LABELS)
    assert not all_match((*both, Matcher("team", "nlp")), LABELS)


def test_a_hostile_expression_takes_no_time() -> None:
    hostile = Matcher("run_name", "(a+)+$", is_regex=True)
    assert not hostile.matches({"run_name": "a" * 5000 + "b"})
