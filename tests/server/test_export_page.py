"""The page of a run has a bound, whatever it is made of, and nothing inside ends its data early."""

from __future__ import annotations

import base64
import gzip
import json
import os
from functools import partial

import pytest

from gradwarden_server.transfer import page

TEMPLATE = "<html><title>gradwarden</title><body><!--kept--><p>after</p></body></html>"


def kept(text: str) -> dict[str, object]:
    """What a browser would read out of the page."""
    found: dict[str, object] = json.loads(
        text.partition('type="application/json">')[2].partition("</script>")[0]
    )
    return found


def noise(size: int, _: object = None) -> bytes:
    return os.urandom(size)


def test_what_is_too_large_is_taken_coarser_and_what_never_fits_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(page, "_MOST_OF_PART", 64 << 10)
    heavy = [partial(noise, size << 10) for size in (256, 128, 40)]
    parts = [page.Part("run", [lambda: b"{}"]), page.Part("never", heavy[:2])]
    parts += [page.Part(f"heat {n}", heavy) for n in range(30)]
    text = b"".join(page.write(TEMPLATE, "big", {}, parts)).decode()
    assert len(text.encode()) <= page.MOST_BYTES
    found = kept(text)
    assert isinstance(found["parts"], dict)
    assert isinstance(found["missing"], list)
    assert "run" in found["parts"]
    assert len(gzip.decompress(base64.b64decode(found["parts"]["heat 0"]))) == 40 << 10
    assert found["missing"][0] == "never"
    assert {*found["parts"], *found["missing"]} == {part.name for part in parts}


def test_names_of_strangers_are_text_and_never_markup() -> None:
    evil = "</script><script>alert(1)</script>"
    text = b"".join(page.write(TEMPLATE, evil, {"run": evil}, [])).decode()
    assert kept(text)["facts"] == {"run": evil}
    assert text.count("</script>") == 1
    assert text.endswith("<p>after</p></body></html>")
