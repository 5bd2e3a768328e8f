"""Runbooks as data: what each section says and its steps, for pages that tick them off."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from gradwarden_server import assets
from gradwarden_server.api.deps import CREDENTIALS, Reader
from gradwarden_server.api.problems import Problem

router = APIRouter(prefix="/v1/runbooks", tags=["alerts"], dependencies=CREDENTIALS)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}\Z")
_LEAD = re.compile(r"\*\*(.+?)\*\*[ \n]?(.*)\Z", re.DOTALL)
_STEP = re.compile(r"\d+\. ")


class Section(BaseModel):
    """A part of a runbook; its steps in their order, as Markdown."""

    title: str
    text: str
    steps: list[str]


class RunbookFace(BaseModel):
    """What to do about an alert."""

    alertname: str
    title: str
    summary: str = Field(description="What the alert is, in a sentence or two")
    sections: list[Section]
    markdown: str


@router.get("/{alertname}", summary="What to do about an alert")
def get_runbook(alertname: Annotated[str, Path(max_length=100)], who: Reader) -> RunbookFace:
    """The shipped runbook, whole and in its parts. /runbooks/{alertname} is its page."""
    file = assets.RUNBOOKS / f"{alertname}.md"
    if not _NAME.match(alertname) or not file.is_file():
        raise Problem("not-found", f"runbook: {alertname!r}; there is none of that name")
    return parsed(alertname, file.read_text(encoding="utf-8"))


def parsed(alertname: str, markdown: str) -> RunbookFace:
    """A runbook: a title, a summary, then parts that begin with bold words; lists are steps."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", markdown.strip())]
    title = alertname
    if blocks and blocks[0].startswith("# "):
        title = blocks.pop(0).removeprefix("# ").strip()
    summary: list[str] = []
    sections: list[Section] = []
    for block in blocks:
        lead = _LEAD.match(block)
        if lead is not None:
            words = lead.group(1).rstrip(".")
            sections.append(Section(title=words, text=lead.group(2).strip(), steps=[]))
        elif not sections:
            summary.append(block)
        elif _STEP.match(block):
            sections[-1].steps += _steps(block)
        else:
            sections[-1].text = f"{sections[-1].text}\n\n{block}".strip()
    return RunbookFace(
        alertname=alertname,
        title=title,
        summary="\n\n".join(summary),
        sections=sections,
        markdown=markdown,
    )


def _steps(block: str) -> list[str]:
    """The items of a numbered list, each on one line."""
    items = re.split(r"\n(?=\d+\. )", block)
    return [" ".join(_STEP.sub("", item, count=1).split()) for item in items]
