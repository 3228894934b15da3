"""Borders of chunks are decided by content alone, whatever window of the file is in memory."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from blake3 import blake3

from cadenza.base.errors import DataLossError
from cadenza.fs import chunk
from cadenza.fs.chunk import Chunk, cut, decode_list, encode_list, verify

MIB = 1 << 20


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def cut_bytes(path: Path, data: bytes) -> tuple[Chunk, ...]:
    path.write_bytes(data)
    with open(path, "rb") as file:
        return cut(file.fileno(), len(data))


@pytest.mark.parametrize("size", [0, 1, chunk.MIN_BYTES, 9 * MIB, chunk.WINDOW_BYTES, 3 * chunk.WINDOW_BYTES + 17])
def test_chunks_cover_the_file_within_their_limits(tmp_path: Path, size: int) -> None:
    data = content(size)
    seen = blake3()
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        file.seek(7)
        found = cut(file.fileno(), size, seen.update)
        assert file.tell() == 7
    assert seen.digest() == blake3(data).digest()
    at = 0
    for one in found:
        assert one.start == at
        assert verify(one, data[at : at + one.length])
        at += one.length
    assert at == size
    assert all(one.length <= chunk.MAX_BYTES for one in found)
    assert all(one.length >= chunk.MIN_BYTES for one in found[:-1])


def test_the_window_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(40 * MIB) + bytes(20 * MIB) + content(5 * MIB, 2)
    small = cut_bytes(tmp_path / "file", data)
    monkeypatch.setattr(chunk, "WINDOW_BYTES", len(data))
    assert cut_bytes(tmp_path / "file", data) == small


def test_bytes_put_in_at_the_front_leave_the_rest_as_it_is(tmp_path: Path) -> None:
    data = content(32 * MIB)
    before = {one.digest: one.length for one in cut_bytes(tmp_path / "a", data)}
    after = {one.digest: one.length for one in cut_bytes(tmp_path / "b", b"new" + data)}
    fresh = sum(length for digest, length in after.items() if digest not in before)
    assert fresh <= 2 * chunk.MAX_BYTES


def test_borders_stay_where_earlier_versions_put_them(tmp_path: Path) -> None:
    # Other borders would lose what stores already share; a new version of the library must not move them.
    found = cut_bytes(tmp_path / "file", b"".join(blake3(b"%d" % n).digest() for n in range(10 * MIB // 32)))
    assert [one.length for one in found] == BORDERS


BORDERS = [1160648, 1122774, 1233480, 1072402, 690441, 1220032, 1252458, 352103, 2381422]


def test_a_list_comes_back_and_must_cover_its_file(tmp_path: Path) -> None:
    found = cut_bytes(tmp_path / "file", content(9 * MIB))
    assert decode_list(encode_list(found), 9 * MIB) == found
    with pytest.raises(DataLossError, match="of a file of"):
        decode_list(encode_list(found), 9 * MIB + 1)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x91\x92\xc4\x01a\x05", encode_list([Chunk(bytes(32), 0, 0)]),
        encode_list([Chunk(bytes(32), 0, chunk.MAX_BYTES + 1)]), encode_list([Chunk(bytes(32), 0, 5)]) + b"x",
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(DataLossError, match="list of chunks"):
        decode_list(data)


def test_a_file_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content(MIB))
    with open(tmp_path / "file", "rb") as file, pytest.raises(DataLossError, match="ended after"):
        cut(file.fileno(), os.path.getsize(tmp_path / "file") + 1)


def test_other_bytes_are_not_the_chunks() -> None:
    one = Chunk(blake3(b"abc").digest(), 0, 3)
    assert verify(one, b"abc")
    assert not verify(one, b"abd")
    assert not verify(one, b"abcd")


def by_the_page(data: bytes) -> list[int]:
    """Lengths of chunks as docs/formats/tree.md has them."""
    gear = [int.from_bytes(hashlib.md5(bytes([one]) * 64).digest()[:8], "big") for one in range(256)]
    found = []
    while data:
        found.append(_first(data, gear))
        data = data[found[-1] :]
    return found


def _first(data: bytes, gear: list[int]) -> int:
    left = min(len(data), chunk.MAX_BYTES)
    if left <= chunk.MIN_BYTES:
        return left
    h = 0
    for at in range(chunk.MIN_BYTES, left // 2 * 2, 2):
        mask = 0x0000D91767537000 if at < min(chunk.AVERAGE_BYTES, left) else 0x0000D91707537000
        h = ((h << 2) + (gear[data[at]] << 1)) % (1 << 64)
        if not h & (mask << 1):
            return at
        h = (h + gear[data[at + 1]]) % (1 << 64)
        if not h & mask:
            return at + 1
    return left


def test_the_page_says_where_borders_are(tmp_path: Path) -> None:
    for seed in range(3):
        data = content(1_500_001 + seed, seed)
        assert [one.length for one in cut_bytes(tmp_path / "file", data)] == by_the_page(data)
