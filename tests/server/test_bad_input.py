"""Bad input: each kind meets its problem document, and nothing of it reaches the database."""

from __future__ import annotations

import copy
import json
import random
import socket
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import zstandard

from gradwarden import wire
from tests.server.traffic import FRAMES, LAYERS, LAYOUT, batch, begin, frame, problem, send
from tests.server.traffic import start_body as start
from tests.service import Service

_PRELUDE = struct.Struct("<4sI")


def contents(service: Service) -> list[tuple[Any, ...]]:
    """Everything that a batch could change."""
    with sqlite3.connect(service.path) as connection:
        rows = connection.execute("SELECT run_id, position, length(body) FROM frame_batch")
        held = list(rows)
        held += connection.execute("SELECT id, seqs, last_step, ended FROM stream")
        held += connection.execute("SELECT id, status, position, last_step FROM run")
        held += connection.execute("SELECT count(*) FROM event")
        return held


@contextmanager
def unchanged(service: Service) -> Iterator[None]:
    """Nothing of what happens inside is stored, and the service lives on."""
    before = contents(service)
    yield
    assert contents(service) == before
    assert service.get("/-/ready") == {"status": "ok"}
    assert "unhandled error" not in service.log_text()


def parts(message: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and payload of a message."""
    _, length = _PRELUDE.unpack_from(message)
    end = _PRELUDE.size + length
    return json.loads(message[_PRELUDE.size : end]), message[end:]


def joined(header: dict[str, Any] | bytes, payload: bytes, magic: bytes = wire.MAGIC) -> bytes:
    """A message of any header; a dict gets the payload's true checksum."""
    if isinstance(header, dict):
        header = json.dumps(header | {"crc32": zlib.crc32(payload)}).encode()
    return _PRELUDE.pack(magic, len(header)) + header + payload


@pytest.fixture(scope="module")
def good(service: Service) -> bytes:
    """A message that would be taken; its run is started."""
    begin(service, "bad")
    return wire.encode(batch("bad", [frame(1, bad_row=2), frame(2)]))


def test_a_message_cut_at_any_length_is_malformed(service: Service, good: bytes) -> None:
    lengths = {0, 1, 4, 7, 8, 9, len(good) - 1, len(good) - 2}
    lengths |= set(random.Random(1).sample(range(len(good)), 60))
    with unchanged(service):
        for length in sorted(lengths):
            problem(send(service, good[:length]), 400, "malformed")


def test_a_flipped_byte_is_refused_or_harmless_to_the_service(
    service: Service, good: bytes
) -> None:
    chance = random.Random(2)
    with unchanged(service):
        for _ in range(150):
            damaged = bytearray(good)
            at = chance.randrange(len(damaged))
            damaged[at] ^= 1 << chance.randrange(8)
            answer = send(service, bytes(damaged).replace(b'"bad"', b'"none"'))
            assert answer.status_code in (400, 409, 413, 422), (at, answer.text)


def test_bytes_after_the_message_are_refused(service: Service, good: bytes) -> None:
    with unchanged(service):
        problem(send(service, good + b"\0"), 400, "malformed")


@pytest.mark.parametrize(
    ("change", "status", "slug", "field"),
    [
        ({"version": 3}, 422, "unsupported-version", "version"),
        ({"version": "1"}, 400, "malformed", "version"),
        ({"run": "a b"}, 400, "malformed", "run"),
        ({"run": None}, 400, "malformed", "run"),
        ({"rank": -1}, 400, "malformed", "rank"),
        ({"rank": 2**63}, 400, "malformed", "rank"),
        ({"rank": True}, 400, "malformed", "rank"),
        ({"n": 0}, 400, "malformed", "n"),
        ({"n": 10**9}, 413, "too-large", "n"),
        ({"L": 10**9}, 413, "too-large", "L"),
        ({"L": 200_000, "quantities": ["q"] * 45}, 413, "too-large", "payload"),
        ({"steps": [0]}, 400, "malformed", "steps"),
        ({"steps": [0, -1]}, 400, "malformed", "steps"),
        ({"times_ns": [0, 2**64]}, 400, "malformed", "times_ns"),
        ({"layout": "xyz"}, 400, "malformed", "layout"),
        ({"quantities": ["l2"] * 65}, 413, "too-large", "quantities"),
        ({"capture": ["pre_clip", "sideways"]}, 400, "malformed", "capture"),
        ({"scalars": {"loss": [1.0]}}, 400, "malformed", "scalars.loss"),
        ({"scalars": {"loss": ["nan", 1.0]}}, 400, "malformed", "scalars.loss"),
        ({"scalars": {f"s{i}": [0, 0] for i in range(257)}}, 413, "too-large", "scalars"),
        ({"events": [[9, {"kind": "mark"}]]}, 400, "malformed", "events"),
        ({"events": [[0, {"kind": 7}]]}, 400, "malformed", "events"),
        ({"events": [[0, {"kind": "mark"}]] * 1025}, 413, "too-large", "events"),
        ({"codec": "rot13"}, 400, "malformed", "codec"),
    ],
)
def test_a_wrong_member_is_named(
    service: Service, good: bytes, change: dict[str, Any], status: int, slug: str, field: str
) -> None:
    header, payload = parts(good)
    with unchanged(service):
        document = problem(send(service, joined(header | change, payload)), status, slug)
    assert document["field"] == field
    assert field.partition(".")[0] in document["detail"]


def test_headers_that_are_no_json_object_are_malformed(service: Service, good: bytes) -> None:
    _, payload = parts(good)
    texts = [
        b"", b"[]", b"7", b"{", b'{"version": NaN}', b"\xff\xfe", b"[" * 100_000,
        b'{"version":' + b"9" * 5000 + b"}", b'{"a":' * 3000 + b"1" + b"}" * 3000,
    ]  # fmt: skip
    with unchanged(service):
        for text in texts:
            problem(send(service, joined(text, payload)), 400, "malformed")
        problem(send(service, joined(b"{}", payload, b"HTTP")), 400, "malformed")
        huge = _PRELUDE.pack(wire.MAGIC, 2**32 - 1) + b"{}"
        problem(send(service, huge), 413, "too-large")


def test_bombs_are_refused_before_they_unfold(service: Service, good: bytes) -> None:
    header, _ = parts(good)
    zeros = bytes(1 << 20)
    deflate = zlib.compressobj(9)
    flat = b"".join(deflate.compress(zeros) for _ in range(1024)) + deflate.flush()
    dense = zstandard.ZstdCompressor(level=3).compressobj()
    folded = b"".join(dense.compress(zeros) for _ in range(1024)) + dense.flush()
    with unchanged(service):
        for codec, payload in (("deflate", flat), ("zstd", folded)):
            bomb = joined(header | {"codec": codec}, payload)
            began = time.monotonic()
            document = problem(send(service, bomb), 413, "too-large")
            assert document["field"] == "payload"
            assert time.monotonic() - began < 5
            honest = header | {"codec": codec, "L": 200_000, "n": 4096}
            problem(send(service, joined(honest, payload)), 400, "malformed")


def test_a_zstd_frame_with_a_false_size_is_malformed(service: Service, good: bytes) -> None:
    header, _ = parts(good)
    size = 2 * LAYERS * 6 * 4
    lying = zstandard.ZstdCompressor().compress(bytes(size - 1))
    with unchanged(service):
        problem(send(service, joined(header | {"codec": "zstd"}, lying)), 400, "malformed")


def test_an_oversized_body_is_refused_before_it_is_held(service: Service) -> None:
    body = bytes((16 << 20) + 1)
    with unchanged(service):
        document = problem(send(service, body), 413, "too-large")
        assert document["field"] == "body"

        def trickle() -> Iterator[bytes]:
            for _ in range(17):
                yield bytes(1 << 20)

        chunked = service.call("POST", "/v1/ingest", content=trickle(), headers=FRAMES)
        problem(chunked, 413, "too-large")
        big = start("big", config={"x": "y" * (2 << 20)})
        problem(service.call("POST", "/v1/start", json=big), 413, "too-large")


def test_a_wrong_media_type_or_encoding_is_refused(service: Service, good: bytes) -> None:
    with unchanged(service):
        for kind in ("text/plain", "", "application/x-protobuf"):
            answer = send(service, good, headers={"Content-Type": kind})
            problem(answer, 415, "unsupported-media-type")
        packed = send(service, zlib.compress(good), headers={"Content-Encoding": "gzip"})
        problem(packed, 415, "unsupported-media-type")
        newer = {"Content-Type": "application/vnd.gradwarden.frames; version=3"}
        problem(send(service, good, headers=newer), 422, "unsupported-version")


def test_what_the_service_lost_is_asked_for_again(service: Service, good: bytes) -> None:
    layout = "0" * 32
    with unchanged(service):
        missing = replace(batch("bad", [frame(1)]), layout=layout)
        assert problem(send(service, missing), 409, "unknown-layout")["layout"] == layout
        problem(send(service, batch("never", [frame(1)])), 409, "unknown-stream")
        problem(send(service, batch("bad", [frame(1)], attempt="a9")), 409, "unknown-stream")
        problem(send(service, batch("bad", [frame(1)], rank=5)), 409, "unknown-stream")


def test_a_matrix_that_does_not_fit_its_layout_is_malformed(service: Service) -> None:
    small = wire.Layout(LAYOUT.parameters[:2])
    assert service.call("POST", "/v1/layouts", json=small.to_json()).status_code == 200
    with unchanged(service):
        sent = replace(batch("bad", [frame(1)]), layout=small.hash)
        assert problem(send(service, sent), 400, "malformed")["field"] == "L"


@pytest.mark.parametrize(
    "document",
    [
        [],
        7,
        None,
        {"frames": []},
        {"frames": [7]},
        {"frames": [{}]},
        {"version": 1, "frames": [{"seq": 1, "step": 0, "time_ns": 0, "values": [], "events": 5}]},
        {"version": 1, "frames": [{"seq": 1, "step": 0, "time_ns": 0, "values": [[1]]}]},
        {"version": 1, "frames": [{"seq": 1, "step": 0, "time_ns": 0, "values": [{"a": 1}]}]},
        {"version": 1, "frames": [{"seq": 1, "step": 0, "time_ns": 0, "values": [[1e300] * 5]}]},
        {"version": 1, "frames": [{"seq": [], "step": 0, "time_ns": 0, "values": [], "open": []}]},
    ],
)
def test_a_wrong_plain_form_is_malformed(service: Service, good: bytes, document: Any) -> None:
    whole = wire.to_json(batch("bad", [frame(1)]))
    headers = {"Content-Type": "application/json"}
    with unchanged(service):
        for form in [document, whole | document] if isinstance(document, dict) else [document]:
            body = json.dumps(form)
            answer = service.call("POST", "/v1/ingest", content=body, headers=headers)
            problem(answer, 400, "malformed")


def test_hostile_text_neither_breaks_the_service_nor_its_pages(service: Service) -> None:
    begin(service, "hostile", name="<script>alert(1)")
    event = {
        "kind": "note\x00" * 40,
        "text": "half \ud800 and nul \x00 <script>",
        "huge": 10**400,
        "deep": json.loads("[" * 200 + "]" * 200),
    }
    header, payload = parts(wire.encode(batch("hostile", [frame(1)])))
    text = json.dumps(header | {"events": [[0, event]], "crc32": zlib.crc32(payload)})
    infinite = text.replace(str(10**400), "1e999")
    message = _PRELUDE.pack(wire.MAGIC, len(infinite)) + infinite.encode() + payload
    assert send(service, message).status_code == 200
    (told,) = service.get("/v1/runs/hostile/events")["items"]
    assert "<script>" in told["text"]
    assert told["data"]["huge"] == "Infinity"
    assert service.get("/v1/runs", params={"q": "hostile"})["items"]
    assert "unhandled error" not in service.log_text()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"run": "a/b"}, "run"),
        ({"run": None}, "run"),
        ({"rank": -1}, "rank"),
        ({"rank": 10**30}, "rank"),
        ({"world_size": 0}, "world_size"),
        ({"name": "x" * 257}, "name"),
        ({"owner": "nul\x00"}, "owner"),
        ({"config": []}, "config"),
        ({"cost_per_hour": "Infinity"}, "cost_per_hour"),
        ({"started_ns": -1}, "started_ns"),
        ({"takeover": "perhaps"}, "takeover"),
    ],
)
def test_a_wrong_start_names_its_field_value_and_remedy(
    service: Service, good: bytes, change: dict[str, Any], field: str
) -> None:
    with unchanged(service):
        answer = service.call("POST", "/v1/start", json=start("wrong") | change)
        document = problem(answer, 400, "malformed")
    assert document["field"] == field
    (mistake,) = document["errors"]
    assert mistake["remedy"]
    assert field in document["detail"]


