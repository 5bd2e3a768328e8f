"""The run's live heatmap in a notebook. Needs nothing: a notebook asks for HTML by itself."""

from __future__ import annotations

from html import escape


class Frame:
    """What ``monitor.show()`` gives; as the last value of a cell it is the run's heatmap."""

    def __init__(self, page: str | None, height: int) -> None:
        """``page`` is the run's page, None while the service has not told it."""
        self.url = None if page is None else page.replace("/runs/", "/embed/runs/", 1)
        self.height = height

    def __repr__(self) -> str:
        return self.url or "gradwarden: the service has not answered yet; there is no page to show"

    def _repr_html_(self) -> str:
        if self.url is None:
            return f"<p>{escape(repr(self))}</p>"
        place = f'width="100%" height="{int(self.height)}" style="border:0"'
        return f'<iframe src="{escape(self.url)}" title="gradwarden" {place}></iframe>'
