"""A run's findings become stories with an origin, a cause, evidence and a first safe action."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradwarden import coverage
from gradwarden_server.diagnosis.case import Happening, Place, Span, Watched, alerts_of
from gradwarden_server.diagnosis.causes import LINKS
from gradwarden_server.diagnosis.changes import NAMES, lr_jump
from gradwarden_server.diagnosis.patterns import PATTERNS
from gradwarden_server.model import Change
from tests.server.detection import RULES
from tests.server.diagnosing import (
    PARAMETERS,
    SECOND,
    Stored,
    alert,
    armed,
    case,
    chains,
    flat,
    mark,
    saved,
    stepped,
    told,
)

JUMPED = Stored(
    {
        "lr": stepped(1e-3, 1e-1, 1000, 1100),
        "grad_norm": flat(1.0, 999) | {s: 1.5 ** min(s - 999, 30) for s in range(1000, 1040)},
        "loss": flat(2.0, 1039) | {1040: math.nan},
    }
)
STORY = (
    alert("ExplodingGradient", 1004, "page", summary="gradient 300x its baseline at step 1004"),
    alert("NonFiniteLoss", 1040, "page", summary="loss is NaN at step 1040"),
    alert("RunFailed", 1041, "page", seen=1641, summary="run failed", cause="rank 0: bad loss"),
)


def test_a_jump_of_the_learning_rate_is_the_root_of_all_that_follows() -> None:
    found = told(case(*STORY, last=1041, status="failed"), JUMPED)
    assert chains(found) == [
        ["LearningRateJump", "ExplodingGradient", "NonFiniteLoss", "RunFailed"]
    ]
    root = found.finding(found.stories[0].root)
    assert (root.kind, root.step, root.confidence) == ("change", 1000, "high")
    assert "0.001 to 0.1 at step 1000" in root.symptom
    assert "0.001 to 0.1 at step 1000" in found.headline
    parents = {f.name: f.explained_by for f in found.findings}
    assert parents == {
        "LearningRateJump": None,
        "ExplodingGradient": "LearningRateJump@1:1000",
        "NonFiniteLoss": "ExplodingGradient@1:1004",
        "RunFailed": "NonFiniteLoss@1:1040",
    }
    assert root.explains == ("ExplodingGradient@1:1004",)
    assert "(0.001)" in root.actions[0].text
    assert [f.actions[0].command for f in found.findings[1:]] == [None] * 3


@pytest.mark.parametrize(
    ("alerts", "expected"),
    [
        pytest.param(
            [alert("NonFiniteLoss", 500), alert("RunFailed", 520, cause="rank 0: ValueError")],
            [["NonFiniteLoss", "RunFailed"]],
            id="a failure after NaN names NaN",
        ),
        pytest.param(
            [alert("NonFiniteLoss", 500), alert("RunFailed", 520, cause="CUDA out of memory")],
            [["NonFiniteLoss"], ["RunFailed"]],
            id="want of memory does not come from NaN",
        ),
        pytest.param(
            [
                alert("GpuMemoryPressure", 400, "ticket"),
                alert("RunFailed", 520, cause="torch.OutOfMemoryError"),
            ],
            [["GpuMemoryPressure", "RunFailed"]],
            id="it comes from pressure",
        ),
        pytest.param(
            [
                alert("AllReduceSlow", 800, "ticket"),
                alert("ThroughputDrop", 700, "ticket"),
                alert("Straggler", 900, "ticket"),
            ],
            [["Straggler", "ThroughputDrop", "AllReduceSlow"]],
            id="a straggler explains slow transfers and the drop, whoever was confirmed first",
        ),
        pytest.param(
            [alert("ThroughputDrop", 700, "ticket"), alert("InputBound", 900, "ticket")],
            [["InputBound", "ThroughputDrop"]],
            id="waiting for data explains the drop",
        ),
        pytest.param(
            [
                alert("InputBound", 100, "ticket", until=150),
                alert("ThroughputDrop", 700, "ticket"),
            ],
            [["ThroughputDrop"], ["InputBound"]],
            id="but not when it was over by then",
        ),
        pytest.param(
            [
                alert("NonFiniteGradient", 300, "note", summary="2 steps in a row skipped"),
                alert("LossScaleCollapse", 310, "ticket"),
            ],
            [["LossScaleCollapse", "NonFiniteGradient"]],
            id="a collapsing scale explains skipped steps",
        ),
        pytest.param(
            [
                alert("NonFiniteGradient", 300, summary="NaN applied to the weights"),
                alert("LossScaleCollapse", 310, "ticket"),
            ],
            [["NonFiniteGradient"], ["LossScaleCollapse"]],
            id="and never an applied one",
        ),
        pytest.param(
            [
                alert("NonFiniteGradient", 300, bracket="the loss or the input (9 of 9 bad)"),
                alert("NonFiniteLoss", 300),
            ],
            [["NonFiniteLoss", "NonFiniteGradient"]],
            id="a bad loss makes every gradient of its step bad",
        ),
        pytest.param(
            [
                alert("NonFiniteGradient", 300, bracket="between head (clean) and fc (bad)"),
                alert("NonFiniteLoss", 301),
            ],
            [["NonFiniteGradient", "NonFiniteLoss"]],
            id="a bad gradient makes the next loss bad",
        ),
        pytest.param(
            [alert("NonFiniteLoss", 200), alert("LossScaleCollapse", 209)],
            [["NonFiniteLoss", "LossScaleCollapse"]],
            id="no scale heals a bad loss",
        ),
        pytest.param(
            [
                alert("LossSpike", 500, "note", until=520),
                alert("LossDivergence", 500, "ticket", seen=600),
            ],
            [["LossDivergence", "LossSpike"]],
            id="a loss that diverges may begin with a spike",
        ),
        pytest.param(
            [
                alert("ExplodingGradient", 100, "note", until=110),
                alert("NonFiniteGradient", 900),
            ],
            [["NonFiniteGradient"], ["ExplodingGradient"]],
            id="a spike that healed long ago explains nothing",
        ),
        pytest.param(
            [alert("NonFiniteLoss", 900), alert("ReplicaMismatch", 100, until=120)],
            [["NonFiniteLoss"], ["ReplicaMismatch"]],
            id="without a known way they are two stories, what stands first",
        ),
        pytest.param(
            [alert("NonFiniteLoss", 900, attempt=1), alert("RunFailed", 950, attempt=2)],
            [["NonFiniteLoss"], ["RunFailed"]],
            id="what an attempt died of is not what the next one died of",
        ),
    ],
)
def test_findings_are_joined_to_their_causes(alerts: list, expected: list[list[str]]) -> None:
    assert chains(told(case(*alerts, status="failed"))) == expected


def test_no_finding_explains_itself_by_way_of_others() -> None:
    for cause, effect in LINKS:
        alerts = [alert(cause, 100), alert(effect, 100)] if cause not in NAMES else []
        found = told(case(*alerts))
        for start in found.findings:
            at, seen = start, set()
            while at.explained_by is not None:
                assert at.id not in seen, f"{cause} and {effect} explain each other"
                seen.add(at.id)
                at = found.finding(at.explained_by)


def test_one_sickness_at_rising_severity_is_one_finding_from_its_first_sign() -> None:
    alerts = [
        alert("ExplodingGradient", 500, "note", until=503, summary="12x"),
        alert("ExplodingGradient", 503, "ticket", until=520, summary="50x"),
        alert("ExplodingGradient", 520, "page", summary="900x"),
        alert("ExplodingGradient", 1500, "note", seen=3000, until=3010),
    ]
    alerts[2] = replace(alerts[2], resolved_ns=600 * SECOND, state="resolved")
    found = told(case(*alerts))
    (first, again) = found.findings
    assert (first.step, first.severity, first.symptom) == (500, "page", "900x")
    assert len(first.alerts) == 3
    assert (again.step, again.severity) == (1500, "note")


def test_the_history_of_alerts_is_read_from_transitions() -> None:
    one = alert("ExplodingGradient", 5)
    pending = replace(one, id=None, state="pending")
    again = replace(one, active_ns=90 * SECOND)
    changes = [
        Change(pending, "inactive", 1, ""),
        Change(one, "pending", 1, ""),
        Change(replace(one, state="resolved", resolved_ns=2), "firing", 2, ""),
        Change(again, "inactive", 3, ""),
    ]
    assert [(a.active_ns, a.state) for a in alerts_of(changes)] == [
        (one.active_ns, "resolved"),
        (again.active_ns, "firing"),
    ]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (flat(0.1, 200), None),
        (stepped(1e-3, 1e-1, 100, 200), (100, 1e-3, 1e-1)),
        (stepped(1e-1, 1e-3, 100, 200), None),
        ({s: 1e-5 * s for s in range(1, 300)}, None),
        ({s: 0.1 * math.cos(s / 200) for s in range(200)}, None),
        ({s: 1e-3 if s < 50 else 1e-3 * min(10.0, 1.6 ** (s - 49)) for s in range(90)}, "rises"),
        ({0: 1e-3, 4: 1e-3, 5: 1e-3, 6: math.nan, 7: 1e-1}, (7, 1e-3, 1e-1)),
        ({}, None),
    ],
    ids=["flat", "jump", "fall", "warm-up", "cosine", "in ten steps", "a gap", "unknown"],
)
def test_a_jump_of_the_learning_rate_is_no_schedule(rates: dict, expected: object) -> None:
    found = lr_jump(sorted(rates.items()))
    if expected == "rises":
        assert found is not None
        assert found[0] == 50
    else:
        assert found == expected


def test_a_mark_is_a_medium_cause_of_what_follows_soon() -> None:
    shift = alert("GradientShift", 540, "note")
    found = told(case(shift, events=[mark(500, "data", "v2"), mark(100, "old")]))
    assert chains(found) == [["Mark", "GradientShift"]]
    assert found.finding("GradientShift@1:540").confidence == "medium"
    assert "data = v2" in found.findings[0].symptom
    late = told(case(shift, events=[mark(400, "data", "v2")]))
    assert chains(late) == [["GradientShift"]]


def test_changes_that_led_to_nothing_are_not_told() -> None:
    found = told(case(alert("InputBound", 540, "ticket"), events=[mark(430, "data")]), JUMPED)
    assert [f.name for f in found.findings] == ["InputBound"]


CHECKPOINTS = [saved(step) for step in (200, 600, 795, 801, 1000)]


@pytest.mark.parametrize(
    ("events", "step", "reason"),
    [
        (CHECKPOINTS, 795, "205 steps before the first sign"),
        ([saved(800)], 800, "200 steps before"),
        ([saved(801)], None, "step 801: fewer than 200 clean steps behind it"),
        ([*CHECKPOINTS[:2], saved(795, finite=False)], 600, "400 steps"),
        ([*CHECKPOINTS[:2], saved(795, finite=None)], 600, "400 steps"),
        ([*CHECKPOINTS[:2], saved(795, ok=False)], 600, "400 steps"),
        ([*CHECKPOINTS[:2], saved(795, sha256=None)], 600, "400 steps"),
        ([saved(300, "last.pt"), saved(900, "last.pt")], None, "fewer than 200"),
        ([], None, "monitor.checkpoint(path, step)"),
    ],
)
def test_the_last_good_checkpoint(events: list, step: int | None, reason: str) -> None:
    found = told(case(alert("NonFiniteGradient", 1000, summary="applied"), events=events))
    good = found.last_good_checkpoint
    assert (good.step if good else None) == step
    assert reason in found.checkpoint_note


def test_a_corrupt_checkpoint_and_one_of_a_dead_branch_are_not_good() -> None:
    bad = alert("CheckpointCorrupt", 700, path="ckpt/600.pt")
    found = told(case(bad, alert("ExplodingGradient", 1000), events=CHECKPOINTS[:2]))
    assert found.last_good_checkpoint is not None
    assert found.last_good_checkpoint.step == 200
    attempts = [Span(1, 0, 900, 300), Span(2, 301)]
    found = told(case(alert("ExplodingGradient", 1000), events=CHECKPOINTS[:3], attempts=attempts))
    assert found.last_good_checkpoint is not None
    assert found.last_good_checkpoint.step == 200


def looked(step: int, path: str, verified: bool | None, ok: bool = True) -> Happening:
    data = {"path": path, "verified": verified, "ok": ok}
    return Happening(1, 0, step, step * SECOND, "checkpoint", data)


def test_a_look_at_a_checkpoint_is_no_save_and_counts() -> None:
    sick = alert("ExplodingGradient", 1000)
    path = "ckpt/600.pt"
    found = told(case(sick, events=[*CHECKPOINTS[:2], looked(900, path, True)]))
    assert found.last_good_checkpoint is not None
    assert found.last_good_checkpoint.step == 600
    assert "checksum verified since" in found.checkpoint_note
    found = told(case(sick, events=[*CHECKPOINTS[:2], looked(900, path, False, ok=False)]))
    assert found.last_good_checkpoint is not None
    assert found.last_good_checkpoint.step == 200


def test_why_no_rank_is_named_is_evidence_and_no_rank() -> None:
    why = "no rank: finite on each of them, and too large when they were summed"
    (finding,) = told(case(replace(SICK, annotations={**SICK.annotations, "rank": why}))).findings
    assert finding.rank is None
    assert why in [item.text for item in finding.evidence]


def test_what_the_guard_did_about_it_is_evidence() -> None:
    acted = Happening(
        1, 0, 1002, 0, "guard", {"action": "skip_step", "step": 1000, "reason": "NaN"}
    )
    (finding,) = told(case(SICK, events=[acted])).findings
    assert finding.evidence[-1].text == "the guard at step 1000: skip_step: NaN"


def test_notes_and_slowness_leave_checkpoints_good() -> None:
    calm = [alert("ExplodingGradient", 100, "note", until=110), alert("InputBound", 50, "ticket")]
    found = told(case(*calm, events=CHECKPOINTS, last=1150))
    assert found.last_good_checkpoint is not None
    assert found.last_good_checkpoint.step == 801  # of 1000 there are only 150 steps behind it


SICK = alert(
    "NonFiniteGradient",
    1000,
    summary="NaN or Inf applied to the weights at step 1000",
    first_action="Stop the run.",
)


@pytest.mark.parametrize(
    ("facts", "path", "events", "command"),
    [
        ({}, "", [], None),
        ({"resume_command": "make resume"}, "", [], "make resume"),
        (
            {"resume_command": "train --from {checkpoint} --step {step}"},
            "my ckpt/600.pt",
            [],
            "train --from 'my ckpt/600.pt' --step 600",
        ),
        ({"slurm_job": "77"}, "", [], "scontrol requeue 77"),
        ({"slurm_job": "77"}, "", [saved(990)], None),
        ({"pod": "t-0", "namespace": "ml"}, "", [], "kubectl delete pod t-0 --namespace ml"),
        ({"pod": "t-0"}, "", [], None),
        (
            {"trainer": "transformers"},
            "out/checkpoint-600",
            [saved(990)],
            "trainer.train(resume_from_checkpoint='out/checkpoint-600')",
        ),
        ({"trainer": "transformers"}, "out/other", [saved(990)], None),
    ],
)
def test_a_command_is_given_only_where_it_is_known_to_be_right(
    facts: dict, path: str, events: list, command: str | None
) -> None:
    places = [Place(0, "host0", facts)]
    found = told(case(SICK, events=[saved(600, path), *events], places=places))
    (action, *_) = found.findings[0].actions
    assert action.command == command
    assert "(step 600)" in action.text
    assert action.loses is not None
    assert action.loses.startswith("1,400 steps x 1 process")


def test_a_command_that_needs_a_checkpoint_is_not_given_without_one() -> None:
    places = [Place(0, "h", {"resume_command": "train --from {checkpoint}"})]
    (action,) = told(case(SICK, places=places)).findings[0].actions
    assert action.command is None
    assert "No checkpoint is known" in action.text


def test_what_an_action_loses_is_told_in_steps_and_gpu_hours() -> None:
    places = [Place(r, "h", {"gpu_name": "H100"}) for r in range(8)]
    series = Stored({"step_seconds": flat(1.8, 2000)})
    found = told(case(SICK, events=[saved(600)], world=8, places=places), series)
    assert found.findings[0].actions[0].loses == "1,400 steps x 8 GPUs, about 5.6 GPU-hours"


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        ({"node": "n7"}, None),
        ({"node": "n7", "pod": "t-3"}, "kubectl cordon n7"),
        (
            {"node": "n7", "slurm_job": "5"},
            "scontrol update NodeName=n7 State=DRAIN Reason='gradwarden: ReplicaMismatch in r'",
        ),
        ({"pod": "t-3"}, None),
    ],
)
def test_a_rank_that_flips_bits_costs_its_node_its_place(facts: dict, command: str | None) -> None:
    places = [Place(3, "t-3", facts)]
    found = told(case(alert("ReplicaMismatch", 50, rank="3"), places=places, world=4))
    finding = found.findings[0]
    assert finding.node == facts.get("node", "t-3")
    assert finding.actions[-1].command == command


@pytest.mark.parametrize(("phase", "actions"), [("data", 1), ("outside", 1), ("backward", 2)])
def test_a_slow_ranks_node_is_in_doubt_only_where_its_device_is_slow(
    phase: str, actions: int
) -> None:
    slow = alert("Straggler", 500, "ticket", rank="3", phase=phase, first_action="Look at it.")
    found = told(case(slow, places=[Place(3, "n3")], world=4))
    assert len(found.findings[0].actions) == actions


def test_the_rank_that_died_first_is_named_by_the_silence_of_its_end() -> None:
    lost = alert(
        "RunFailed",
        500,
        summary="run failed at step 500: a collective was aborted on rank 0",
        cause="rank 0: Connection closed by peer",
        rank="0",
    )
    ends = [Happening(1, rank, 500, 0, "finish", {"status": "failed"}) for rank in (0, 2)]
    places = [Place(rank, f"host{rank}") for rank in range(3)]
    (finding,) = told(case(lost, events=ends, places=places, world=3)).findings
    assert (finding.rank, finding.node) == ("1", "host1")
    assert finding.cause.startswith("rank 1 on host1 ended without a word")
    everyone = [*ends, Happening(1, 1, 500, 0, "finish", {"status": "failed"})]
    (finding,) = told(case(lost, events=everyone, places=places, world=3)).findings
    assert (finding.rank, finding.cause) == ("0", "rank 0: Connection closed by peer")


def test_times_are_compared_by_their_medians() -> None:
    times = {s: 1.0 if s < 500 else 0.01 if s == 505 else 3.0 for s in range(400, 531)}
    (finding,) = told(
        case(alert("InputBound", 500, "ticket")), Stored({"data_seconds": times})
    ).findings
    (item,) = finding.evidence
    assert item.text == "data_seconds went from 1 to 3 at step 500 (3x)"


def test_evidence_shows_before_and_after_and_links_to_it() -> None:
    series = Stored(
        {"loss": stepped(2.0, math.inf, 1000, 1010), "grad_norm": flat(1.0, 1010)},
        {("blocks.1.fc.weight", "absmax"): stepped(0.5, 6e4, 998, 1010)},
    )
    sick = alert("NonFiniteGradient", 1000, layer="blocks.1.fc", parameter=PARAMETERS[2])
    (finding,) = told(case(sick), series).findings
    shown = {item.series: item for item in finding.evidence}
    assert shown["loss"].text == "loss is inf at step 1000, 2 in the steps before"
    peak = shown["layer:2:absmax"]
    assert peak.text.startswith("absmax of blocks.1.fc.weight went from 0.5 to 6e+04 at step 1000")
    assert (peak.first_step, peak.last_step, peak.layer) == (900, 1030, PARAMETERS[2])
    assert peak.path == "/runs/r?m=absmax&from=850&to=1080&row=2"
    assert "grad_norm" not in shown, "what did not change is no evidence"


def test_what_was_watched_and_silent_is_ruled_out_and_what_was_blind_is_not() -> None:
    watched = armed(
        "ExplodingGradient",
        "LossDivergence",
        ReplicaMismatch="one rank: there is no replica to compare with",
        NormSelfCheckFailed="no norm: call clip_grad_norm_(parameters)",
    )
    series = Stored({"lr": flat(1e-3, 1000)})
    (finding,) = told(case(SICK, coverage=watched), series).findings
    out = {item.what: item.by for item in finding.ruled_out}
    assert out["ExplodingGradient"] == "watched for, and nothing seen up to step 1000"
    assert out["a jump of the learning rate"] == "it was 0.001 over steps 800-1000"
    assert "a restart" in out
    assert out["ReplicaMismatch"].startswith("one rank"), "where nothing could be, nothing was"
    left = {item.what: item.by for item in finding.not_ruled_out}
    assert left == {"NormSelfCheckFailed": "blind: no norm: call clip_grad_norm_(parameters)"}
    assert finding.confidence == "high"


def test_what_follows_from_a_cause_is_not_told_as_another_cause_of_it() -> None:
    behind = alert("NonFiniteGradient", 1000, bracket="between the loss or the input and head")
    both = (alert("NonFiniteLoss", 1000), behind)
    found = told(case(*both, coverage=armed("NonFiniteGradient")))
    (chain,) = chains(found)
    assert chain == ["NonFiniteLoss", "NonFiniteGradient"]
    root = found.finding(found.stories[0].root)
    assert "NonFiniteGradient" not in {i.what for i in (*root.ruled_out, *root.not_ruled_out)}
    apart = told(case(alert("NonFiniteLoss", 1000), alert("ExplodingGradient", 100, until=200)))
    loss = next(f for f in apart.findings if f.name == "NonFiniteLoss")
    assert "ExplodingGradient" in {i.what for i in loss.not_ruled_out}


def test_a_rate_that_climbed_step_by_step_is_not_ruled_out() -> None:
    series = Stored({"lr": {s: 1e-3 * 1.05 ** max(0, s - 900) for s in range(1001)}})
    (finding,) = told(case(SICK), series).findings
    what = "a jump of the learning rate"
    assert what not in {item.what for item in finding.ruled_out}
    left = {item.what: item.by for item in finding.not_ruled_out}
    assert left[what] == "it grew step by step, from 0.001 to 0.132 over steps 800-1000"


def test_detectors_that_were_still_learning_rule_nothing_out() -> None:
    watched = armed("ExplodingGradient", "LossDivergence")
    (finding,) = told(case(alert("NonFiniteGradient", 20), coverage=watched)).findings
    assert not {"ExplodingGradient", "LossDivergence"} & {i.what for i in finding.ruled_out}
    late = [Span(1, 0, 900, None), Span(2, 901)]
    again = alert("NonFiniteGradient", 950, attempt=2)
    (finding,) = told(case(again, coverage=watched, attempts=late)).findings
    assert "ExplodingGradient" not in {i.what for i in finding.ruled_out}


def test_confidence_falls_where_most_was_not_watched() -> None:
    watched = [
        Watched("ExplodingGradient", "waiting", "20 of 100 steps"),
        Watched("LossDivergence", "blind", "add monitor.log(loss=loss)"),
    ]
    (finding,) = told(case(SICK, coverage=watched)).findings
    assert finding.confidence == "medium"
    assert "not ruled out: ExplodingGradient, LossDivergence" in finding.why


ODD = Stored(
    {
        "loss": stepped(2.0, 2.8, 970, 1000),
        "grad_norm": flat(1.0, 1000),
        "lr": flat(1e-3, 1000),
        "data_seconds": stepped(0.1, 0.13, 970, 1000),
    }
)


def test_without_a_known_pattern_the_nearest_say_what_speaks_against_them() -> None:
    watched = armed("LossDivergence", "ExplodingGradient", InputBound="add monitor.log(x=x)")
    found = told(case(coverage=watched, last=1000), ODD)
    assert [near.name for near in found.closest] == ["LossDivergence", "InputBound"]
    loss, loader = found.closest
    assert loss.signs[0].text == "loss went from 2 to 2.8 at step 970 (1.4x)"
    assert (loss.signs[0].first_step, loss.signs[0].last_step) == (870, 1000)
    assert "its detector watched up to step 1000" in loss.against[0]
    assert "grad_norm and lr stood still" in loss.against[1]
    assert loader.signs[0].text.startswith("data_seconds went from 0.1 to 0.13")


def test_nothing_comes_near_where_a_pattern_fits_or_nothing_moved() -> None:
    watched = armed("LossDivergence", "ExplodingGradient")
    still = Stored({"loss": flat(2.0, 1000), "grad_norm": flat(1.0, 1000)})
    assert told(case(coverage=watched, last=1000), still).closest == ()
    assert told(case(SICK, coverage=watched, last=1000), ODD).closest == ()
    healing = Stored({"loss": stepped(2.8, 2.0, 970, 1000)})
    assert told(case(coverage=watched, last=1000), healing).closest == (), "a loss that falls"


def test_an_alert_of_ones_own_rule_is_asked_about_at_its_step() -> None:
    own = alert("MyRule", 970, "ticket", summary="validation is late")
    found = told(case(own, coverage=armed("LossDivergence"), last=2000), ODD)
    assert [near.name for near in found.closest] == ["LossDivergence"]


def test_a_healthy_run_and_one_that_is_partly_watched() -> None:
    well = told(case(coverage=armed("A", "B", "C", "D")))
    assert well.verdict == "healthy"
    assert well.headline == "no known pattern; 4 of 4 detectors armed"
    blind = armed("A", "B", "C", D="add monitor.log(loss=loss)", E="one rank: nothing to compare")
    partly = told(case(coverage=blind))
    assert partly.verdict == "healthy (partly watched)"
    assert (partly.coverage.armed, partly.coverage.of) == (3, 4)
    assert [gap.by for gap in partly.coverage.gaps] == ["add monitor.log(loss=loss)"]


def test_what_healed_is_told_and_what_only_ended_with_the_run_did_not_heal() -> None:
    over = alert("InputBound", 100, "ticket", until=300)
    healed = told(case(over))
    assert (healed.verdict, healed.findings[0].state) == ("healthy", "healed")
    assert "healed by now: InputBound at step 100" in healed.headline
    assert healed.findings[0].actions[0].text.startswith("Nothing now: it went by itself.")
    harm = alert("ExplodingGradient", 100, "ticket", until=300)
    assert told(case(harm, events=[saved(1000)])).last_good_checkpoint is not None
    ended = told(case(replace(over, reason="run_finished"), status="finished"))
    assert (ended.verdict, ended.findings[0].state) == ("at risk", "ended")


def test_notes_alone_leave_a_run_healthy() -> None:
    note = alert("LossSpike", 300, "note", until=320, first_action="Nothing, if it heals.")
    found = told(case(note))
    assert (found.verdict, found.headline) == (
        "healthy",
        "a note and nothing more; 0 of 0 detectors armed",
    )
    assert found.findings[0].actions[0].text == "Nothing now: it went by itself."


def test_a_diagnosis_as_of_a_step_knows_nothing_later() -> None:
    found = told(case(*STORY), JUMPED, at=1010)
    assert chains(found) == [["LearningRateJump", "ExplodingGradient"]]


def test_the_same_case_gives_the_same_diagnosis() -> None:
    one = case(*STORY, events=CHECKPOINTS)
    assert told(one, JUMPED) == told(replace(one, alerts=STORY[::-1]), JUMPED)


def test_a_rule_of_somebody_elses_is_told_with_its_own_words() -> None:
    (finding,) = told(case(alert("MyRule", 5, "ticket", summary="odd"))).findings
    assert (finding.symptom, finding.confidence) == ("odd", "low")


def test_there_are_never_more_findings_than_somebody_can_read() -> None:
    notes = [alert("LossSpike", 10 * n, "note", until=10 * n + 1) for n in range(500)]
    found = told(case(*notes, alert("NonFiniteLoss", 9000), last=9000))
    assert len(found.findings) == 50
    assert chains(found)[0] == ["NonFiniteLoss"]


def test_what_came_again_and_again_is_told_once_in_the_chain() -> None:
    spikes = [alert("LossSpike", 1001 + 5 * n, "note", until=1002 + 5 * n) for n in range(3)]
    found = told(case(*spikes, alert("LossDivergence", 1030, "ticket")), JUMPED)
    assert found.stories[0].text == (
        "a jump of the learning rate at step 1000 -> LossSpike at step 1001 (3 times) -> "
        "LossDivergence at step 1030"
    )


def test_the_sdks_coverage_line_knows_every_detector() -> None:
    assert set(coverage.DETECTORS) == {rule.alert for rule in RULES.detectors}


def test_every_alert_that_detectors_raise_has_a_pattern() -> None:
    assert {rule.alert for rule in RULES.detectors} <= PATTERNS.keys()
    known = PATTERNS.keys()
    assert {name for link in LINKS for name in link} <= known
    assert {name for p in PATTERNS.values() for name in p.rivals} <= known
