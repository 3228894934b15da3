"""Pure parts of showing trees: layers as values, what goes when many are mounted, names of variants, escapes."""

from __future__ import annotations

import stat

from cadenza.fs.links import key
from cadenza.fs.mount import IDLE_S, KEPT, Lowers, idle
from cadenza.fs.sparse import escaped
from cadenza.fs.tree import Node


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
