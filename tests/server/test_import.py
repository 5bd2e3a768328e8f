"""Old runs brought in: what was exported comes back bit for bit, and nothing is stored twice."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden import wire
from gradwarden_server.transfer import formats, numbers
from gradwarden_server.transfer.frames import packed
from gradwarden_server.transfer.head import AttemptFacts, Head, RunFacts, StreamFacts
from tests.server.traffic import LAYERS, LAYOUT, begin, frame, send, start_body
from tests.service import Service, gradwarden

FORMATS = formats.FORMATS
HOUR_NS = 3600 * 10**9
ODD = ("l2", "nan", "hist_3", "an odd one")
COLUMNS = (wire.COLUMNS, wire.QUANTITIES, ODD)
WIDE = ((), wire.CHECKSUMS, ("checksum", "another"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)
LAYOUTS = {
    layout.hash: layout
    for layout in (
        wire.Layout((wire.Parameter("a.weight", (2, 2), "float32", "a", "matrix"),)),
        wire.Layout(
            tuple(
                wire.Parameter(name, (3,), "bfloat16", "b", "bias", sharded=True)
                for name in ('b, "x"\nweight', "#", "NaN", "ü")
            ),
            backward=(3, 1, 0, 2),
        ),
    )
}


@st.composite
def batches(draw: st.DrawFn) -> list[wire.Batch]:
    """Batches as any trainer may send them: float32 and 64-bit words of any bits."""
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    made, seq = [], {0: 0, 1: 0}
    for _ in range(draw(st.integers(0, 4))):
        rank = draw(st.integers(0, 1))
        seq[rank] += draw(st.integers(0, 2))
        layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
        rows, columns = len(layout.parameters), draw(st.sampled_from(COLUMNS))
        wide = draw(st.sampled_from(WIDE))
        frames = []
        for _ in range(draw(st.integers(1, 3))):
            seq[rank] += 1
            spoke = draw(st.booleans())
            bits = seed.integers(0, 2**32, rows * len(columns), dtype=np.uint32)
            special = (0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7F800001, 0xFF800000, 1, 0x80000000)
            bits[: len(special)] = special[: bits.size]
            words = seed.integers(0, 2**64, rows * len(wide), dtype=np.uint64)
            number = st.floats(allow_nan=False) | st.just(math.nan)
            frames.append(
                wire.Frame(
                    seq[rank],
                    draw(st.integers(0, 2**62)),
                    draw(st.integers(0, 2**62)),
                    draw(st.dictionaries(TEXT.filter(lambda t: len(t) < 99), number, max_size=3)),
                    draw(st.sampled_from([(), ({"kind": "mark", "name": 'ü,\n"', "value": 1},)])),
                    draw(st.sampled_from(["", "pre_clip", "post_clip", "unclipped"])),
                    draw(st.sampled_from([None, True, False])),
                    draw(st.booleans()),
                    bits.astype("<u4").tobytes() if spoke else b"",
                    words.astype("<u8").tobytes() if spoke else b"",
                    seed.bytes(8 * wire.ROOT_WORDS) if draw(st.booleans()) else b"",
                )
            )
        key = wire.StreamKey("r1", "a1", rank, "n1")
        made.append(wire.Batch(key, tuple(frames), layout.hash, rows, columns, wide))
    return made


def head(layouts: dict[str, wire.Layout] = LAYOUTS) -> Head:
    return Head(
        RunFacts("r1", name='n"1,\n', config={"a": [1, {"b": None}]}, started_ns=7),
        [AttemptFacts("a1", started_ns=7)],
        [StreamFacts("a1", rank) for rank in (0, 1)],
        layouts,
    )


def told(made: list[wire.Batch]) -> list[tuple[Any, ...]]:
    """What of each frame must come back; NaN by its bits, since it equals nothing."""
    return [
        (
            (batch.stream.attempt, batch.stream.rank, batch.stream.group),
            replace(one, scalars={}),
            {name: numbers.double_text(value) for name, value in one.scalars.items()},
            batch.layout,
            batch.parameters,
            (batch.quantities, batch.wide) if one.values else None,
        )
        for batch in made
        for one in batch.frames
    ]


@pytest.mark.parametrize("form", FORMATS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=batches())
def test_any_frames_survive_a_file_bit_for_bit(
    form: formats.FormatName, tmp_path: Path, made: list[wire.Batch]
) -> None:
    module, file = formats.load(form), tmp_path / f"x.{form}"
    file.write_bytes(b"".join(module.write(head(), made)))
    assert formats.of_file(file) == form
    found, singles = module.read(file)
    assert found == head()
    again = list(packed(singles))
    assert told(again) == told(made)
    for batch in again:  # and it is what a service takes
        assert wire.decode(wire.encode(batch)).frames[0].seq == batch.first_seq


Starter = Callable[[], Service]


@pytest.fixture(params=["sqlite", "postgres"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A service on either database."""
    db = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    running = Service(tmp_path / "house", db=db)
    yield running
    running.close()


