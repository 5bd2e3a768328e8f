"""The wire: round trips bit for bit, nothing truncated passes, bombs stay small, old ones too."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden import wire

FIXTURES = Path(__file__).parent / "fixtures"
K = len(wire.QUANTITIES)
any_float = st.floats(allow_nan=True, allow_infinity=True, width=64)
names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
events = st.fixed_dictionaries(
    {"kind": st.sampled_from(["mark", "note", "finish"])},
    optional={"text": names, "value": st.one_of(st.none(), st.integers(-5, 5), st.booleans())},
)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


@st.composite
def batches(draw: st.DrawFn) -> wire.Batch:
    parameters = draw(st.integers(0, 4))
    size = 4 * K * parameters
    first = draw(st.integers(0, 2**40))
    wide = draw(st.sampled_from([(), wire.CHECKSUMS[:1], wire.CHECKSUMS]))
    matrices = st.one_of(st.just(b""), exactly(size))
    frames = tuple(
        wire.Frame(
            seq=first + i,
            step=draw(st.integers(0, 2**40)),
            time_ns=draw(st.integers(0, 2**62)),
            scalars=draw(st.dictionaries(names, any_float, max_size=3)),
            events=tuple(draw(st.lists(events, max_size=2))),
            capture=draw(st.sampled_from(["pre_clip", "post_clip", "unclipped", ""])),
            stepped=draw(st.sampled_from([True, False, None])),
            open=draw(st.booleans()),
            values=values,
            wide=draw(exactly(8 * len(wide) * parameters)) if values else b"",
            roots=draw(st.one_of(st.just(b""), exactly(8 * wire.ROOT_WORDS))),
        )
        for i, values in enumerate(draw(st.lists(matrices, min_size=1, max_size=4)))
    )
    return wire.Batch(
        stream=wire.StreamKey("run", "attempt.1", draw(st.integers(0, 9)), "nonce", 0),
        frames=frames,
        layout="0" * 32 if parameters else "",
        parameters=parameters,
        wide=wide,
        sent_ns=draw(st.integers(0, 2**62)),
    )


def same(a: wire.Batch, b: wire.Batch) -> bool:
    """Equality in which NaN equals NaN."""

    def plain(batch: wire.Batch) -> str:
        return json.dumps(wire.to_json(batch), sort_keys=True)

    bits = [[(f.values, f.wide, f.roots) for f in x.frames] for x in (a, b)]
    return bits[0] == bits[1] and plain(a) == plain(b)


@given(batches(), st.sampled_from(["deflate", "zstd"]))
def test_round_trip_keeps_every_bit(batch: wire.Batch, codec: wire.Codec) -> None:
    assert same(wire.decode(wire.encode(batch, codec)), batch)


@given(batches(), st.sampled_from(wire.QUANTITIES))
def test_a_checked_message_tells_a_column_without_unpacking_the_others(
    batch: wire.Batch, quantity: str
) -> None:
    message = wire.check(wire.encode(batch))
    planes = message.column(quantity)
    words = _unplaned(planes)
    index = wire.QUANTITIES.index(quantity)
    rows = b"".join(frame.values for frame in batch.frames)
    assert words == b"".join(
        rows[at + 4 * index : at + 4 * index + 4] for at in range(0, len(rows), 4 * K)
    )
    header = message.header
    assert (header.first_seq, header.last_seq) == (batch.first_seq, batch.last_seq)
    assert message.column("unheard_of") == b""
    assert same(message.batch(), batch)


def _unplaned(planes: bytes) -> bytes:
    size = len(planes) // 4
    return bytes(planes[plane * size + i] for i in range(size) for plane in range(4))


def test_nan_payloads_and_signed_zero_survive() -> None:
    words = struct.pack("<6I", 0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 0x7F800001, 1)
    frame = wire.Frame(1, 0, 0, values=words)
    batch = wire.Batch(wire.StreamKey("r", "a", 0, "n"), (frame,), "0" * 32, 1)
    assert wire.decode(wire.encode(batch)).frames[0].values == words


@given(batches())
@settings(max_examples=15, deadline=None)
def test_a_message_cut_at_any_byte_is_refused(batch: wire.Batch) -> None:
    data = wire.encode(batch)
    for end in range(len(data)):
        with pytest.raises(wire.WireError):
            wire.decode(data[:end])


@given(batches(), st.data())
@settings(deadline=None)
def test_a_flipped_byte_never_escapes_as_another_error(
    batch: wire.Batch, data: st.DataObject
) -> None:
    raw = bytearray(wire.encode(batch))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        wire.decode(bytes(raw))
    except wire.WireError:
        return


@given(st.binary(max_size=200))
def test_noise_is_refused_as_a_wire_error(noise: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(noise)


def test_a_compressed_bomb_takes_no_memory() -> None:
    frame = wire.Frame(1, 0, 0, values=b"\0" * (4 * K))
    batch = wire.Batch(wire.StreamKey("r", "a", 0, "n"), (frame,), "0" * 32, 1)
    data = wire.encode(batch)
    (length,) = struct.unpack_from("<I", data, 4)
    header = json.loads(data[8 : 8 + length])
    bomb = zlib.compress(b"\0" * (200 << 20), 9)
    header["crc32"] = zlib.crc32(bomb)
    text = json.dumps(header).encode()
    tracemalloc.start()
    with pytest.raises(wire.WireError):
        wire.decode(struct.pack("<4sI", b"GWRD", len(text)) + text + bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@given(batches())
def test_the_json_form_says_the_same(batch: wire.Batch) -> None:
    text = json.dumps(wire.to_json(batch), allow_nan=False)
    back = wire.from_json(json.loads(text))
    assert wire.to_json(back) == json.loads(text)


def test_the_committed_message_of_version_1_is_read_for_ever() -> None:
    batch = wire.decode((FIXTURES / "wire-v1.bin").read_bytes())
    assert batch.stream == wire.StreamKey("digits", "01JABCDEFGHJKMNPQRSTVWXYZ0", 3, "n0", 0)
    assert batch.layout == "0123456789abcdef0123456789abcdef"
    assert (batch.parameters, batch.quantities, batch.sent_ns) == (
        2,
        wire.QUANTITIES[:5],
        1_700_000,
    )
    first, second = batch.frames
    assert (first.seq, first.step, first.time_ns) == (7, 40, 1_600_000)
    assert (first.capture, first.stepped, first.open) == ("pre_clip", None, True)
    assert struct.unpack("<10f", first.values)[:5] == (1.5, 0.5, 0.0, 0.0, 3.0)
    assert struct.unpack("<10I", first.values)[5] == 0x7FC00001
    assert (second.seq, second.stepped, second.values) == (8, False, b"")
    assert second.scalars == {"loss": float("inf"), "lr": 0.1}
    assert second.events == ({"kind": "mark", "name": "data", "value": 2},)


def test_the_committed_message_of_version_2_is_read_for_ever() -> None:
    batch = wire.decode((FIXTURES / "wire-v2.bin").read_bytes())
    assert batch == version_2()


def version_2() -> wire.Batch:
    """What the fixture of version 2 holds; ``wire.encode`` of it wrote the file, once."""
    spoken = wire.Frame(
        seq=7,
        step=40,
        time_ns=1_600_000,
        capture="unclipped",
        stepped=True,
        values=struct.pack("<14f", 1.5, 0.5, 0, 0, 3, 4, 0.25, 2.5, 0.75, 0, 0, 0, 0, 0.125),
        wide=struct.pack("<2Q", 2**64 - 1, 5),
        roots=struct.pack("<33Q", 8, *range(2**63, 2**63 + 32)),
    )
    silent = wire.Frame(8, 41, 1_650_000, {"loss": float("inf"), "lr": 0.1}, stepped=False)
    stream = wire.StreamKey("digits", "01JABCDEFGHJKMNPQRSTVWXYZ0", 3, "n0", 0)
    columns = (*wire.QUANTITIES, "weight_l2")
    layout = "0123456789abcdef0123456789abcdef"
    frames = (spoken, silent)
    return wire.Batch(stream, frames, layout, 2, columns, ("checksum",), sent_ns=1_700_000)
