"""Of a run whose ranks lost each other: which one was gone first. Pure."""

from __future__ import annotations

from dataclasses import replace

from gradwarden_server.diagnosis.case import Case
from gradwarden_server.diagnosis.incidents import Incident

_LOST = ("collective was aborted", "connection closed by peer", "connection reset by peer", "nccl")
_MOST = 8


def told(case: Case, failed: Incident) -> Incident:
    """A failure with the ranks that ended without a word as its cause, where there are any.

    The others' errors are then what they noticed of it.
    """
    words = f"{failed.said('summary')} {failed.said('cause')}".lower()
    if failed.name != "RunFailed" or not any(sign in words for sign in _LOST):
        return failed
    parted = {e.rank for e in case.events if e.kind == "finish" and e.attempt == failed.attempt}
    mute = [p for p in case.places if p.rank not in parted]
    if not parted or not mute or failed.attempt != case.newest:
        return failed
    ranks = ", ".join(str(p.rank) for p in mute[:_MOST])
    nodes = ", ".join(dict.fromkeys(p.node for p in mute[:_MOST] if p.node))
    at = f" on {nodes}" if nodes else ""
    cause = (
        f"rank {ranks}{at} ended without a word, killed or with its node; the others lost their "
        f"connection to it: {failed.said('cause')}"
    )
    own = {"cause": cause, "rank": ranks} | ({"node": nodes} if nodes else {})
    return replace(failed, annotations={**failed.annotations, **own})
