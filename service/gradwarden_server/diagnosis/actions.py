"""The first safe action, and the command for it where it is known to be right here. Pure.

A command is given only where somebody said it (``watch(resume_command=)``), or where the
scheduler told this very process what it runs as. Everything else stays words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from statistics import median

from gradwarden_server.diagnosis.case import Case, Place, Series
from gradwarden_server.diagnosis.changes import LR
from gradwarden_server.diagnosis.checkpoints import newest_of_each_path, saved_step
from gradwarden_server.diagnosis.incidents import Incident
from gradwarden_server.diagnosis.patterns import Pattern
from gradwarden_server.diagnosis.words import Action, Checkpoint

_RESUMES = frozenset({"RunFailed", "RunStalled", "RankSilent"})
"""Sicknesses that harm no weights, and after which somebody has to start the run again."""
_TRANSFORMERS = re.compile(r"(?:.*/)?checkpoint-(\d+)/?\Z")
_OF_THE_DEVICE = ("forward", "backward", "optimizer")
"""Phases in which a slow rank's hardware is in doubt, and not its data or its own code."""
_STEPS_FOR_PACE = 200
_LEAST_HOURS = 0.01
_STOP = re.compile(r"Stop the run( if it goes on)?(: weights are poisoned)?\. ?")


def actions(
    case: Case,
    series: Series,
    root: Incident,
    pattern: Pattern,
    story: Sequence[Incident],
    harmed: bool,
    good: Checkpoint | None,
    note: str,
) -> tuple[Action, ...]:
    """What to do about a story, the first safe action first.

    Args:
        case: The run.
        series: Its series, for its pace.
        root: The origin of the story.
        pattern: What is known of it.
        story: All of it.
        harmed: Whether the weights may be harmed.
        good: The last good checkpoint.
        note: Why that one, or why there is none.
    """
    worst = _worst(story)
    if all(one.state in ("healed", "change") for one in story):
        return _healed(_advice(root, worst))
    over = case.status != "running"
    failed = any(one.name in _RESUMES and one.severity != "note" for one in story)
    advice = _advice(root, worst)
    if over:  # there is nothing left to stop
        advice = _STOP.sub("", advice).replace("Stop the run and resume", "Resume")
    told = []
    if harmed or failed:
        told.append(_resume(case, series, advice, harmed, good, note))
    elif advice:
        told.append(Action(advice, None, "none: it changes nothing by itself", None))
    if pattern.node:
        told += _cordon(case, root)
    return tuple(told)


def _healed(advice: str) -> tuple[Action, ...]:
    text = "Nothing now: it went by itself."
    if advice and not advice.startswith("Nothing"):
        text += f" Should it come back: {advice}"
    return (Action(text, None, "none", None),)


def follow(root: Incident, symptom: str) -> tuple[Action, ...]:
    """What to do about a finding that another one explains."""
    text = f"Nothing of its own: it goes with its cause ({symptom}); see {root.id}."
    return (Action(text, None, "none", None),)


def _advice(root: Incident, worst: Incident) -> str:
    said = root.said("first_action")
    if said:
        return said
    if root.name == LR:
        return (
            f"Stop the run and resume with the learning rate as it was before the jump "
            f"({root.said('before')}), or with a warm-up to the new one."
        )
    if root.kind == "change":
        return (
            f"Look at what changed there ({root.said('value')}); undo it if it was not meant. "
            f"{worst.said('first_action')}"
        ).strip()
    return worst.said("first_action")


def _worst(story: Sequence[Incident]) -> Incident:
    order = {"page": 0, "ticket": 1, "note": 2, None: 3}
    return min(story, key=lambda one: (order[one.severity], one.order))