def tell(service: Service, run: str) -> None:
    """An hour ago: two ranks, a restart, every kind of column, an end."""
    began = time.time_ns() - HOUR_NS
    rng = np.random.default_rng(3)
    for number, attempt in enumerate(("a1", "a2")):
        for rank in (0, 1):
            who = {"rank": rank, "attempt": attempt, "nonce": f"n{rank}{attempt}"}
            facts = {"started_ns": began + number * 10**12, "first_step": 20 * number}
            place = {"host": f"node-{rank}", "place": {"gpu": rank}, "world_size": 2}
            begin(service, run, **who, **facts, **place, config={"lr": 0.1}, team="nlp")
        for first in range(1, 41, 8):
            for rank in (0, 1):
                key = wire.StreamKey(run, attempt, rank, f"n{rank}{attempt}", 0)
                columns = COLUMNS[first % 3]
                frames = []
                for seq in range(first, first + 8):
                    bits = rng.integers(0, 2**32, LAYERS * len(columns), dtype=np.uint32)
                    one = frame(seq, time_ns=began + number * 10**12 + seq * 10**9)
                    last = seq == 40 and attempt == "a2"
                    finish = ({"kind": "finish", "status": "finished"},) if last else ()
                    values = bits.astype("<u4").tobytes() if not rank else b""
                    frames.append(replace(one, values=values, events=finish))
                made = wire.Batch(key, tuple(frames), LAYOUT.hash, LAYERS, columns)
                assert send(service, made).json()["stored"] == 8


@pytest.mark.parametrize(
    ("house", "form"),
    [
        pytest.param(kind, form, marks=[pytest.mark.full] if kind == "postgres" and rare else [])
        for kind in ("sqlite", "postgres")
        for form, rare in ((form, form != "parquet") for form in FORMATS)
    ],
    indirect=["house"],
)
def test_an_exported_run_comes_back_under_another_name(
    house: Service, tmp_path: Path, form: formats.FormatName
) -> None:
    tell(house, "old")
    at, file, again = ("--url", house.url), tmp_path / f"old.{form}", tmp_path / f"again.{form}"
    assert gradwarden("export", "old", "-o", str(file), *at).returncode == 0
    taken = gradwarden("import", str(file), *at)
    assert (taken.returncode, "--run NAME" in taken.stderr) == (2, True), taken
    assert gradwarden("import", str(file), "--run", "new", *at).returncode == 0
    assert gradwarden("export", "new", "-o", str(again), *at).returncode == 0
    (one, first), (two, second) = (formats.load(form).read(f) for f in (file, again))
    assert replace(two, run=replace(two.run, run="old")) == one
    frames = told(list(first))
    assert len(frames) == 160
    assert told(list(second)) == frames
    assert two.run.status == "finished"
    shown = house.get("/v1/runs/new")
    assert [a["attempt"] for a in shown["attempts"]] == ["a1", "a2"]
    assert [r["place"] for r in shown["ranks"]] == [{"gpu": 0}, {"gpu": 1}]


def test_the_same_import_twice_stores_nothing_twice(service: Service, tmp_path: Path) -> None:
    tell(service, "whole")
    at, file = ("--url", service.url), tmp_path / "whole.jsonl"
    assert gradwarden("export", "whole", "-o", str(file), *at).returncode == 0
    lines = file.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:60]))  # as if the first try had come only so far
    for part, stored, duplicate in ((cut, 58, 0), (file, 102, 58), (file, 0, 160)):
        done = gradwarden("import", str(part), "--run", "twice", "--json", *at)
        assert done.returncode == 0, done.stderr
        (item,) = json.loads(done.stdout)["items"]
        assert (item["stored"], item["duplicate"]) == (stored, duplicate)
    for run in ("whole", "twice"):
        answer = service.call("GET", f"/v1/runs/{run}/export?format=jsonl")
        assert len(answer.text.splitlines()) == len(lines), run


