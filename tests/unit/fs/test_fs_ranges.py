"""Chunks that a reader needs, and those it will want."""

from __future__ import annotations

import pytest

from cadenza.base.errors import DataLossError
from cadenza.fs.chunk import Chunk
from cadenza.fs.ranges import AHEAD_CHUNKS, Ranges


def ranges(*lengths: int) -> Ranges:
    chunks, start = [], 0
    for length in lengths:
        chunks.append(Chunk(bytes(32), start, length))
        start += length
    return Ranges(bytes(32), start, chunks)


def test_ranges_touch_their_chunks_alone() -> None:
    one = ranges(10, 20, 30)
    assert one.lacks(0, 10) == [0]
    assert one.lacks(9, 2) == [0, 1]
    assert one.lacks(30, 1) == [2]
    assert one.lacks(29, 100) == [1, 2]
    assert one.lacks(60, 5) == [] and one.lacks(5, 0) == []


def test_it_is_whole_when_all_came() -> None:
    one = ranges(10, 20)
    one.came(1)
    one.came(1)
    assert (one.here_bytes, one.whole, one.missing(), one.lacks(0, 30)) == (20, False, [0], [0])
    one.came(0)
    assert one.whole and not one.missing()


def test_random_reads_want_nothing_ahead() -> None:
    one = ranges(*[10] * 100)
    assert [one.ahead(at, 5) for at in (500, 30, 800, 0, 420)] == [[]] * 5


def test_a_reader_from_front_to_back_is_fetched_ahead_more_and_more() -> None:
    one = ranges(*[10] * 100)
    counts = [len(one.ahead(at, 10)) for at in range(0, 200, 10)]
    assert counts[:3] == [0, 2, 3]
    assert counts == sorted(counts) and counts[-1] == AHEAD_CHUNKS
    assert one.ahead(990, 10) == []


def test_small_steps_within_a_chunk_are_not_taken_for_progress() -> None:
    one = ranges(*[1000] * 10)
    assert [one.ahead(at, 10) for at in range(0, 900, 10)] == [[]] * 90


def test_a_list_of_another_size_is_refused() -> None:
    with pytest.raises(DataLossError, match="another size"):
        Ranges(bytes(32), 5, [Chunk(bytes(32), 0, 4)])
