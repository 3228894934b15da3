"""The lane's client against a server in memory: docs/formats/wire.md, 'The lane'."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from runner_peer import LaneServer

from cadenza.base.errors import NotFoundError, ServiceError
from cadenza.protocol.frame import encode
from cadenza.runner import values
from cadenza.runner import lane as lane_code
from cadenza.runner.lane import Lane, Memory, Pool


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="cadenza-lane-") as path:
        yield path


@pytest.fixture(params=[True, False], ids=["descriptors", "bytes"])
def server(request: pytest.FixtureRequest, folder: str) -> Iterator[LaneServer]:
    one = LaneServer(folder + "/lane.sock", descriptors=request.param)
    yield one
    one.close()


@pytest.fixture
def lane(server: LaneServer, folder: str) -> Iterator[Lane]:
    one = Lane(folder + "/lane.sock")
    yield one
    one.close()


def test_put_and_get(server: LaneServer, lane: Lane) -> None:
    array = np.arange(300_000)
    parts = values.pack({"a": array, "b": "x"})
    blob, size = lane.put(parts, durable=True)
    assert server.content(blob) == b"".join(parts) and size == len(b"".join(parts))
    assert server.durable == [blob]
    found = values.unpack(lane.get(blob))
    assert np.array_equal(found["a"], array)
    found["a"] += 1  # the user's to write to, and nobody else sees it
    assert server.content(blob) == b"".join(parts)
    assert np.array_equal(values.unpack(lane.get(blob))["a"], array)


def test_empty_and_unknown(server: LaneServer, lane: Lane) -> None:
    blob, size = lane.put([], durable=False)
    assert size == 0 and bytes(lane.get(blob)) == b""
    with pytest.raises(NotFoundError, match="bl-77"):
        lane.get("bl-77")
    assert lane.put([b"abc"], False)[1] == 3


def test_many_parts(server: LaneServer, lane: Lane) -> None:
    parts = [bytes([n % 256]) * (n % 7) for n in range(3000)]
    blob, _ = lane.put(parts, False)
    assert server.content(blob) == b"".join(parts)


def test_threads(server: LaneServer, lane: Lane) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        for step in range(20):
            data = os.urandom(50_000 + number * 100 + step)
            blob, _ = lane.put([data], False)
            if bytes(lane.get(blob)) != data:
                failures.append((number, step))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_release_when_the_last_view_dies(folder: str) -> None:
    server = LaneServer(folder + "/lane.sock")
    lane = Lane(folder + "/lane.sock")
    blob, _ = lane.put(values.pack(np.zeros(100_000)), False)
    array = values.unpack(lane.get(blob))
    piece = array[10:20]
    del array
    gc.collect()
    lane.put([b"x"], False)
    assert server.released == []
    del piece
    gc.collect()
    lane.put([b"x"], False)
    assert server.released == [blob]
    lane.close()
    server.close()


def test_memory_is_used_again_once_the_server_says_so(folder: str) -> None:
    server = LaneServer(folder + "/lane.sock")
    lane = Lane(folder + "/lane.sock")
    first, _ = lane.put([b"a" * 1_000_000], False)
    inode = os.fstat(server.blobs[first][0]).st_ino
    second, _ = lane.put([b"b" * 1_000_000], False)
    assert os.fstat(server.blobs[second][0]).st_ino != inode
    server.freed = [first]
    lane.put([b"c"], False)
    third, _ = lane.put([b"d" * 900_000, b"e" * 50_000], False)
    assert os.fstat(server.blobs[third][0]).st_ino == inode
    assert server.content(third) == b"d" * 900_000 + b"e" * 50_000
    server.freed = [third]
    lane.put([b"f"], False)
    fourth, _ = lane.put([b"g" * 950_000], False)
    assert os.fstat(server.blobs[fourth][0]).st_ino == inode and server.content(fourth) == b"g" * 950_000
    lane.close()
    server.close()


def test_fallback_is_remembered(folder: str) -> None:
    """gVisor passes no descriptor out: one refusal, then bytes."""
    server = LaneServer(folder + "/lane.sock", descriptors=False)
    lane = Lane(folder + "/lane.sock")
    for _ in range(3):
        lane.put([b"abc"], False)
    assert [one["fd"] for one in server.requests] == [True, False, False, False]
    lane.close()
    server.close()


def test_reconnects_after_a_fault(folder: str) -> None:
    path = folder + "/lane.sock"
    lane = Lane(path)
    with pytest.raises(ServiceError, match=r"Cannot reach the server's lane for large values at .*lane\.sock"):
        lane.put([b"abc"], False)
    server = LaneServer(path)
    blob, _ = lane.put([b"abc"], False)
    assert bytes(lane.get(blob)) == b"abc"
    server.close()
    lane.close()


def test_a_server_that_dies_in_the_middle_of_a_value(folder: str) -> None:
    """Where values come as bytes: the error is ours, and nothing of the old value is taken for the next reply."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(folder + "/lane.sock")
    listening.listen()

    def half() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(encode({"t": "ok", "size": 100, "fd": False}) + b"x" * 50)

    thread = threading.Thread(target=half, daemon=True)
    thread.start()
    lane = Lane(folder + "/lane.sock")
    with pytest.raises(ServiceError, match="broke off"):
        lane.get("bl-1")
    assert lane._sock is None
    thread.join()
    listening.close()


def test_a_forked_child_has_a_connection_of_its_own(folder: str) -> None:
    server = LaneServer(folder + "/lane.sock")
    lane = Lane(folder + "/lane.sock")
    blob, _ = lane.put([b"parent"], False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            lane.put([b"child"], False)
            code = 0 if bytes(lane.get(blob)) == b"parent" else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert bytes(lane.get(blob)) == b"parent"
    lane.close()
    server.close()


def test_pool_is_bounded_and_fits() -> None:
    pool = Pool(max_bytes=3 * 4096)
    made = [Memory(4096) for _ in range(5)]
    for memory in made:
        pool.keep(memory)
    assert pool.free == made[2:]
    assert pool.take(100) not in made  # four times too large is not used
    assert pool.take(3000) is made[2]
    assert pool.take(5000) not in made
    pool.close()


def test_memory_cannot_shrink_under_its_reader() -> None:
    memory = Memory(10_000)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    assert os.fstat(memory.fd).st_size == 12288 and Path(f"/proc/self/fd/{memory.fd}").exists()
    memory.close()


def test_two_threads_copy_what_one_would() -> None:
    """Used memory, a large piece between small ones, odd sizes: every byte where it belongs, and the map can close."""
    import numpy

    large = numpy.random.default_rng(3).integers(0, 255, lane_code.SHARED_COPY_BYTES + 4097, dtype=numpy.uint8)
    parts = [b"before", memoryview(large), b"after"]
    memory = lane_code.Memory(sum(map(len, parts)))
    memory.fill([b"-" * 10])  # the first fill goes another way
    memory.fill(parts)
    assert memory.map is not None
    assert memory.map[: sum(map(len, parts))] == b"".join(bytes(one) for one in parts)
    memory.close()
