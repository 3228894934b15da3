"""Records of what starts read: merged, bounded, resolved against a tree."""

from __future__ import annotations

import stat
import threading
from typing import Optional

from cadenza.base.errors import ServiceError
from cadenza.fs import traces, tree
from cadenza.fs.traces import STARTS, Traces, content, decode, merge
from cadenza.fs.tree import Node


class Records:
    """A store's records in memory; its bucket may be down."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.there: dict[str, bytes] = {}
        self.down = False
        self.decoded = 0
        self.bucket: dict[str, bytes] = {}
        self.asked = 0

    def path(self, digest: bytes) -> str:
        return "/nonexistent/" + digest.hex()

    def tree(self, digest: bytes) -> Node:
        self.decoded += 1
        return self.root

    def put_record(self, kind: str, name: str, value: bytes, *, remote: bool) -> None:
        assert kind == "traces"
        self.there[name] = value
        if remote and self.down:
            raise ServiceError("the bucket is down")

    def get_record(self, kind: str, name: str, *, remote: bool) -> Optional[bytes]:
        self.asked += remote
        return self.there.get(name) or (self.bucket.get(name) if remote else None)


def sample() -> Node:
    root = tree.directory()
    for number, path in enumerate((b"/bin/python", b"/lib/a.py", b"/lib/b.py", b"/lib/a_again.py")):
        data = bytes([number % 3 + 1]) * 32
        root = tree.put(root, path, Node(stat.S_IFREG | 0o644, size=10 + number % 3, data=data))
    root = tree.put(root, b"/lib/empty.py", Node(stat.S_IFREG | 0o644))
    return tree.put(root, b"/link", Node(stat.S_IFLNK | 0o777, data=b"bin/python", size=10))


def test_later_starts_add_what_they_open_beside() -> None:
    record = merge(merge(None, ["/a", "/b"]), ["/b", "/c", "/a"])
    assert decode(record) == (2, ["/a", "/b", "/c"])


def test_what_is_no_record_is_none() -> None:
    for text in (None, b"", b"[]", b"{}", b"\xff", b'{"starts": 1}', b'{"starts": "x", "paths": []}'):
        assert decode(text) == (0, [])


def test_paths_become_contents_in_order_each_once() -> None:
    paths = ["/lib/b.py", "/bin/python", "/lib/a_again.py", "/lib/empty.py", "/lib", "/link", "/none", "/lib/a.py"]
    assert content(sample(), paths) == [(b"\x03" * 32, 12), (b"\x01" * 32, 10), (b"\x02" * 32, 11)]


def test_few_starts_are_recorded_and_only_what_is_of_the_image() -> None:
    store = Records(sample())
    kept = Traces(store)
    digest = bytes(32)
    assert kept.wanted(digest) == []
    assert [kept.begin(digest) for _ in range(STARTS + 1)] == [True] * STARTS + [False]
    kept.keep(digest, ["/bin/python", "/tmp/own"])
    kept.drop(digest)
    assert kept.begin(digest) and not kept.begin(digest)
    assert decode(store.there[digest.hex()]) == (1, ["/bin/python"])
    assert kept.wanted(digest) == [(b"\x01" * 32, 10)]
    later = Traces(store)
    assert [later.begin(digest) for _ in range(STARTS)] == [True] * (STARTS - 1) + [False]


def test_a_bucket_that_is_down_is_no_fault_of_the_container() -> None:
    store = Records(sample())
    store.down = True
    kept = Traces(store)
    assert kept.begin(bytes(32))
    kept.keep(bytes(32), ["/lib/a.py"])
    assert kept.wanted(bytes(32)) == [(b"\x02" * 32, 11)]
    assert kept.read_ahead(bytes(32)) == 0


def test_a_record_is_bounded() -> None:
    long = merge(None, [f"/{number}" for number in range(traces.MOST_PATHS + 5)])
    assert len(decode(long)[1]) == traces.MOST_PATHS


def test_the_bucket_is_asked_once_and_the_tree_is_read_once_a_record() -> None:
    store = Records(sample())
    kept = Traces(store)
    other = b"\x01" * 32
    assert kept.wanted(other) == [] and kept.wanted(other) == [] and store.asked == 1 and store.decoded == 0
    store.bucket[bytes(32).hex()] = merge(None, ["/lib/a.py"])
    for _ in range(3):
        assert kept.wanted(bytes(32)) == [(b"\x02" * 32, 11)]
    assert (store.asked, store.decoded) == (2, 1)
    assert store.there == store.bucket, "it is kept here"
    kept.keep(bytes(32), ["/lib/b.py"])
    assert kept.wanted(bytes(32)) == [(b"\x02" * 32, 11), (b"\x03" * 32, 12)]


def test_a_bucket_that_hangs_holds_up_no_start() -> None:
    hangs, over = threading.Event(), threading.Event()

    class Slow(Records):
        def put_record(self, kind: str, name: str, value: bytes, *, remote: bool) -> None:
            super().put_record(kind, name, value, remote=remote)
            if remote:
                hangs.set()
                assert over.wait(20)

    kept, digest = Traces(Slow(sample())), bytes(32)
    assert kept.begin(digest)
    keeps = threading.Thread(target=kept.keep, args=(digest, ["/lib/a.py"]))
    keeps.start()
    assert hangs.wait(20)
    begun: list[bool] = []
    other = threading.Thread(target=lambda: begun.append(kept.begin(digest)), daemon=True)
    other.start()
    other.join(5)
    over.set()
    keeps.join(20)
    assert begun, "a start waited for the bucket"
