"""monitor.show(): a frame for notebooks that needs no notebook package."""

from __future__ import annotations

from gradwarden.notebook import Frame


def test_a_notebook_gets_the_runs_heatmap() -> None:
    shown = Frame('http://127.0.0.1:8321/runs/a%22b?project=x&y="', 300)
    assert repr(shown) == 'http://127.0.0.1:8321/embed/runs/a%22b?project=x&y="'
    html = shown._repr_html_()
    assert 'src="http://127.0.0.1:8321/embed/runs/a%22b?project=x&amp;y=&quot;"' in html
    assert 'height="300"' in html


def test_before_the_service_answered_it_says_so() -> None:
    assert "has not answered yet" in Frame(None, 300)._repr_html_()
