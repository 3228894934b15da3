"""What our EROFS images say is what the kernel shows, alone and below overlayfs. Needs root, for mounts."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from blake3 import blake3

from cadenza.fs.erofs import write
from cadenza.fs.workplace import mounts_below
from cadenza.fs.tree import OPAQUE, Node, directory, merge, walk, whiteout


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for one in mounts_below(str(tmp_path)):
        subprocess.run(["umount", "-l", one], check=True)


def mount(kind: str, source: str, options: str, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *(("-o", options) if options else ()), source, str(target)], check=True)
    return target


def fsck(path: Path) -> None:
    checked = subprocess.run(["fsck.erofs", "-d1", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def shown(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """All that lstat, readlink and the extended attributes say of a directory, by path; names of one file by number."""
    found: dict[bytes, tuple[Any, ...]] = {}
    waiting = [b""]
    top = os.fsencode(root)
    while waiting:
        at = waiting.pop()
        full = top + at
        one = os.lstat(full)
        xattrs = {os.fsencode(name): os.getxattr(full, name, follow_symlinks=False) for name in _names(full)}
        content: Any = None
        if stat.S_ISLNK(one.st_mode):
            content = os.readlink(full)
        elif stat.S_ISDIR(one.st_mode):
            content = sorted(os.listdir(full))
            waiting.extend(at + b"/" + name for name in content)
        size = 0 if stat.S_ISDIR(one.st_mode) else one.st_size
        found[at] = (
            one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns, size, one.st_rdev, one.st_nlink, xattrs, content,
        )  # fmt: skip
    return found


def _names(path: bytes) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def said(root: Node, located: bool) -> dict[bytes, tuple[Any, ...]]:
    """The same of a tree. ``located``: with the attributes that only the image itself has."""
    counts: dict[int, int] = {}
    for _, node in walk(root):
        if node.link:
            counts[node.link] = counts.get(node.link, 0) + 1
    found: dict[bytes, tuple[Any, ...]] = {}
    for path, node in walk(root):
        xattrs = dict(node.xattrs or {})
        if located:
            xattrs = {name.replace(b"trusted.overlay.", b"trusted.overlay.overlay."): xattrs[name] for name in xattrs}
            if node.data and node.is_file:
                name = node.digest.hex().encode()
                xattrs[b"trusted.overlay.metacopy"] = b""
                xattrs[b"trusted.overlay.redirect"] = b"/%s/%s" % (name[:2], name[2:])
            if node.opaque:
                xattrs[b"trusted.overlay.opaque"] = b"y"
        content: Any = None
        size, links = node.size, counts.get(node.link, 1) if node.link else 1
        if node.children is not None:
            content = sorted(node.children)
            links = 2 + sum(one.is_dir for one in node.children.values())
        elif node.is_link:
            content, size = node.data, len(node.data)
        found[path] = (node.mode, node.uid, node.gid, node.mtime, size, node.rdev, links, xattrs, content)
    return found


class Made:
    """Random trees, whose contents are in a directory of objects."""

    def __init__(self, objects: Path, seed: int) -> None:
        self.objects = objects
        self.chance = random.Random(seed)

    def file(self, content: bytes, **more: Any) -> Node:
        digest = blake3(content).digest() if content else b""
        if content:
            path = self.objects / digest.hex()[:2] / digest.hex()[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Node(stat.S_IFREG | more.pop("mode", 0o644), size=len(content), data=digest, **more)

    def attributes(self) -> dict[str, Any]:
        chance = self.chance
        xattrs: dict[bytes, bytes] = {}
        if chance.random() < 0.2:
            xattrs[b"user.note"] = chance.choice([b"", b"a note" * chance.randint(1, 20), b"the same note" * 10])
        if chance.random() < 0.1:
            xattrs[b"trusted.overlay.origin"] = b"mine"
        return {
            "uid": chance.choice([0, 0, 1000, 3_000_000_000]), "gid": chance.choice([0, 5, 100_000]),
            "mtime": chance.randint(-(10**18), 4 * 10**18), "xattrs": xattrs or None,
        }  # fmt: skip

    def leaf(self, delta: bool) -> Node:
        chance = self.chance
        kind = chance.choice(["file", "file", "file", "empty", "symlink", "fifo", "char", "block", "socket", "gone"])
        mode, more = chance.choice([0o644, 0o600, 0o4755, 0o2711]), self.attributes()
        if kind == "file":
            return self.file(chance.randbytes(chance.choice([1, 100, 5000])), mode=mode, **more)
        if kind == "empty" or (kind == "gone" and not delta):
            return self.file(b"", mode=mode, **more)
        if kind == "gone":
            return whiteout()
        # The kernel lets only files and directories have attributes of the kind "user".
        more["xattrs"] = None
        if kind == "symlink":
            return Node(stat.S_IFLNK | 0o777, data=b"t" * chance.choice([1, 30, 3900, 4090]), **more)
        if kind in ("char", "block"):
            form = stat.S_IFCHR if kind == "char" else stat.S_IFBLK
            return Node(form | mode, rdev=os.makedev(chance.randint(1, 4000), chance.randint(0, 900_000)), **more)
        return Node({"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}[kind] | mode, **more)

    def folder(self, depth: int, delta: bool) -> Node:
        chance = self.chance
        found = directory(chance.choice([0o755, 0o1777, 0o700]))
        more = self.attributes()
        found.uid, found.gid, found.mtime, found.xattrs = more["uid"], more["gid"], more["mtime"], more["xattrs"]
        if delta and chance.random() < 0.2:
            found.flags = OPAQUE
        assert found.children is not None
        for _ in range(chance.choice([0, 3, 12, 150]) if depth else 30):
            name = chance.choice([b"a", b"b", b"!", b"-x", b".h", b"\xff\xfe"]) + b"n" * chance.choice(
                [0, 1, 2, 40, 250]
            )
            if chance.random() < (0.3, 0.1, 0.03, 0)[depth]:
                found.children[name] = self.folder(depth + 1, delta)
            else:
                found.children[name] = self.leaf(delta)
        if depth == 1:
            linked = self.file(b"linked", link=chance.randint(1, 2))
            found.children[b"l1"] = found.children[b"l2"] = linked
        return found

    def tree(self, delta: bool) -> Node:
        root = self.folder(0, delta)
        root.flags = 0
        # Names of one file are alike in everything.
        first: dict[int, Node] = {}
        for _, node in walk(root):
            for name, child in (node.children or {}).items():
                if child.link:
                    assert node.children is not None
                    node.children[name] = first.setdefault(child.link, child)
        return root


def only_what_there_is(delta: Node, base: Node) -> None:
    """Take away whiteouts of nothing: overlayfs makes none, and lists such where a directory is in one layer alone."""
    waiting: list[tuple[Node, Optional[Node]]] = [(delta, base)]
    while waiting:
        node, below = waiting.pop()
        assert node.children is not None
        beneath = (below.children or {}) if below is not None and not node.opaque else {}
        for name, child in list(node.children.items()):
            if child.is_whiteout and name not in beneath:
                del node.children[name]
            elif child.is_dir:
                waiting.append((child, beneath.get(name)))


@pytest.mark.parametrize("how", ["", "loop"], ids=["file", "loop"])
@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_shows_every_attribute(mounted: Path, seed: int, how: str) -> None:
    tree = Made(mounted / "objects", seed).tree(delta=seed % 2 == 0)
    image = mounted / "image"
    write(tree, str(image))
    fsck(image)
    assert shown(mount("erofs", str(image), how, mounted / "seen")) == said(tree, located=True)


def stack(mounted: Path, *trees: Node) -> Path:
    """An overlay of images, the last on top, over the directory of objects."""
    lowers: list[str] = []
    for number, tree in enumerate(trees):
        write(tree, str(mounted / f"image{number}"))
        lowers.insert(0, str(mount("erofs", str(mounted / f"image{number}"), "", mounted / f"layer{number}")))
    options = f"lowerdir={':'.join(lowers)}::{mounted / 'objects'},redirect_dir=on,metacopy=on,index=off,xino=auto"
    for part in ("upper", "work"):
        (mounted / part).mkdir()
        options += f",{part}dir={mounted / part}"
    return mount("overlay", "overlay", options, mounted / "merged")


@pytest.mark.parametrize("seed", range(6))
def test_a_stack_of_images_shows_the_merged_tree_and_its_content(mounted: Path, seed: int) -> None:
    made = Made(mounted / "objects", seed)
    base, delta = made.tree(delta=False), made.tree(delta=True)
    only_what_there_is(delta, base)
    tree = merge(base, delta)
    merged = stack(mounted, base, delta)

    def plain(entries: dict[bytes, tuple[Any, ...]]) -> dict[bytes, tuple[Any, ...]]:
        # Overlayfs counts one name of a directory, and the upper one says what the root is.
        return {path: (*row[:6], row[7], row[8]) if path else row[8:] for path, row in entries.items()}

    assert plain(shown(merged)) == plain(said(tree, located=False))
    for path, node in walk(tree):
        if node.is_file and node.data:
            content = Path(os.fsdecode(os.fsencode(merged) + path)).read_bytes()
            assert blake3(content).digest() == node.digest


def test_a_device_of_number_0_that_a_user_made_comes_out_as_a_whiteout_for_overlays_inside(mounted: Path) -> None:
    """The kernel's overlayfs.rst, "Nesting overlayfs mounts"."""
    made = Made(mounted / "objects", 0)
    tree = directory()
    assert tree.children is not None
    tree.children[b"inner"] = inner = directory()
    inner.children = {b"gone": whiteout(), b"kept": made.file(b"kept")}
    image = mounted / "image"
    write(tree, str(image), delta=False)
    fsck(image)
    layer = mount("erofs", str(image), "", mounted / "layer")
    outer = mount(
        "overlay", "overlay", f"lowerdir={layer}::{mounted / 'objects'},metacopy=on,redirect_dir=on", mounted / "outer"
    )
    assert sorted(os.listdir(outer / "inner")) == ["gone", "kept"]
    below = mounted / "below"
    below.mkdir()
    (below / "gone").write_text("is not seen")
    nested = mount("overlay", "overlay", f"lowerdir={outer / 'inner'}:{below}", mounted / "nested")
    assert os.listdir(nested) == ["kept"]
    assert (nested / "kept").read_bytes() == b"kept"


