"""The store against what only a real machine does: processes killed anywhere, disks that are full, two machines' worth
of servers over loopback with a bucket that speaks S3."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Iterator

import pytest

from cadenza.base.errors import ResourceExhaustedError, ServiceError
from cadenza.fs import tree
from cadenza.fs.peer import Peer
from cadenza.fs.store import Store
from cadenza.fs.tiers import open_peers
from cadenza.fs.tree import Node
from cadenza.storage.bucket import open_bucket

WRITER = """
import os, random, stat, sys
from cadenza.fs import tree
from cadenza.fs.store import Store
from cadenza.fs.tree import Node
from cadenza.storage.bucket import open_bucket
home, work, bucket = sys.argv[1:4]
store = Store(home, open_bucket("file://" + bucket))
print("open", flush=True)
number = 0
while True:
    root = tree.directory()
    for name in range(random.randrange(1, 30)):
        number += 1
        content = random.randbytes(random.choice([1, 100, 5000, 200_000]))
        if number % 40 == 0:
            content *= 9 << 20
            content = content[: 9 << 20]
        if random.random() < 0.5:
            path = os.path.join(work, str(number))
            with open(path, "wb") as file:
                file.write(content)
            data, size = store.take(path)
        else:
            with store.draft() as draft:
                draft.write(content)
                data, size = draft.commit()
        root = tree.put(root, b"/%d" % name, Node(stat.S_IFREG | 0o644, size=size, data=data))
    digest = store.put_tree(root)
    store.put_record("steps", digest.hex(), b"{}", remote=False)
    if random.random() < 0.3:
        store.push(digest)
    if random.random() < 0.2:
        store.settle()
