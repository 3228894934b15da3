"""Outputs of a frame: in order, large values fetched several at once and not too much at a time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from cadenza.sdk import lanes, result


def small(size: int) -> dict[str, Any]:
    return {"value": {"size": size}, "status": "SUCCESS"}


def large(name: str, size: int) -> dict[str, Any]:
    return {"value": {"size": 0, "blob": {"blob_id": name, "size": size}}, "status": "SUCCESS"}


class Fetches:
    """A client whose large values come one turn of the loop later."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def _get_blob(self, blob_id: str) -> memoryview:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if blob_id == "bad":
            raise KeyError(blob_id)
        return memoryview(blob_id.encode())


def collect(client: Any, items: list[Any], payload: bytes, group_bytes: int) -> list[list[bytes]]:
    async def run() -> list[list[bytes]]:
        return [
            [bytes(data) for _, data in group] async for group in result.outputs(client, items, payload, group_bytes)
        ]

    return asyncio.run(run())


def test_values_and_blobs_stay_in_order_and_blobs_come_together() -> None:
    client = Fetches()
    items = [small(1), large("one", 10), small(2), large("two", 10), large("three", 10)]
    assert collect(client, items, b"abc", 100) == [[b"a", b"one", b"bc", b"two", b"three"]]
    assert client.most == 3


def test_no_more_than_the_group_is_fetched_ahead() -> None:
    client = Fetches()
    items = [large("one", 60), small(1), large("two", 60), large("huge", 500), large("three", 10)]
    assert collect(client, items, b"x", 100) == [[b"one", b"x"], [b"two"], [b"huge"], [b"three"]]
    assert client.most == 1


def test_without_large_values_there_is_one_group() -> None:
    assert collect(Fetches(), [small(1), small(1)], b"ab", 1) == [[b"a", b"b"]]
    assert collect(Fetches(), [], b"", 1) == []


def test_a_fetch_that_fails_is_raised() -> None:
    with pytest.raises(KeyError):
        collect(Fetches(), [large("one", 1), large("bad", 1)], b"", 100)


def test_lanes_read_several_at_once_and_use_their_connections_again(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(lanes.READERS, timeout=5)
    made: list[Any] = []

    class Lane:
        def __init__(self, path: str) -> None:
            self.closed = False
            made.append(self)

        def get(self, blob_id: str) -> memoryview:
            meeting.wait()  # only together
            return memoryview(blob_id.encode())

        def put(self, parts: Any, durable: bool) -> tuple[str, int]:
            return "bl-1", 3

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("cadenza.runner.lane.Lane", Lane)

    async def run() -> None:
        several = lanes.Lanes("/lane.sock")
        names = [str(number) for number in range(3 * lanes.READERS)]
        found = await asyncio.gather(*(several.get(name) for name in names))
        assert [bytes(one).decode() for one in found] == names
        assert await several.put([b"abc"], False) == ("bl-1", 3)
        several.close()

    asyncio.run(run())
    assert len(made) == 1 + lanes.READERS and all(one.closed for one in made)
