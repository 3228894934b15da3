"""EROFS images read back by a second implementation, after docs/formats/erofs.md.

``python tests/unit/fs/test_fs_erofs.py --rewrite`` rewrites the golden image.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any, Optional

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cadenza.base.errors import InvalidError
from cadenza.fs.erofs import write
from cadenza.fs.tree import OPAQUE, Node, directory, whiteout

GOLDEN = Path(__file__).parents[2] / "golden/fs/erofs.txt"
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
KINDS = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6}
KINDS[stat.S_IFLNK] = 7


class Reader:
    """Reads what docs/formats/erofs.md says, and holds the image to it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        (
            magic, checksum, compat, bits, slots, root, inodes, built, built_ns, blocks, meta, shared, self.uuid, name,
            incompat,
        ) = struct.unpack_from("<IIIBBHQQIIII16s16sI", data, 1024)  # fmt: skip
        assert (magic, compat, bits, slots, built, built_ns, meta, name, incompat) == (
            0xE0F5E1E2, 3, 12, 0, 0, 0, 0, bytes(16), 4,
        )  # fmt: skip
        assert len(data) == blocks * 4096
        assert not any(data[:1024]) and not any(data[1024 + 84 : 1152])
        head = bytearray(data[1024:4096])
        head[4:8] = bytes(4)
        value = 0xFFFFFFFF
        for byte in head:
            value ^= byte
            for _ in range(8):
                value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        assert value == checksum
        self.shared, self.inodes = shared, inodes
        self.root = root

    def inode(self, nid: int) -> dict[str, Any]:
        at = nid * 32
        form, xattrs, mode, size, union, number, uid, gid, seconds, ns, links = struct.unpack_from(
            "<HHHxxQIIIIqII", self.data, at
        )
        assert form & 1 and ns < 10**9 and not any(self.data[at + 48 : at + 64])
        layout = form >> 1
        at += 64
        found: dict[bytes, bytes] = {}
        if xattrs:
            end = at + 12 + 4 * (xattrs - 1)
            count = self.data[at + 4]
            for (place,) in struct.iter_unpack("<I", self.data[at + 12 : at + 12 + 4 * count]):
                found.update([self.xattr(self.shared * 4096 + 4 * place)[:2]])
            at += 12 + 4 * count
            while at < end:
                name, value, at = self.xattr(at)
                assert name not in found
                found[name] = value
            assert at == end
        content = b""
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            whole = size if layout == 0 else size // 4096 * 4096
            content = self.data[union * 4096 : union * 4096 + whole]
            if layout == 2:
                assert at // 4096 == (at + size % 4096 - 1) // 4096, "a piece in two blocks"
                content += self.data[at : at + size - whole]
            assert len(content) == size
        elif stat.S_ISREG(mode) and size:
            assert (layout, union) == (4, 31)
            chunks = -(-size // (1 << 43))
            assert self.data[at : at + 4 * chunks] == b"\xff" * 4 * chunks
        return {
            "mode": mode, "size": size, "union": union, "number": number, "uid": uid, "gid": gid,
            "mtime": seconds * 10**9 + ns, "links": links, "xattrs": found, "content": content,
        }  # fmt: skip

    def xattr(self, at: int) -> tuple[bytes, bytes, int]:
        length, index, size = struct.unpack_from("<BBH", self.data, at)
        name = PREFIXES[index] + self.data[at + 4 : at + 4 + length]
        at += 4 + length
        return name, self.data[at : at + size], at + size + -(at + size) % 4

    def entries(self, content: bytes) -> dict[bytes, tuple[int, int]]:
        found: list[tuple[bytes, int, int]] = []
        for start in range(0, len(content), 4096):
            block = content[start : start + 4096]
            first = struct.unpack_from("<H", block, 8)[0]
            rows = [struct.unpack_from("<QHBx", block, at) for at in range(0, first, 12)]
            ends = [row[1] for row in rows[1:]] + [len(block)]
            for (nid, at, kind), end in zip(rows, ends):
                found.append((block[at:end].rstrip(b"\0"), nid, kind))
        names = [name for name, _, _ in found]
        assert names == sorted(set(names)), "binary search needs order"
        return {name: (nid, kind) for name, nid, kind in found}


def image(root: Node, folder: Path, **how: Any) -> Reader:
    path = str(folder / "image.erofs")
    size = write(root, path, **how)
    data = Path(path).read_bytes()
    assert size == len(data)
    assert [one for one in os.listdir(folder) if one.startswith("image")] == ["image.erofs"]
    return Reader(data)


def expected_xattrs(node: Node, prefix: bytes = b"trusted") -> dict[bytes, bytes]:
    own = prefix + b".overlay."
    found = {}
    for name, value in (node.xattrs or {}).items():
        found[own + b"overlay." + name[len(own) :] if name.startswith(own) else name] = value
    if node.opaque:
        found[own + b"opaque"] = b"y"
    if node.data and node.is_file:
        found[own + b"metacopy"] = b""
        found[own + b"redirect"] = b"/%s/%s" % (node.digest.hex()[:2].encode(), node.digest.hex()[2:].encode())
    return found


def check(reader: Reader, root: Node, prefix: bytes = b"trusted") -> None:
    """Every attribute of every entry, the numbers of names, and the entries for "." and ".."."""
    links: dict[int, list[int]] = {}
    seen: set[int] = set()
    waiting = [(root, reader.root, reader.root)]
    while waiting:
        node, nid, above = waiting.pop()
        found = reader.inode(nid)
        seen.add(nid)
        assert (found["mode"], found["uid"], found["gid"], found["mtime"]) == (
            node.mode, node.uid, node.gid, node.mtime,
        )  # fmt: skip
        assert found["xattrs"] == expected_xattrs(node, prefix)
        if node.children is not None:
            entries = reader.entries(found["content"])
            assert entries.pop(b".") == (nid, 2) and entries.pop(b"..") == (above, 2)
            assert set(entries) == set(node.children)
            assert found["links"] == 2 + sum(one.is_dir for one in node.children.values())
            for name, child in node.children.items():
                assert entries[name][1] == KINDS[stat.S_IFMT(child.mode)]
                waiting.append((child, entries[name][0], nid))
            continue
        if node.link:
            links.setdefault(node.link, []).append(nid)
        else:
            assert found["links"] == 1
        if node.is_link:
            assert found["content"] == node.data
        elif node.is_file:
            assert found["size"] == node.size
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            major, minor = os.major(node.rdev), os.minor(node.rdev)
            assert found["union"] == minor & 0xFF | major << 8 | (minor >> 8) << 20
    for nids in links.values():
        assert len(set(nids)) == 1 and reader.inode(nids[0])["links"] == len(nids)
    assert len(seen) == reader.inodes


def file(content: bytes, size: Optional[int] = None, **more: Any) -> Node:
    mode = stat.S_IFREG | more.pop("mode", 0o644)
    data = blake3(content).digest() if content else b""
    return Node(mode, size=len(content) if size is None else size, data=data, **more)


def sample() -> Node:
    """A little of everything."""
    root = directory(0o755, mtime=1_700_000_000_000_000_000)
    inside = directory(0o1777, uid=1000, gid=100_000, mtime=-1)
    twice = file(b"twice", link=7)
    label = {b"security.label": b"a label that is long enough to be shared"}
    root.children = {
        b"!first": file(b""),
        b"file": file(b"hello\n", mode=0o4755, uid=7, mtime=1_700_000_000_123_456_789),
        b"acl": file(b"a", xattrs={b"system.posix_acl_access": b"\2\0\0\0", b"user.x": b"1", b"other.y": b"2"}),
        b"own": file(b"o", xattrs={b"trusted.overlay.opaque": b"y"}),
        b"in": inside,
        b"link": Node(stat.S_IFLNK | 0o777, data=b"in/other"),
        b"null": Node(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
        b"pipe": Node(stat.S_IFIFO | 0o600),
        b"gone": whiteout(),
        b"huge": file(b"h", 20 << 40),
        **{b"label%d" % number: file(b"l", xattrs=label) for number in range(3)},
    }
    inside.children = {b"one": twice, b"other": twice, b"bad\xff\x01name": directory()}
    inside.flags = OPAQUE
    return root


def test_everything_is_in_the_image(tmp_path: Path) -> None:
    root = sample()
    reader = image(root, tmp_path)
    assert root.children is not None
    # A name whose first part the format has no number for is left out.
    root.children[b"acl"].xattrs = {b"system.posix_acl_access": b"\2\0\0\0", b"user.x": b"1"}
    check(reader, root)
    assert reader.data.count(b"a label that is long enough to be shared") == 1


def test_equal_trees_make_equal_images(tmp_path: Path) -> None:
    first, again = image(sample(), tmp_path), image(sample(), tmp_path)
    assert first.data == again.data
    other = sample()
    assert other.children is not None
    other.children[b"file"].uid = 8
    assert image(other, tmp_path).uuid != first.uuid


def test_the_bytes_of_an_image_are_those_that_were_reviewed(tmp_path: Path) -> None:
    assert listing(image(sample(), tmp_path).data) == GOLDEN.read_text(), (
        "if this is meant: run this file with --rewrite"
    )


def test_attributes_for_overlays_without_root(tmp_path: Path) -> None:
    root = directory()
    root.children = {
        b"f": file(b"x", xattrs={b"user.overlay.redirect": b"/r", b"trusted.overlay.redirect": b"/t"}),
    }
    reader = image(root, tmp_path, prefix=b"user")
    check(reader, root, b"user")
    found = reader.inode(reader.entries(reader.inode(reader.root)["content"])[b"f"][0])["xattrs"]
    assert found[b"user.overlay.overlay.redirect"] == b"/r" and found[b"trusted.overlay.redirect"] == b"/t"
    with pytest.raises(InvalidError, match="trusted or user"):
        write(root, str(tmp_path / "no"), prefix=b"other")


def test_a_users_own_device_of_number_0_is_no_whiteout_in_a_whole_tree(tmp_path: Path) -> None:
    root = directory()
    root.children = {b"d": directory(), b"e": directory()}
    root.children[b"d"].children = {b"w": Node(stat.S_IFCHR | 0o640, uid=5)}
    reader = image(root, tmp_path, delta=False)
    top = reader.entries(reader.inode(reader.root)["content"])
    inside = reader.inode(top[b"d"][0])
    assert inside["xattrs"] == {b"trusted.overlay.overlay.opaque": b"x"}
    assert reader.inode(top[b"e"][0])["xattrs"] == {}
    nid, kind = reader.entries(inside["content"])[b"w"]
    found = reader.inode(nid)
    assert (kind, found["mode"], found["size"], found["uid"]) == (1, stat.S_IFREG | 0o640, 0, 5)
    assert found["xattrs"] == {b"trusted.overlay.overlay.whiteout": b""}


def test_what_no_image_can_hold_is_said(tmp_path: Path) -> None:
    cases = {
        "target": Node(stat.S_IFLNK | 0o777, data=b"x" * 4096),
        "value": file(b"x", uid=1 << 40),
        "too long": file(b"x", xattrs={b"user." + b"n" * 256: b""}),
        "extended attributes": file(b"x", xattrs={b"user.%d" % one: bytes(60_000) for one in range(5)}),
    }
    for word, node in cases.items():
        root = directory()
        root.children = {b"x": node}
        with pytest.raises(InvalidError, match=word):
            write(root, str(tmp_path / "image"))
    with pytest.raises(InvalidError, match="directory"):
        write(file(b"x"), str(tmp_path / "image"))
    assert not os.listdir(tmp_path), "nothing is left of an image that failed"


def test_a_large_directory_and_deep_paths(tmp_path: Path) -> None:
    root = directory()
    deep = root
    for number in range(3000):
        below = directory(mtime=number)
        assert deep.children is not None
        deep.children[b"d"] = below
        deep = below
    deep.children = {b"%x" % (number * 7919) * 5: file(b"x") for number in range(20_000)}
    check(image(root, tmp_path), root)


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    root = directory()
    root.children = {b"some/long/name%d".replace(b"/", b"-") % one: file(b"%d" % one) for one in range(20_000)}
    tracemalloc.start()
    size = write(root, str(tmp_path / "image"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 4 << 20
    assert peak < 4 << 20, "some ten words an entry, and a buffer"


names = st.binary(min_size=1, max_size=12).map(lambda one: one.replace(b"/", b"-").replace(b"\0", b"0")).filter(
    lambda one: one not in (b".", b"..")
) | st.integers(1, 255).map(lambda one: b"n" * one)
xattr_names = st.sampled_from(
    [b"user.a", b"security.capability", b"trusted.overlay.origin", b"system.posix_acl_default"]
)
attributes = st.fixed_dictionaries(
    {
        "uid": st.integers(0, 2**32 - 1),
        "gid": st.sampled_from([0, 1000, 65536]),
        "mtime": st.integers(-(2**62), 2**62),
        "xattrs": st.none() | st.dictionaries(xattr_names, st.binary(max_size=50) | st.just(b"v" * 5000), max_size=3),
    }
)
modes = st.integers(0, 0o7777)


def leaf(kind: str, mode: int, more: dict[str, Any], seed: bytes, size: int, link: int) -> Node:
    if kind == "file":
        return file(seed, size if seed else 0, mode=mode, **more)
    if kind == "names":
        # Names of one file agree in everything.
        return file(b"linked%d" % link, link=link, mtime=link)
    if kind == "symlink":
        return Node(stat.S_IFLNK | 0o777, data=(seed or b"x") * (size % 400 + 1), **more)
    if kind == "device":
        return Node(stat.S_IFBLK | mode, rdev=os.makedev(size % 4096, link + 300), **more)
    if kind == "gone":
        return whiteout()
    return Node({"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}[kind] | mode, **more)


leaves = st.builds(
    leaf, st.sampled_from(["file", "file", "names", "symlink", "device", "gone", "fifo", "socket"]), modes, attributes,
    st.binary(max_size=9), st.integers(1, 2**50), st.integers(1, 3),
)  # fmt: skip


def folder(children: dict[bytes, Node], mode: int, more: dict[str, Any], opaque: bool) -> Node:
    return Node(stat.S_IFDIR | mode, children=children, flags=OPAQUE * opaque, **more)


def folders(below: st.SearchStrategy[Node], size: int = 6) -> st.SearchStrategy[Node]:
    return st.builds(folder, st.dictionaries(names, below, max_size=size), modes, attributes, st.booleans())


trees = folders(st.recursive(leaves, folders, max_leaves=40), 40)


@given(trees)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_tree_is_read_back(root: Node) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        check(image(root, Path(scratch)), root)


def listing(data: bytes) -> str:
    """An image for people: rows of 16 bytes that are not all zero."""
    rows = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if any(row):
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            rows.append(f"{at:06x}  {row.hex(' ', 4)}  {text}\n")
    return "".join(rows)


if __name__ == "__main__":
    if "--rewrite" not in sys.argv:
        sys.exit("usage: test_fs_erofs.py --rewrite")
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(listing(image(sample(), Path(scratch)).data))