def test_an_existing_run_of_that_name_is_not_touched(service: Service, tmp_path: Path) -> None:
    tell(service, "taken")
    file = tmp_path / "taken.jsonl"
    assert gradwarden("export", "taken", "-o", str(file), "--url", service.url).returncode == 0
    begin(service, "other", attempt="elsewhere")
    before = service.get("/v1/runs/other")
    refused = gradwarden("import", str(file), "--run", "other", "--url", service.url)
    assert refused.returncode == 2
    assert "--run NAME" in refused.stderr
    after = service.get("/v1/runs/other")
    assert (after["attempts"], after["steps"]) == (before["attempts"], before["steps"])


def spoiled(file: Path, line: int, old: str, new: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    file.write_text("".join(lines))


@pytest.mark.parametrize(
    ("form", "line", "old", "new", "words"),
    [
        ("jsonl", 1, '"version": 1', '"version": 9', ("line 1", "version: 9", "upgrade")),
        ("jsonl", 1, '"rank": 0', '"rank": "x"', ("line 1", "rank: 'x'", "whole number")),
        ("jsonl", 2, "blocks.0.weight", "blocks.0.other", ("line 2", "layout.hash")),
        ("jsonl", 90, '"step": ', '"step": "', ("line 90", "not JSON")),
        ("jsonl", 90, '"rank": ', '"rank": 7', ("frame 88", "rank 70", "head of the file")),
        ("csv", 1, "# {", "{", ("line 1", "first line")),
        ("csv", 2, "absmax", "abs", ("line 2", "absmax")),
        ("csv", 40, ",", ",x", ("line 40", "attempt")),
        ("csv", 44, ",", "", ("line 44", "cells")),
    ],
)
def test_a_file_with_a_mistake_is_refused_whole(
    service: Service, tmp_path: Path, form: str, line: int, old: str, new: str, words: tuple[str]
) -> None:
    if not service.call("GET", "/v1/runs/spoiled").is_success:
        tell(service, "spoiled")
    at, file = ("--url", service.url), tmp_path / f"spoiled.{form}"
    assert gradwarden("export", "spoiled", "-o", str(file), *at).returncode == 0
    spoiled(file, line, old, new)
    refused = gradwarden("import", str(file), "--run", "never", *at)
    assert refused.returncode == 2, refused
    assert "Traceback" not in refused.stderr
    for word in (f"spoiled.{form}", *words):
        assert word in refused.stderr, refused.stderr
    assert service.call("GET", "/v1/runs/never").status_code == 404


def test_what_is_no_export_is_told(service: Service, tmp_path: Path) -> None:
    at = ("--url", service.url)
    missing = gradwarden("import", str(tmp_path / "none.csv"), *at)
    assert (missing.returncode, "none.csv" in missing.stderr) == (2, True)
    (tmp_path / "x").write_text("hello")
    foreign = gradwarden("import", str(tmp_path / "x"), *at)
    assert (foreign.returncode, "--from" in foreign.stderr) == (2, True)
    nothing = gradwarden("import", *at)
    assert (nothing.returncode, "--help" in nothing.stderr) == (2, True)
    odd = gradwarden("import", str(tmp_path / "x"), "--from", "mlflow", "--experiment", "e", *at)
    assert (odd.returncode, "run id" in odd.stderr) == (2, True)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1 and then nothing")
    damaged = gradwarden("import", str(cut), *at)
    assert (damaged.returncode, "cut.parquet" in damaged.stderr) == (2, True)


def test_starts_need_what_a_trainer_needs(tmp_path: Path) -> None:
    """A token that only trains cannot look whether a name is free, and is told so."""
    db = f"sqlite:///{tmp_path}/gradwarden.sqlite"
    made = {
        scope: gradwarden("token", "create", "--scope", scope, "--db", db).stdout.strip()
        for scope in ("ingest", "admin")
    }
    service = Service(tmp_path, host="0.0.0.0", token=made["admin"])
    try:
        body = start_body("r")
        assert service.call("POST", "/v1/start", json=body).status_code == 200
        file, at = tmp_path / "r.csv", ("--url", service.url)
        admin = {"GRADWARDEN_TOKEN": made["admin"]}
        assert gradwarden("export", "r", "-o", str(file), *at, env=admin).returncode == 0
        small = {"GRADWARDEN_TOKEN": made["ingest"]}
        refused = gradwarden("import", str(file), "--run", "s", *at, env=small)
        assert (refused.returncode, "GRADWARDEN_TOKEN" in refused.stderr) == (4, True)
        taken = gradwarden("import", str(file), "--run", "s", *at, env=admin)
        assert taken.returncode == 0, taken.stderr
    finally:
        service.close()
