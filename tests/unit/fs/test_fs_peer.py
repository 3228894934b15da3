"""Machines that give each other content over HTTP: who may ask, for what; liars, the slow and the dead."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import pytest

from cadenza.base.errors import InvalidError, NotFoundError, ServiceError
from cadenza.fs import peer as peers
from cadenza.fs import tree
from cadenza.fs.peer import Peer, file_of, parse_address
from cadenza.fs.store import Store
from cadenza.fs.tiers import PEER_LIMITS, open_peers
from cadenza.fs.tree import Node
from cadenza.storage.bucket import open_bucket

LARGE = os.urandom(9 << 20)
KEY = "the machines' key"


class Running:
    """A peer in a thread of its own."""

    def __init__(self, home: str, key: str = "") -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.peer = Peer(home, "127.0.0.1:0", key)
        self._do(self.peer.open())
        self.address = f"http://127.0.0.1:{self.peer.port}"

    def _do(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self.loop).result(20)

    def close(self) -> None:
        self._do(self.peer.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class Answering:
    """A server that accepts and then does as it is told: what it gets is a connection whose request was read."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.asked = 0
        self._act = act
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            self.asked += 1
            try:
                self._act(connection)
            except OSError:
                return


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "source"))
    yield made
    made.close()


@pytest.fixture
def running(source: Store) -> Iterator[Running]:
    made = Running(source.home, KEY)
    yield made
    made.close()


def put(store: Store, content: bytes) -> Node:
    with store.draft() as one:
        one.write(content)
        data, size = one.commit()
    return Node(stat.S_IFREG | 0o644, size=size, data=data)


def ask(
    running: Running, path: str, method: str = "GET", key: Optional[str] = KEY, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.peer.port, timeout=10)
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def address_of(node: Node) -> str:
    return f"/objects/{node.digest.hex()[:2]}/{node.digest.hex()[2:]}"


def test_a_store_is_filled_from_another_machine(source: Store, running: Running, tmp_path: Path) -> None:
    small, large = put(source, b"small"), put(source, LARGE)
    digest = source.put_tree(tree.put(tree.put(tree.directory(), b"/a", small), b"/b", large))
    store = Store(str(tmp_path / "other"), None, open_peers(running.address, KEY))
    root = store.tree(digest)
    assert store.fetch_range(large.data, large.size, 5_000_000, 1000, finish=False) == LARGE[5_000_000:5_001_000]
    assert store.fetch_all(tree.files(root)) > 5
    assert Path(store.path(small.data)).read_bytes() == b"small"
    assert store.verify(large.data) == "whole"
    with pytest.raises(NotFoundError):
        store.fetch(bytes(32), 5)
    store.close()
    assert running.peer.bytes_given >= len(LARGE)


def test_whole_files_and_ranges_of_them(source: Store, running: Running) -> None:
    node = put(source, bytes(range(200)))
    assert ask(running, address_of(node)) == (200, bytes(range(200)))
    assert ask(running, address_of(node), Range="bytes=10-19") == (206, bytes(range(10, 20)))
    assert ask(running, address_of(node), "HEAD") == (200, b"")
    assert ask(running, address_of(node), "PUT")[0] == 405
    assert ask(running, address_of(node), "DELETE")[0] == 405


def test_nothing_else_is_given(source: Store, running: Running) -> None:
    node = put(source, b"content")
    source.put_record("steps", "ab", b"{}", remote=False)
    for path in (
        "/", "/objects", "/objects/", "/objects/ab", "/steps/ab", "/steps/", "/tmp", "/objects/../steps/ab", "/..%2f",
        address_of(node)[:-1], address_of(node) + "0", address_of(node).upper(),
        "/objects/ab/../" + address_of(node)[9:],
        "/big/" + node.digest.hex(), "/trees/ab/" + "0" * 62, "//etc/passwd", "/objects/ab/" + "%00" * 20,
    ):  # fmt: skip
        assert ask(running, path)[0] == 404, path


def test_without_the_key_nothing_is_given(source: Store, running: Running, tmp_path: Path) -> None:
    node = put(source, b"content")
    for key in (None, "", "another", KEY + "x", KEY[:-1], "\xfc"):
        assert ask(running, address_of(node), key=key)[0] == 401
    with socket.create_connection(("127.0.0.1", running.peer.port), 5) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while part := stranger.recv(4096):  # to its end: the connection is not kept
            answer += part
        assert answer.startswith(b"HTTP/1.1 401")
    store = Store(str(tmp_path / "other"), None, open_peers(running.address, "another"))
    with pytest.raises(ServiceError, match="refuses the credentials"):
        store.fetch(node.data, node.size)
    store.close()


def test_beyond_loopback_a_key_is_needed() -> None:
    assert parse_address("127.0.0.1:9", "") == ("127.0.0.1", 9)
    assert parse_address("[::1]:9", "") == ("::1", 9)
    assert parse_address("localhost:9", "") == ("localhost", 9)
    assert parse_address("0.0.0.0:9", "k") == ("0.0.0.0", 9)
    for address in ("0.0.0.0:9", "[::]:9", "192.0.2.1:9", "machine:9"):
        with pytest.raises(InvalidError, match="peer_key"):
            parse_address(address, "")
    for address in ("", "127.0.0.1", ":9", "127.0.0.1:x", "127.0.0.1:99999"):
        with pytest.raises(InvalidError, match="host:port"):
            parse_address(address, "k")


