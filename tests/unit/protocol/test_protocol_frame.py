"""The frame format, byte for byte (tests/golden/wire), and a decoder that survives anything. docs/formats/wire.md.

``REWRITE_GOLDEN=1 pytest tests/unit/protocol`` writes the golden files anew; review the difference like code.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from cadenza.protocol.frame import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    Decoder,
    FrameError,
    dumps,
    encode,
    encode_parts,
    loads,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "wire"

FRAMES: dict[str, tuple[dict[str, Any], bytes]] = {
    "hello": ({"t": "hello", "protocol": 1, "version": "0.1.0", "role": "client"}, b""),
    "welcome": (
        {
            "t": "welcome",
            "protocol": 1,
            "version": "0.1.0",
            "connection": "co-0000000000000000000001",
            "lane": "/run/user/1000/cadenza/lane.sock",
        },
        b"",
    ),
    "refuse": (
        {"t": "refuse", "message": "the server speaks protocol 1, the client protocol 2: upgrade the server"},
        b"",
    ),
    "call_run": (
        {
            "t": "req",
            "id": 7,
            "m": "call.run",
            "b": {
                "function_id": "fu-0000000000000000000001",
                "value": {"size": 5, "blob": None},
                "parent_input_id": "",
            },
        },
        b"\x00\x01\x02\xfe\xff",
    ),
    "error": (
        {
            "t": "err",
            "id": 7,
            "e": {"kind": "not_found", "message": "there is no function f\u00fcr dich \u2713", "detail": {}},
        },
        b"",
    ),
    "map_put": (
        {
            "t": "item",
            "id": 8,
            "b": {
                "inputs": [
                    {"index": 0, "value": {"size": 3, "blob": None}},
                    {
                        "index": 1,
                        "value": {"size": 0, "blob": {"blob_id": "bl-0000000000000000000001", "size": 4194304}},
                    },
                    {"index": 2, "value": {"size": 2, "blob": None}},
                ],
                "total": 3,
            },
        },
        b"abcde",
    ),
    "credit": ({"t": "credit", "id": 8, "n": 65536}, b""),
    "end": ({"t": "end", "id": 8}, b""),
    "cancel": ({"t": "cancel", "id": 7}, b""),
    "ping": ({"t": "ping"}, b""),
    "run": (
        {
            "t": "run",
            "ins": [
                {"a": "in-0000000000000000000001:1", "i": "in-0000000000000000000001", "c": "fc-1", "n": 4, "retry": 0},
                {"a": "in-0000000000000000000002:3", "i": "in-0000000000000000000002", "c": "fc-1", "n": 0, "retry": 2},
            ],
        },
        b"\x01\x00\x00\x00",
    ),
    "out": (
        {
            "t": "out",
            "outs": [
                {"a": "in-0000000000000000000001:1", "s": "SUCCESS", "n": 2, "items": 0, "t0": 1.5, "t1": 2.25},
            ],
        },
        b"ok",
    ),
    "lane_put": ({"t": "put", "size": 104857600, "fd": True, "durable": False}, b""),
}


def hexdump(data: bytes) -> str:
    """Sixteen bytes a line, so that a difference can be read."""
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(one) if 32 <= one < 127 else "." for one in part)
        lines.append(f"{start:06x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", FRAMES)
def test_golden_frames(name: str) -> None:
    header, payload = FRAMES[name]
    raw = encode(header, payload)
    path = GOLDEN / f"{name}.hex"
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(hexdump(raw))
    assert hexdump(raw) == path.read_text()
    # Read by hand as the page says, not by our own decoder.
    total, head = struct.unpack(">II", raw[:8])
    assert total == len(raw) - 4
    assert json.loads(raw[8 : 8 + head]) == header
    assert raw[8 + head :] == payload


def test_no_golden_file_is_left_over() -> None:
    assert {one.stem for one in GOLDEN.glob("*.hex")} == set(FRAMES)


headers = st.dictionaries(
    st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9) | st.lists(st.booleans())
)
frames = st.lists(st.tuples(headers, st.binary(max_size=300)), max_size=8)


@given(frames, st.data())
def test_any_cut_gives_the_same_frames(sent: list[tuple[dict[str, Any], bytes]], data: st.DataObject) -> None:
    raw = b"".join(encode(header, payload) for header, payload in sent)
    decoder = Decoder()
    got: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(raw):
        step = data.draw(st.integers(1, len(raw) - at))
        got += decoder.feed(raw[at : at + step])
        at += step
    assert [(loads(header), payload) for header, payload in got] == sent
    assert decoder.pending_bytes == 0


@given(headers, st.lists(st.binary(max_size=50), max_size=5))
def test_parts_are_the_same_bytes(header: dict[str, Any], payloads: list[bytes]) -> None:
    assert b"".join(encode_parts(header, payloads)) == encode(dumps(header), b"".join(payloads))


@settings(max_examples=500)
@given(st.lists(st.binary(max_size=64), max_size=20))
def test_noise_is_a_frame_or_a_frame_error_and_stays_one(pieces: list[bytes]) -> None:
    decoder = Decoder()
    fed = 0
    for piece in pieces:
        fed += len(piece)
        try:
            for header, payload in decoder.feed(piece):
                assert len(header) + len(payload) <= fed
                try:
                    assert isinstance(loads(header), dict)
                except FrameError:
                    pass
        except FrameError:
            with pytest.raises(FrameError, match="not a frame"):  # broken for good
                decoder.feed(b"")
            return
        assert decoder.pending_bytes <= fed


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_a_header_of_noise_is_an_error_of_ours(raw: bytes) -> None:
    try:
        assert isinstance(loads(raw), dict)
    except FrameError:
        pass


def test_limits() -> None:
    with pytest.raises(FrameError, match="header"):
        encode({"x": "y" * MAX_HEADER_BYTES})
    with pytest.raises(FrameError, match="frame"):
        encode({}, bytes(MAX_FRAME_BYTES))
    with pytest.raises(FrameError, match="frame"):
        encode_parts({}, [bytes(MAX_FRAME_BYTES // 2)] * 3)
    for total, head in ((MAX_FRAME_BYTES + 1, 4), (3, 0), (100, 97), (MAX_FRAME_BYTES, MAX_HEADER_BYTES + 1)):
        with pytest.raises(FrameError):
            Decoder().feed(struct.pack(">II", total, head))
    with pytest.raises(FrameError):
        loads(b"[" * 100_000)


def test_frames_before_a_fault_are_given_first() -> None:
    decoder = Decoder()
    assert decoder.feed(encode({"t": "ping"}) + b"\xff" * 8) == [(b'{"t":"ping"}', b"")]
    with pytest.raises(FrameError):
        decoder.feed(b"")