def test_odd_json_bodies_are_malformed_everywhere(service: Service, good: bytes) -> None:
    bodies = [b"", b"{", b"[]", b"\xff", b"[" * 50_000, b'"\\ud800"', b'{"run": ' + b"1" * 9999]
    headers = {"Content-Type": "application/json"}
    with unchanged(service):
        for path in ("/v1/start", "/v1/layouts", "/v1/heartbeat", "/v1/ingest", "/v1/session"):
            for body in bodies:
                answer = service.call("POST", path, content=body, headers=headers)
                problem(answer, 400, "malformed")


def test_half_a_character_in_a_start_is_refused_or_kept_harmless(service: Service) -> None:
    text = json.dumps(start("half", name="\ud800", config={"k": "\udfff"}))
    headers = {"Content-Type": "application/json"}
    answer = service.call("POST", "/v1/start", content=text, headers=headers)
    assert answer.status_code in (200, 400)
    text = json.dumps(start("half", config={"k": "\udfff", "n": float("nan"), "z": "\x00"}))
    answer = service.call("POST", "/v1/start", content=text, headers=headers)
    assert answer.status_code == 200
    assert service.get("/v1/runs/half")["config"] == {"k": "?", "n": "NaN", "z": ""}
    assert "unhandled error" not in service.log_text()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs?limit=0",
        "/v1/runs?limit=x",
        "/v1/runs?cursor=abc",
        "/v1/runs?state=asleep",
        "/v1/runs/a%00b",
        "/v1/alerts?state=loud",
        "/v1/alerts?run=a%20b",
        "/v1/alerts?severity=huge",
        "/v1/runs/bad/heatmap?metric=mean",
        "/v1/runs/bad/heatmap?cols=0",
        "/v1/runs/bad/heatmap?from=-1",
        "/v1/runs/bad/series?keys=layer:99:l2",
        "/v1/runs/bad/series?keys=layer:x:l2",
        "/v1/runs/bad/series?keys=",
        "/v1/runs/bad/series?points=99999999",
        "/v1/alerts?cursor=zzz",
        "/v1/alerts/x",
        "/v1/alerts/99999999999999999999",
    ],
)
def test_a_wrong_query_is_malformed(service: Service, good: bytes, path: str) -> None:
    assert problem(service.call("GET", path), 400, "malformed")["field"]