def test_an_address_that_is_taken(source: Store, running: Running) -> None:
    async def second() -> None:
        with pytest.raises(ServiceError, match=str(running.peer.port)):
            await Peer(source.home, f"127.0.0.1:{running.peer.port}").open()

    asyncio.run(second())


def test_files_by_place() -> None:
    rest = "c" * 62
    assert file_of("/s", f"/objects/ab/{rest}") == f"/s/objects/ab/{rest}"
    assert file_of("/s", f"/trees/ab/{rest}") == f"/s/trees/ab{rest}"
    assert file_of("/s", f"/objects/ab/{rest}\n") is None


def test_a_limit_on_connections(source: Store, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", 3)
    node = put(source, b"content")
    idle = [socket.create_connection(("127.0.0.1", running.peer.port)) for _ in range(3)]
    time.sleep(0.2)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(running, address_of(node))
    for one in idle:
        one.close()
    time.sleep(0.2)
    assert ask(running, address_of(node))[0] == 200


def test_who_never_asks_is_put_out(source: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST_REQUEST_S", 0.2)
    running = Running(source.home)
    silent = socket.create_connection(("127.0.0.1", running.peer.port))
    drip = socket.create_connection(("127.0.0.1", running.peer.port))
    drip.sendall(b"GET /")
    try:
        for one in (silent, drip):
            one.settimeout(5)
            try:
                assert one.recv(1) == b""
            except ConnectionResetError:
                continue
    finally:
        running.close()


def test_too_many_answers_at_once_send_elsewhere(
    source: Store, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = put(source, b"content")
    monkeypatch.setattr(peers, "MAX_ANSWERS", 0)
    assert ask(running, address_of(node))[0] == 503
    monkeypatch.setattr(peers, "MAX_ANSWERS", 1)
    assert ask(running, address_of(node))[0] == 200
    assert ask(running, address_of(node))[0] == 200


# Peers that are not what they should be, with a remote behind them that is.


def fetch_around(address: str, tmp_path: Path, limit_s: float) -> Store:
    remote = open_bucket("memory://")
    first = Store(str(tmp_path / "first"), remote)
    node = put(first, b"content")
    large = put(first, LARGE)
    first.push(first.put_tree(tree.put(tree.put(tree.directory(), b"/f", node), b"/g", large)))
    first.close()
    store = Store(str(tmp_path / "second"), remote, open_peers(address, KEY))
    begun = time.monotonic()
    for one in (node, large):
        store.fetch(one.data, one.size)
        assert store.verify(one.data) == "whole"
    assert time.monotonic() - begun < limit_s
    store.close()
    return store


def test_a_lying_peer(tmp_path: Path) -> None:
    def lie(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nLast-Modified: Sun, 22 Nov 2026 07:00:00 GMT\r\n"
            b"Connection: close\r\n\r\nCONTENT"
        )

    liar = Answering(lie)
    store = fetch_around(liar.address, tmp_path, 5)
    assert liar.asked >= 1 and store.fetcher.bytes_by["peer"] == 0


def test_an_endless_peer(tmp_path: Path) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nLast-Modified: Sun, 22 Nov 2026 07:00:00 GMT\r\n\r\n")
        for _ in range(2000):
            connection.sendall(bytes(65536))

    fetch_around(Answering(flood).address, tmp_path, 10)


def test_a_silent_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEER_LIMITS, "read_timeout", "400ms")
    slow = Answering(lambda connection: time.sleep(20))
    store = fetch_around(slow.address, tmp_path, 8)
    assert "does not answer within the time limit" in store.tiers.peers[0].fault


def test_a_peer_that_stops_in_the_middle(tmp_path: Path) -> None:
    def stop(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nLast-Modified: Sun, 22 Nov 2026 07:00:00 GMT\r\n\r\ncon"
        )

    fetch_around(Answering(stop).address, tmp_path, 8)


def test_a_dead_peer(tmp_path: Path) -> None:
    gone = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{gone.getsockname()[1]}"
    gone.close()
    store = fetch_around(address, tmp_path, 3)
    assert "connection refused" in store.tiers.peers[0].fault


def test_who_does_not_read_is_put_out(source: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ANSWER_S", 0.3)
    running = Running(source.home)
    node = put(source, LARGE)
    with socket.create_connection(("127.0.0.1", running.peer.port)) as stuck:
        stuck.sendall(f"GET {address_of(node)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(1.0)
        stuck.settimeout(5)
        got = 0
        try:
            while part := stuck.recv(1 << 20):
                got += len(part)
        except ConnectionResetError:
            pass
    assert got < len(LARGE)
    running.close()


@pytest.mark.parametrize("address", ["10.0.0.8:8900", "s3://bucket/x", "http://", "http://one:8900, two"])
def test_peers_that_are_no_addresses(address: str) -> None:
    with pytest.raises(InvalidError, match=r"peers: .* http://host:port"):
        open_peers(address, KEY)
