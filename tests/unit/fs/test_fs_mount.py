"""Pure parts of showing trees: layers as values, what goes when many are mounted, names of variants, escapes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cadenza.fs import links
from cadenza.fs.abilities import Abilities
from cadenza.fs.links import key
from cadenza.fs.mount import IDLE_S, KEPT, Lowers, Mounts, idle
from cadenza.fs.sparse import escaped
from cadenza.fs.tree import Node, directory, files, put


def test_layers_may_be_plain_directories() -> None:
    assert Lowers.of(["/a", "/b"]) == Lowers(("/a", "/b"))
    whole = Lowers(("/a",), ("/objects",))
    assert Lowers.of(whole) is whole
    assert whole.below("/x", "/y") == Lowers(("/x", "/y", "/a"), ("/objects",))
    assert whole.below() == whole


def test_few_trees_stay_however_old_they_are() -> None:
    assert idle({bytes([one]): 0.0 for one in range(200)}, 1e9) == []


def test_above_the_limit_the_oldest_go_unless_they_are_young() -> None:
    used = {number.to_bytes(2, "big"): float(number) for number in range(KEPT + 10)}
    assert idle(used, 1e9) == [number.to_bytes(2, "big") for number in range(10)]
    assert idle(used, IDLE_S + 4.5) == [number.to_bytes(2, "big") for number in range(5)]
    assert idle(used, 100.0) == []


def test_variants_are_named_by_content_and_attributes() -> None:
    def node(**changes: object) -> Node:
        values: dict[str, object] = {"mode": stat.S_IFREG | 0o644, "mtime": 5, "size": 1, "data": b"d" * 32}
        return Node(**{**values, **changes})  # type: ignore[arg-type]

    names = {
        key(one)
        for one in (
            node(), node(mode=stat.S_IFREG | 0o600), node(uid=1), node(gid=1), node(mtime=6), node(data=b"e" * 32),
            node(xattrs={b"user.a": b"1"}), node(xattrs={b"user.a": b"2"}),
        )
    }  # fmt: skip
    assert len(names) == 8
    assert key(node(link=3)) == key(node()), "names of one file are links of one variant"
    assert key(node(data=b"d" * 64)) == key(node())
    folder, _, name = key(node()).partition("/")
    assert folder == "64" and len(name) == 62 + 1 + 32


def test_attributes_that_overlayfs_would_obey_are_escaped() -> None:
    assert escaped(b"trusted.overlay.opaque") == b"trusted.overlay.overlay.opaque"
    assert escaped(b"user.overlay.redirect") == b"user.overlay.overlay.redirect"
    assert escaped(b"user.overlays") == b"user.overlays"
    assert escaped(b"security.capability") == b"security.capability"


class Remote:
    """A store that has a tree, and gets its content when it is told to."""

    def __init__(self, home: str, tiers: bool) -> None:
        self.home, self.objects, self.tiers = home, home + "/objects", tiers
        self.fetched: list[bytes] = []

    def path(self, digest: bytes) -> str:
        return f"{self.objects}/{digest.hex()}"

    def tree(self, digest: bytes) -> Node:
        return put(directory(), b"/file", Node(stat.S_IFREG | 0o644, os.geteuid(), os.getegid(), 5, 1, b"d" * 32))

    def put_tree(self, root: Node) -> bytes:
        raise AssertionError

    def fetch_all(self, nodes: Iterable[Node], at_once: int = 16) -> int:
        os.makedirs(self.objects, exist_ok=True)
        for one in nodes:
            self.fetched.append(one.data)
            Path(self.path(one.digest)).write_bytes(b"x")
        return 1


def test_without_a_lazy_mount_content_is_there_before_a_tree_is_shown(tmp_path: Path) -> None:
    store = Remote(str(tmp_path), True)
    mounts = Mounts(store, Abilities("links", prefix=b"user"))
    lowers = mounts.lowers([bytes(32)])
    assert store.fetched == [b"d" * 32] and lowers.data == ()
    assert Path(lowers.layers[0], "file").read_bytes() == b"x"
    mounts.lowers([bytes(32)])
    assert len(store.fetched) == 1, "it is shown already"
    mounts.close()


def test_a_tree_that_cannot_be_made_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    store = Remote(str(tmp_path), False)
    mounts = Mounts(store, Abilities("links", prefix=b"user"))
    with pytest.raises(FileNotFoundError):
        mounts.show(bytes(32))
    assert os.listdir(tmp_path / "links") == ["variants"]
    store.fetch_all(files(store.tree(bytes(32))))
    assert Path(mounts.show(bytes(32)), "file").read_bytes() == b"x"
    mounts.close()


class Plain(Mounts):
    """Of directories, without a mount; says what was made."""

    def __init__(self, store: Any) -> None:
        super().__init__(store, Abilities("links"))
        self.abilities = Abilities("erofs")
        self.made: list[bytes] = []

    def _make(self, tree: bytes, root: Node | None) -> None:
        self.made.append(tree)


def test_what_is_held_is_neither_hidden_nor_doubted(tmp_path: Path) -> None:
    mounts = Plain(Remote(str(tmp_path), True))
    with mounts.hold([b"a"]), mounts.hold([b"a", b"b"]):
        mounts.lowers([b"a", b"b", b"c"])
        mounts.doubt([])
        mounts.forget(b"a")
        mounts.lowers([b"a", b"b", b"c"])
        assert mounts.made == [b"a", b"b", b"c", b"c"] and mounts.held == {b"a", b"b"}
    mounts.doubt([b"b"])
    mounts.lowers([b"a", b"b"])
    assert mounts.made[4:] == [b"a"] and mounts.held == set()
    assert idle({b"%d" % one: 0.0 for one in range(KEPT + 1)}, IDLE_S + 1, [b"0"]) == []


def test_a_tree_of_three_thousand_levels_is_linked_and_removed(tmp_path: Path) -> None:
    """`shutil.rmtree` of Python 3.11 gives up at 1,000."""
    root = directory()
    for _ in range(3000):
        above = directory()
        assert above.children is not None
        above.children[b"d"] = root
        root = above
    links.make(root, str(tmp_path), "tree", lambda digest: "", b"user")
    assert os.listdir(tmp_path / "tree") == ["d"]
    links.remove(str(tmp_path), "tree")
    assert os.listdir(tmp_path) == ["variants"]