def _resume(
    case: Case, series: Series, advice: str, harmed: bool, good: Checkpoint | None, note: str
) -> Action:
    if good is None:
        text = f"{advice} {note[0].upper()}{note[1:]}."
        command = None if harmed else _command(case, None)
        risk = "without a good checkpoint a restart begins anew or from what may be harmed"
        return Action(text.strip(), command, risk, None)
    command = _command(case, good)
    text = f"{advice} The last good checkpoint is {good.path} (step {good.step})."
    risk = "what was learned behind that checkpoint is done again"
    if command is not None and command.startswith(("scontrol", "kubectl")):
        risk += "; the job has to resume by itself from its newest checkpoint"
    return Action(text.strip(), command, risk, _loses(case, series, good))


def _loses(case: Case, series: Series, good: Checkpoint) -> str | None:
    if case.last_step is None:
        return None
    steps = max(0, case.last_step - good.step)
    devices = "GPUs" if any(p.fact("gpu_name") for p in case.places) else "processes"
    if case.world_size == 1:
        devices = devices.removesuffix("s" if devices == "GPUs" else "es")
    text = f"{steps:,} steps x {case.world_size} {devices}"
    paces = [
        v
        for _, v in series.scalar(
            "step_seconds", max(0, case.last_step - _STEPS_FOR_PACE), case.last_step
        )
        if v > 0
    ]
    if paces:
        hours = steps * median(paces) * case.world_size / 3600
        if hours >= _LEAST_HOURS:
            text += f", about {hours:.2g} {'GPU' if 'GPU' in devices else 'process'}-hours"
    return text


def _command(case: Case, good: Checkpoint | None) -> str | None:
    """The command that resumes this run from ``good``, or from its newest where that is None."""
    first = case.place(0) or next(iter(case.places), None)
    if first is None:
        return None
    told = first.fact("resume_command")
    if told:
        return _filled(told, good)
    if good is not None and first.fact("trainer") == "transformers":
        named = _TRANSFORMERS.match(good.path)
        if named is not None and int(named.group(1)) == good.step:
            return f"trainer.train(resume_from_checkpoint={good.path!r})"
    if good is not None and not _newest(case, good):
        return None  # a job that is started again takes the newest one, which may be harmed
    return _requeue(first)


def _filled(told: str, good: Checkpoint | None) -> str | None:
    """The user's own command with ``{checkpoint}`` and ``{step}`` in their places."""
    if "{checkpoint}" not in told and "{step}" not in told:
        return told
    if good is None:
        return None
    filled = told.replace("{checkpoint}", shlex.quote(good.path))
    return filled.replace("{step}", str(good.step))


def _requeue(place: Place) -> str | None:
    job = place.fact("slurm_job")
    if job:
        return f"scontrol requeue {shlex.quote(job)}"
    pod, namespace = place.fact("pod"), place.fact("namespace")
    if pod and namespace:
        return f"kubectl delete pod {shlex.quote(pod)} --namespace {shlex.quote(namespace)}"
    return None


def _newest(case: Case, good: Checkpoint) -> bool:
    """Whether nothing newer lies on disk that a job would resume from."""
    saved = [e for e in newest_of_each_path(case) if e.data.get("ok")]
    return not saved or saved_step(saved[0]) <= good.step


def _cordon(case: Case, root: Incident) -> list[Action]:
    """Take the node of the named rank out of use, where rank and node are known."""
    rank, phase = root.said("rank"), root.said("phase")
    if not rank.isdecimal() or (phase and phase not in _OF_THE_DEVICE):
        return []
    place = case.place(int(rank))
    if place is None or not place.node:
        return []
    node, command = place.node, None
    if place.fact("slurm_job"):
        reason = shlex.quote(f"gradwarden: {root.name} in {case.run}")
        command = f"scontrol update NodeName={shlex.quote(node)} State=DRAIN Reason={reason}"
    elif place.fact("pod") and node != place.host:  # a pod's own host name is no node's
        command = f"kubectl cordon {shlex.quote(node)}"
    text = f"Take node {node} of rank {rank} out of use until its device and memory are tested."
    return [Action(text, command, "no new work is placed there; what runs there goes on", None)]