"""

FETCHER = """
import sys
from cadenza.fs import tree
from cadenza.fs.store import Store
from cadenza.storage.bucket import open_bucket
home, bucket, digest = sys.argv[1:4]
store = Store(home, open_bucket("file://" + bucket))
print("open", flush=True)
store.fetch_all(tree.files(store.tree(bytes.fromhex(digest))), 4)
print("done", flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"open\n"
    return child


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    assert child.stdout is not None
    child.stdout.close()
    child.wait(10)


def test_a_writer_killed_anywhere_leaves_a_store_that_holds(tmp_path: Path) -> None:
    home, work, bucket = (str(tmp_path / name) for name in ("store", "work", "bucket"))
    os.mkdir(work)
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for _ in range(12):
        child = start(WRITER, home, work, bucket)
        time.sleep(chance.uniform(0.0, 0.4))
        kill(child)
    store = Store(home, open_bucket(f"file://{bucket}"))
    found = store.scrub(1 << 40)
    assert found.finished and found.objects > 50 and not found.lost and not found.repaired, seed
    names = os.listdir(f"{home}/trees")
    assert len(names) > 5
    for name in names:
        for node in tree.files(store.tree(bytes.fromhex(name))):
            assert os.stat(store.path(node.data)).st_size == node.size, seed
            if node.list_digest:
                assert sum(one.length for one in store.chunks(node.list_digest)) == node.size
    assert set(store.records("steps")) <= set(names)
    assert os.listdir(store.drafts.path) == []
    assert [one for one in os.listdir(f"{home}/tmp") if one != store.drafts.name] == []
    store.close()
    # And what the bucket has of trees, it has whole.
    other = Store(str(tmp_path / "other"), open_bucket(f"file://{bucket}"))
    for stored in open_bucket(f"file://{bucket}").list("trees"):
        digest = bytes.fromhex("".join(stored.key.split("/")[1:]))
        other.fetch_all(tree.files(other.tree(digest)))
    assert other.scrub(1 << 40).lost == []
    other.close()


def test_a_fetcher_killed_anywhere_goes_on_where_it_was(tmp_path: Path) -> None:
    bucket = str(tmp_path / "bucket")
    source = Store(str(tmp_path / "source"), open_bucket(f"file://{bucket}"))
    root = tree.directory()
    for number, content in enumerate([os.urandom(40 << 20), *(os.urandom(2000) for _ in range(300))]):
        with source.draft() as draft:
            draft.write(content)
            data, size = draft.commit()
        root = tree.put(root, b"/%d" % number, Node(stat.S_IFREG, size=size, data=data))
    digest = source.put_tree(root)
    source.push(digest)
    source.close()
    home = str(tmp_path / "store")
    for _ in range(8):
        child = start(FETCHER, home, bucket, digest.hex())
        time.sleep(random.uniform(0.0, 0.15))
        kill(child)
    store = Store(home, open_bucket(f"file://{bucket}"))
    store.fetch_all(tree.files(store.tree(digest)))
    found = store.scrub(1 << 40)
    assert found.objects == 301 and not found.lost and not found.repaired
    assert not [one for one in os.listdir(f"{home}/big") if "." in one]
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_leaves_nothing_and_the_store_goes_on(small_disk: Path, tmp_path: Path) -> None:
    bucket = open_bucket(f"file://{tmp_path}/bucket")
    source = Store(str(tmp_path / "source"), bucket)
    with source.draft() as draft:
        draft.write(os.urandom(30 << 20))
        large, large_size = draft.commit()
    with source.draft() as draft:
        draft.write(os.urandom(6 << 20))
        small, small_size = draft.commit()
    root = tree.put(tree.directory(), b"/a", Node(stat.S_IFREG, size=large_size, data=large))
    source.push(source.put_tree(tree.put(root, b"/b", Node(stat.S_IFREG, size=small_size, data=small))))
    source.close()

    store = Store(str(small_disk / "store"), bucket)

    def used() -> int:
        found = os.statvfs(small_disk)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    store.chunks(large[32:])
    before = used()
    with pytest.raises(ResourceExhaustedError, match=store.home):
        store.fetch(large, large_size)
    with pytest.raises(ResourceExhaustedError, match=store.home):
        store.fetch_range(large, large_size, 0, large_size, finish=False)
    with pytest.raises(ResourceExhaustedError, match=store.home), store.draft() as draft:
        for _ in range(30):
            draft.write(os.urandom(1 << 20))
    assert used() - before < 64 << 10
    store.fetch(small, small_size)
    assert store.verify(small) == "whole"
    store.close()


def test_two_machines_a_bucket_and_its_end(tmp_path: Path) -> None:
    """A builds and pushes, B has it all from the bucket, C from B alone once the bucket is dead."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/images", method="PUT"), timeout=10).close()
    options = {"endpoint": endpoint, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}

    def remote() -> object:
        return open_bucket("s3://images/cadenza", options)

    a = Store(str(tmp_path / "a"), remote())  # type: ignore[arg-type]
    root = tree.directory()
    contents = [os.urandom(12 << 20), *(os.urandom(3000) for _ in range(100))]
    for number, content in enumerate(contents):
        with a.draft() as draft:
            draft.write(content)
            data, size = draft.commit()
        root = tree.put(root, b"/%d" % number, Node(stat.S_IFREG, size=size, data=data))
    digest = a.put_tree(root)
    a.push(digest)
    b = Store(str(tmp_path / "b"), remote())  # type: ignore[arg-type]
    assert b.fetch_all(tree.files(b.tree(digest))) == sum(map(len, contents))
    server.stop()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    peer = Peer(b.home, "127.0.0.1:0", "key")
    asyncio.run_coroutine_threadsafe(peer.open(), loop).result(20)
    try:
        address = f"http://127.0.0.1:{peer.port}"
        c = Store(str(tmp_path / "c"), remote(), open_peers(address, "key"))  # type: ignore[arg-type]
        assert c.fetch_all(tree.files(c.tree(digest))) == sum(map(len, contents))
        assert c.scrub(1 << 40).lost == []
        begun = time.monotonic()
        for _ in range(50):
            with pytest.raises(ServiceError, match="s3://images/cadenza cannot be reached"):
                c.fetch(os.urandom(32), 5)
        assert time.monotonic() - begun < 8
        c.close()
    finally:
        asyncio.run_coroutine_threadsafe(peer.close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
    for store in (a, b):
        store.close()