def test_a_client_that_stops_halfway_changes_nothing(service: Service, good: bytes) -> None:
    at = urlsplit(service.url)
    head = (
        f"POST /v1/ingest HTTP/1.1\r\nHost: {at.netloc}\r\n"
        f"Content-Type: {wire.MEDIA_TYPE}\r\nContent-Length: {len(good)}\r\n\r\n"
    )
    with unchanged(service):
        for length in (0, 10, len(good) - 1):
            with socket.create_connection((at.hostname, at.port)) as client:
                client.sendall(head.encode() + good[:length])
        assert service.get("/-/healthy") == {"status": "ok"}
    assert send(service, good).json()["stored"] == 2, "the service still takes a good one"


JUNK: list[Any] = [
    None, True, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 1e308, -0.5, "", "x", "\x00", "\ud800",
    "NaN", "Infinity", [], {}, [[]], [None], {"a": 1}, "a" * 3000, [1] * 50, ["x", 1],
    {"kind": "finish"}, [[0, {"kind": "finish", "status": None}]],
]  # fmt: skip


def mutated(document: Any, chance: random.Random) -> Any:
    """The document with one to three members, at any depth, replaced by junk or left out."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice([1, 1, 2, 3])):
        at = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(at[key], (dict, list)) and chance.random() < 0.7:
                at = at[key]
                continue
            if isinstance(at, dict) and chance.random() < 0.15:
                del at[key]
            else:
                at[key] = copy.deepcopy(chance.choice(JUNK))
            break
    return document


def test_mutated_documents_are_taken_or_refused_and_never_break_anything(
    service: Service, good: bytes
) -> None:
    chance = random.Random(11)
    begin(service, "fuzz")
    header, payload = parts(wire.encode(batch("fuzz", [frame(1, bad_row=1), frame(2)])))
    plain = wire.to_json(batch("fuzz", [frame(1, events=({"kind": "mark"},)), frame(2)]))
    beat = {"run": "fuzz", "attempt": "a1", "rank": 0, "nonce": "n1", "step": 1, "sent_ns": 1}
    as_json = {"Content-Type": "application/json"}
    documents = [
        ("/v1/ingest", plain),
        ("/v1/start", start("fuzzed", config={"a": [1]}, place={"pod": "x"}, cost_per_hour=1.5)),
        ("/v1/heartbeat", beat),
        ("/v1/layouts", LAYOUT.to_json()),
        ("/v1/tokens", {"name": "x", "scope": "read", "expires_in_days": 1}),
        ("/v1/runs/fuzz/commands", {"rank": 0, "kind": "pause", "args": {}}),
    ]
    with httpx.Client(base_url=service.url, timeout=30) as client:
        for _ in range(100):
            text = json.dumps(mutated(header, chance) | {"crc32": zlib.crc32(payload)}).encode()
            message = _PRELUDE.pack(wire.MAGIC, len(text)) + text + payload
            assert client.post("/v1/ingest", content=message, headers=FRAMES).status_code < 500
            for path, document in documents:
                body = json.dumps(mutated(document, chance))
                answer = client.post(path, content=body, headers=as_json)
                assert answer.status_code < 500, (path, body, answer.text)
        for run in ("fuzz", "fuzzed"):
            for part in ("", "/events", "/heatmap", "/series"):
                assert client.get(f"/v1/runs/{run}{part}").status_code in (200, 404)
        assert client.get("/v1/runs").status_code == 200
        assert "gradwarden_evaluator_errors_total 0.0" in client.get("/metrics").text
    assert "unhandled error" not in service.log_text()
