"""What the lazy mount answers, message by message: the kernel's end is a socket here."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from cadenza.base.errors import DataLossError, NotFoundError, ResourceExhaustedError, ServiceError
from cadenza.fs import fuse, worker
from cadenza.fs.chunk import Chunk
from cadenza.fs.link import CACHED, RETRY, Trial
from cadenza.fs.tree import Node, directory
from cadenza.fs.worker import Worker

A = bytes.fromhex("ab" + 31 * "01")
B, C, TREE = (bytes.fromhex("ab" + 31 * one) for one in ("02", "03", "04"))
BIG = bytes.fromhex("cd" + 31 * "02")
MIB = 1 << 20
BIG_BYTES = worker.BIG_BYTES + MIB


class Shelf:
    """A store whose fetches wait until they are let go."""

    def __init__(self, home: Path) -> None:
        self.home = str(home)
        self.objects = str(home / "objects")
        os.makedirs(f"{self.objects}/ab")
        os.makedirs(f"{self.home}/big")
        self.gate = threading.Event()
        self.gate.set()
        self.errors: list[Exception] = []
        self.fetched: list[bytes] = []
        self.ranges: list[tuple[int, int]] = []

    def path(self, digest: bytes) -> str:
        text = digest.hex()
        return f"{self.objects}/{text[:2]}/{text[2:]}"

    def has(self, digest: bytes) -> bool:
        return os.path.exists(self.path(digest))

    def large(self, digest: bytes) -> Optional[tuple[int, bytes]]:
        return (BIG_BYTES, bytes(32)) if digest == BIG else None

    def chunks(self, list_digest: bytes) -> Sequence[Chunk]:
        return [Chunk(bytes(32), number * MIB, MIB) for number in range(BIG_BYTES // MIB)]

    def tree(self, digest: bytes) -> Node:
        if digest != TREE:
            raise NotFoundError("no such tree")
        folder = directory()
        assert folder.children is not None
        for number, one in enumerate((A, B, C)):
            folder.children[b"module_%d.py" % number] = Node(0o100644, size=1000, data=one)
        return folder

    def fetch(self, data: bytes, size: int = -1) -> str:
        self.fetched.append(data)
        self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        path = self.path(data[:32])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(b"content")
        return path

    def fetch_range(self, data: bytes, size: int, start: int, length: int, *, finish: bool = True) -> bytes:
        self.ranges.append((start, length))
        return bytes(length)


class Kernel:
    """The other end of the device."""

    def __init__(self, shelf: Shelf, **settings: Any) -> None:
        self.sock, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10)
        self.device = device
        self.said: list[dict[str, Any]] = []
        self.worker = Worker(device.fileno(), shelf, self.said.append, **settings)
        self.unique = 0

    def ask(self, opcode: int, node: int, body: bytes = b"", pid: int = 0, unique: int = 0) -> int:
        self.unique = unique or self.unique + 2
        self.worker.answer(fuse.request(fuse.pack_request(opcode, self.unique, node, body, pid)))
        return self.unique

    def hear(self) -> tuple[int, int, bytes]:
        """``(unique, errno, body)`` of the next answer."""
        raw = self.sock.recv(2 * MIB)
        _, error, unique = struct.unpack_from("=IiQ", raw)
        return unique, -error, raw[16:]

    def silent(self, for_s: float = 0.05) -> bool:
        self.sock.settimeout(for_s)
        try:
            self.sock.recv(MIB)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(10)
        return False

    def folder(self, name: str) -> int:
        self.ask(fuse.LOOKUP, fuse.ROOT, name.encode() + b"\0")
        _, error, body = self.hear()
        assert error == 0
        return int(struct.unpack_from("=Q", body)[0])

    def lookup(self, digest: bytes, **more: int) -> int:
        name = digest.hex()
        return self.ask(fuse.LOOKUP, self.folder(name[:2]), name[2:].encode() + b"\0", **more)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    one = Shelf(tmp_path)
    yield one
    one.gate.set()


def read(start: int, length: int) -> bytes:
    return struct.pack("=QQIIQII", 0, start, length, 0, 0, 0, 0)


def test_what_is_here_is_stale_at_once(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    shelf.fetch(A)
    shelf.fetched.clear()
    unique = kernel.lookup(A)
    assert kernel.hear() == (unique, errno.ESTALE, b"")
    assert not shelf.fetched


def test_what_lies_beside_what_is_missing_comes_too(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    shelf.fetch(C)
    shelf.fetched.clear()
    kernel.worker.show(bytes(32))  # a tree that cannot be had is passed over
    kernel.worker.show(TREE)
    unique = kernel.lookup(A)
    assert kernel.hear() == (unique, errno.ESTALE, b"")
    deadline = time.monotonic() + 10
    while not shelf.has(B) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(shelf.fetched) == [A, B]


def test_what_is_missing_is_fetched_and_then_stale(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    shelf.gate.clear()
    first, second = kernel.lookup(A), kernel.lookup(A)
    assert kernel.silent()
    shelf.gate.set()
    assert sorted((kernel.hear(), kernel.hear())) == [(first, errno.ESTALE, b""), (second, errno.ESTALE, b"")]
    assert shelf.fetched == [A]


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataLossError("wrong"), errno.EIO), (ResourceExhaustedError("full"), errno.ENOSPC), (KeyError(1), errno.EIO)],
)
def test_errors_are_told_and_not_remembered(shelf: Shelf, error: Exception, code: int) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    shelf.errors.append(error)
    kernel.lookup(A)
    assert kernel.hear()[1] == code
    assert {"t": "failed", "why": str(error)} in kernel.said, "whose start it was is said by the supervisor"
    kernel.lookup(A)
    assert kernel.hear()[1] == errno.ESTALE


def test_a_short_outage_is_waited_for(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AGAIN_S", 0.01)
    kernel = Kernel(shelf, mode=RETRY)
    shelf.errors += [ServiceError("down"), ServiceError("down")]
    kernel.lookup(A)
    assert kernel.hear()[1] == errno.ESTALE
    monkeypatch.setattr(worker, "PATIENCE_S", 0.0)
    os.unlink(shelf.path(A))
    shelf.errors += [ServiceError("down"), ServiceError("down")]
    kernel.lookup(A)
    assert kernel.hear()[1] == errno.EIO


def test_who_waits_too_long_is_told(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY, wait_s=0.1)
    shelf.gate.clear()
    began = time.monotonic()
    kernel.lookup(A)
    assert kernel.hear()[1] == errno.EIO
    assert 0.1 <= time.monotonic() - began < 1


def test_only_names_of_objects_are_known(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    for node, name in (
        (fuse.ROOT, "xy"),
        (fuse.ROOT, "abc"),
        (kernel.folder("ab"), "short"),
        (kernel.folder("ab"), "AB" * 31),
    ):
        kernel.ask(fuse.LOOKUP, node, name.encode() + b"\0")
        assert kernel.hear()[1] == errno.ENOENT


def test_the_killed_go_and_the_signalled_stay(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    shelf.gate.clear()
    with subprocess.Popen(["sleep", "60"]) as living:
        unique = kernel.lookup(A, pid=living.pid)
        kernel.ask(fuse.INTERRUPT, 0, struct.pack("=Q", unique), unique=unique | 1)
        assert kernel.silent()
        living.kill()
        living.wait()
        assert kernel.hear() == (unique, errno.EINTR, b""), "it is looked at again without another signal"
    shelf.gate.set()
    assert kernel.silent()


def test_a_resent_message_is_answered_by_its_new_name(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    unique = kernel.lookup(A, unique=100 | fuse.RESENT)
    assert kernel.hear() == (unique, errno.ESTALE, b"")


def test_without_retries_content_comes_through_here(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=CACHED)
    kernel.lookup(A)
    _, error, body = kernel.hear()
    assert error == 0
    node, size = struct.unpack_from("=Q", body)[0], struct.unpack_from("=Q", body, 48)[0]
    assert size == 7
    again = Kernel(shelf, mode=CACHED)  # another worker, that never heard of this number
    again.ask(fuse.READ, node, read(2, 100))
    assert again.hear()[1:] == (0, b"ntent")


def test_large_objects_are_files_here_and_read_by_range(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    Path(shelf.home, "big", BIG.hex()).touch()
    kernel.lookup(BIG)
    _, error, body = kernel.hear()
    assert error == 0 and not shelf.fetched
    node = struct.unpack_from("=Q", body)[0]
    kernel.ask(fuse.OPEN, node)
    assert kernel.hear()[1] == 0
    again = Kernel(shelf, mode=RETRY)
    again.ask(fuse.READ, node, read(10 * MIB - 10, 20))
    assert again.hear()[1:] == (0, bytes(20))
    assert shelf.ranges == [(9 * MIB, 1), (10 * MIB, 1), (10 * MIB - 10, 20)]


def test_what_was_wanted_is_told_when_it_is_there(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    others = [bytes([number]) * 32 for number in range(5)]
    shelf.errors.append(DataLossError("wrong"))
    kernel.worker.prefetch(3, [(one, 7) for one in others])
    until = time.monotonic() + 5
    while not [one for one in kernel.said if one["t"] == "done"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert {"t": "done", "number": 3, "wanted": 5, "failed": 1} in kernel.said
    kernel.worker.prefetch(4, [(others[-1], 7)])
    assert {"t": "done", "number": 4, "wanted": 0, "failed": 0} in kernel.said


def test_large_objects_are_not_fetched_whole_ahead_of_need(shelf: Shelf) -> None:
    kernel = Kernel(shelf, mode=RETRY)
    kernel.worker.prefetch(5, [(BIG + bytes(32), BIG_BYTES), (A, 7)])
    until = time.monotonic() + 5
    while {"t": "done", "number": 5, "wanted": 2, "failed": 0} not in kernel.said:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert shelf.fetched == [A] and not shelf.ranges


def test_a_trial_needs_no_store(shelf: Shelf, tmp_path: Path) -> None:
    trial = Trial(A, str(tmp_path / "elsewhere/ab/rest"), b"trial")
    kernel = Kernel(shelf, mode=RETRY, trial=trial)
    kernel.lookup(A)
    assert kernel.hear()[1] == errno.ESTALE
    assert Path(trial.path).read_bytes() == b"trial" and not shelf.fetched


def test_what_is_not_known_is_said_to_be_so(shelf: Shelf) -> None:
    kernel = Kernel(shelf)
    kernel.ask(52, fuse.ROOT)
    assert kernel.hear()[1] == errno.ENOSYS
    for opcode in (fuse.FORGET, fuse.BATCH_FORGET):
        kernel.ask(opcode, 5, bytes(16))
    assert kernel.silent()


def test_a_worker_that_is_kept_by_one_message_does_not_say_that_it_goes_on(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(shelf)
    kernel.device.close()
    assert kernel.worker.goes_on()
    held, go_on = threading.Event(), threading.Event()

    def read(*_: Any) -> int:
        if held.is_set():
            raise OSError(errno.ENODEV, "the mount is gone")
        held.set()
        return len(message)

    message = fuse.pack_request(fuse.STATFS, 2, 1)
    monkeypatch.setattr(worker, "STUCK_S", 0.1)
    monkeypatch.setattr(worker.os, "readv", read)
    monkeypatch.setattr(worker.fuse, "request", lambda _: fuse.Request(fuse.STATFS, 2, 1, 0, b""))
    monkeypatch.setattr(kernel.worker, "answer", lambda _: go_on.wait(10))
    thread = threading.Thread(target=kernel.worker.serve)
    thread.start()
    held.wait(10)
    time.sleep(0.3)
    assert not kernel.worker.goes_on()
    go_on.set()
    thread.join(10)
    assert kernel.worker.goes_on()
