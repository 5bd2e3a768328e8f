"""A run as one HTML file that opens from the disk: the dashboard's own page, its data inside.

Written, never read back. Each part is what the service answers for the page, packed by gzip and
in base64; a part that would be too large is taken coarser, and one that does not fit even so is
left out and named. So a file has a bound, whatever the run.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "text/html; charset=utf-8"
MOST_BYTES = 12 << 20
"""Of a whole file."""
_MOST_OF_PART = 1 << 20  # a heatmap of a million cells of noise is taken coarser than 2,000 columns
_SLOT = "<!--kept-->"
_TITLE = "<title>gradwarden</title>"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that the page shows; ``tries`` give it ever coarser."""

    name: str
    tries: Iterable[Callable[[], bytes]]


def write(
    template: str, title: str, facts: Mapping[str, Any], parts: Iterable[Part]
) -> Iterator[bytes]:
    """The text of the file, part by part as each is read.

    Args:
        template: The built page; it has one slot for the data.
        title: Of the browser's tab.
        facts: What the page says of itself, as JSON.
        parts: In the order of their importance: the last ones go first where room is short.
    """
    before, _, after = template.replace(_TITLE, f"<title>{html.escape(title)}</title>").partition(
        _SLOT
    )
    head = f'{before}<script id="kept" type="application/json">{{"facts":{_json(facts)},"parts":{{'
    yield head.encode()
    left = MOST_BYTES - len(head.encode()) - len(after.encode()) - (64 << 10)
    missing: list[str] = []
    comma = ""
    for part in parts:
        packed = _fitting(part, min(left, _MOST_OF_PART))
        if packed is None:
            missing.append(part.name)
            continue
        left -= len(packed)
        yield f'{comma}{_json(part.name)}:"{packed}"'.encode()
        comma = ","
    yield f'}},"missing":{_json(missing)}}}</script>{after}'.encode()


def _fitting(part: Part, most: int) -> str | None:
    for attempt in part.tries:
        packed = base64.b64encode(gzip.compress(attempt(), 6, mtime=0))
        if len(packed) <= most:
            return packed.decode()
    return None


def _json(value: object) -> str:
    """JSON that may stand in a script element: nothing in it closes one."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