def test_large_things(mounted: Path) -> None:
    """A directory of many names, files of many TiB, a deep path, long attributes."""
    made = Made(mounted / "objects", 0)
    tree = directory()
    assert tree.children is not None
    tree.children[b"many"] = many = directory()
    digest = blake3(b"x").digest()
    many.children = {b"name%d" % number: Node(stat.S_IFREG | 0o644, size=1, data=digest) for number in range(120_000)}
    tree.children[b"huge"] = Node(stat.S_IFREG | 0o600, size=100 << 40, data=digest)
    tree.children[b"noted"] = made.file(b"noted", xattrs={b"user.a": bytes(60_000), b"user.b": b"b" * 60_000})
    deep = tree
    for _ in range(1500):
        below = directory()
        assert deep.children is not None
        deep.children[b"d"] = below
        deep = below
    image = mounted / "image"
    write(tree, str(image))
    fsck_shallow = {name: node for name, node in tree.children.items() if name != b"d"}
    seen = mount("erofs", str(image), "", mounted / "seen")
    assert sorted(os.listdir(seen / "many")) == sorted(name.decode() for name in many.children)
    for number in (0, 1, 59_999, 119_999):
        assert (seen / "many" / f"name{number}").stat().st_size == 1
    assert not (seen / "many" / "name120000").exists()
    assert (seen / "huge").stat().st_size == 100 << 40
    with open(seen / "huge", "rb") as opened:
        opened.seek(99 << 40)
        assert opened.read(10) == bytes(10), "without overlayfs a file is zeros"
    assert os.getxattr(seen / "noted", "user.b") == b"b" * 60_000
    at, depth = os.open(seen, os.O_PATH), 0
    while True:
        try:
            inner = os.open("d", os.O_PATH, dir_fd=at)
        except FileNotFoundError:
            break
        os.close(at)
        at, depth = inner, depth + 1
    os.close(at)
    assert depth == 1500
    # fsck.erofs recurses, and gives up on paths of more than 4,096 bytes.
    shallow = directory()
    shallow.children = fsck_shallow
    write(shallow, str(image))
    fsck(image)
