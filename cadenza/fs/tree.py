"""An immutable directory tree as a value: entries without their content, which is named by digest. Pure.

A tree is its root `Node`. A node is never changed once others can see it: what differs is made anew, and what does not
is shared (`put`, `merge`). A *delta* is a tree with three things more, as overlayfs has them: whiteouts
(`is_whiteout`), opaque directories (``opaque``), and directories on the way to a change, whose attributes count.

The encoding (docs/formats/tree.md): MessagePack, entries in preorder, children sorted by the bytes of their names.
"""

from __future__ import annotations

import gc
import stat
from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping, Optional

import msgspec
from blake3 import blake3

from cadenza.base.errors import DataLossError, InvalidError

FORMAT = 1
DIGEST_BYTES = 32
NAME_BYTES = 255
CHUNKED_BYTES = 8 << 20
"""Files above this size carry a second digest: that of their list of chunks (`cadenza.fs.chunk`)."""
OPAQUE = 1
MAX_LINKS = 40
"""Symlinks on the way of one path, as in the kernel."""
MAX_TARGET_BYTES = 4095
MAX_XATTR_BYTES = 65535
MAX_ID = (1 << 32) - 1
MAX_ENTRIES = 20_000_000
_KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO}


class Node:
    """One entry. ``mode`` has the type's bits; ``mtime`` in nanoseconds since the epoch.

    ``data``: of a regular file its content's BLAKE3 (32 bytes; empty for an empty file), above `CHUNKED_BYTES` followed
    by the BLAKE3 of its list of chunks (64 bytes in all); of a symlink its target.
    ``link``: entries of one tree with the same number above 0 are names of one file, and equal in all else.
    ``size``: of a regular file its bytes; 0 for all else. ``rdev``: of a device, as `os.makedev` makes it.
    ``xattrs``: as a container sees them.
    """

    __slots__ = ("children", "data", "flags", "gid", "link", "mode", "mtime", "rdev", "size", "uid", "xattrs")

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        size: int = 0,
        data: bytes = b"",
        rdev: int = 0,
        link: int = 0,
        xattrs: Optional[Mapping[bytes, bytes]] = None,
        flags: int = 0,
        children: Optional[dict[bytes, Node]] = None,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.size = size
        self.data = data
        self.rdev = rdev
        self.link = link
        self.xattrs = xattrs or None
        self.flags = flags
        self.children = children
        """Of a directory, by name; None for all else."""

    @property
    def is_dir(self) -> bool:
        return self.children is not None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symlink."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """In a delta: what lower trees have here is gone."""
        return stat.S_ISCHR(self.mode) and self.rdev == 0

    @property
    def opaque(self) -> bool:
        """In a delta: what lower trees have in this directory is hidden."""
        return bool(self.flags & OPAQUE)

    @property
    def digest(self) -> bytes:
        """Of a regular file's content; empty for an empty file."""
        return self.data[:DIGEST_BYTES]

    @property
    def list_digest(self) -> bytes:
        """Of a large file's list of chunks; else empty."""
        return self.data[DIGEST_BYTES:] if stat.S_ISREG(self.mode) else b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and encode(self) == encode(other)

    __hash__ = None  # type: ignore[assignment]


def directory(mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = 0) -> Node:
    """An empty directory."""
    return Node(stat.S_IFDIR | mode, uid, gid, mtime, children={})


def whiteout() -> Node:
    """In a delta: nothing is here."""
    return Node(stat.S_IFCHR)


def walk(root: Node, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """``(path, node)`` of everything in preorder, children by name; the root's path is empty, others begin with "/"."""
    waiting = [(path, root)]
    while waiting:
        at, node = waiting.pop()
        yield at, node
        if node.children:
            waiting.extend((at + b"/" + name, node.children[name]) for name in sorted(node.children, reverse=True))


def find(root: Node, path: bytes) -> Optional[Node]:
    """What is at a path whose parts are no links; None: nothing."""
    node = root
    for part in path.split(b"/"):
        if not part:
            continue
        found = node.children.get(part) if node.children is not None else None
        if found is None:
            return None
        node = found
    return node


def encode(root: Node) -> bytes:
    """The tree as bytes: equal trees are equal bytes. Links are numbered from 1 in order; a lone name has no number."""
    rows: list[tuple[object, ...]] = []
    linked: dict[int, list[int]] = {}
    waiting: list[tuple[bytes, Node]] = [(b"", root)]
    while waiting:
        name, node = waiting.pop()
        children = node.children
        if node.link:
            linked.setdefault(node.link, []).append(len(rows))
        rows.append(
            (
                name, node.mode, node.uid, node.gid, node.mtime, node.size, node.data, node.rdev, 0,
                sorted(node.xattrs.items()) if node.xattrs else None, node.flags,
                -1 if children is None else len(children),
            )
        )  # fmt: skip
        if children:
            waiting.extend((name, children[name]) for name in sorted(children, reverse=True))
    groups = (places for places in linked.values() if len(places) > 1)
    for number, places in enumerate(groups, 1):
        for at in places:
            rows[at] = (*rows[at][:8], number, *rows[at][9:])
    return msgspec.msgpack.encode((FORMAT, rows))


_Row = tuple[
    bytes, int, int, int, int, int, bytes, int, int, Optional[list[tuple[bytes, bytes]]], int, int
]  # fmt: skip
_decoder = msgspec.msgpack.Decoder(tuple[int, list[_Row]])


def decode(data: bytes) -> Node:
    """The tree that `encode` made bytes of. DataLossError when they are no tree."""
    collects = gc.isenabled()
    gc.disable()  # nothing here is garbage, and looking for it takes as long as all the rest
    try:
        return _decode(data)
    finally:
        if collects:
            gc.enable()


def _decode(data: bytes) -> Node:
    try:
        version, rows = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataLossError(f"not a tree: {error}") from None
    if version != FORMAT:
        raise DataLossError(f"a tree of format {version}; this version reads format {FORMAT}")
    if not rows or rows[0][0]:
        raise DataLossError("a tree begins with its root")
    root: Optional[Node] = None
    # Directories that still miss children: (children, how many).
    stack: list[tuple[dict[bytes, Node], int]] = []
    for name, mode, uid, gid, mtime, size, content, rdev, link, xattrs, flags, count in rows:
        children: Optional[dict[bytes, Node]] = None if count < 0 else {}
        if (count >= 0) != stat.S_ISDIR(mode):
            raise DataLossError("a tree with an entry of no kind")
        node = Node(mode, uid, gid, mtime, size, content, rdev, link, dict(xattrs) if xattrs else None, flags, children)
        if root is None:
            root = node
        else:
            if not stack:
                raise DataLossError("a tree with entries after its end")
            parent, left = stack[-1]
            if not name or b"/" in name or b"\0" in name or name in (b".", b"..") or len(name) > NAME_BYTES:
                raise DataLossError(f"a tree with the name {name!r}")
            if name in parent:
                raise DataLossError(f"a tree with two entries {name!r} in one directory")
            parent[name] = node
            if left == 1:
                stack.pop()
            else:
                stack[-1] = (parent, left - 1)
        if count > 0:
            assert children is not None
            stack.append((children, count))
    if stack:
        raise DataLossError("a tree that ends too early")
    assert root is not None
    if not root.is_dir:
        raise DataLossError("a tree whose root is no directory")
    return root


def digest(encoded: bytes) -> bytes:
    """The name of a tree: BLAKE3 of its encoding."""
    return blake3(encoded).digest()


def files(root: Node) -> Iterator[Node]:
    """Every regular file with content; one that has several names, as often."""
    for _, node in walk(root):
        if node.data and stat.S_ISREG(node.mode):
            yield node


def put(root: Node, path: bytes, node: Node, parents: int = 0o755) -> Node:
    """The tree with ``node`` at ``path``, and directories on the way where there are none (mode ``parents``).

    InvalidError when a part of the way is no directory.
    """
    parts = [one for one in path.split(b"/") if one]
    if not parts:
        return node
    top = at = copy(root)
    for index, name in enumerate(parts):
        if at.children is None:
            raise InvalidError(f"{path.decode(errors='replace')}: a part of this path is no directory")
        if index == len(parts) - 1:
            at.children[name] = node
        else:
            below = at.children.get(name)
            fresh = directory(parents) if below is None or below.is_whiteout else copy(below)
            at.children[name] = fresh
            at = fresh
    return top


def drop(root: Node, path: bytes) -> Node:
    """The tree without what is at ``path``; the same tree when nothing is. The root stays."""
    parts = [one for one in path.split(b"/") if one]
    if not parts or find(root, path) is None:
        return root
    top = at = copy(root)
    for name in parts[:-1]:
        assert at.children is not None
        fresh = copy(at.children[name])
        at.children[name] = fresh
        at = fresh
    assert at.children is not None
    del at.children[parts[-1]]
    return top


def copy(node: Node) -> Node:
    """The same node, its children in a dictionary of their own: to be changed before anybody else sees it."""
    return Node(
        node.mode, node.uid, node.gid, node.mtime, node.size, node.data, node.rdev, node.link, node.xattrs, node.flags,
        None if node.children is None else dict(node.children),
    )  # fmt: skip


def resolve(root: Node, path: bytes, last: bool = True) -> bytes:
    """The path with every symlink on its way followed, within the tree; what is not there stays as it is written.

    ``last``: whether a symlink at its end is followed too. InvalidError when links go in a circle.
    """
    rest = [one for one in reversed(path.split(b"/")) if one]
    names: list[bytes] = []
    nodes: list[Optional[Node]] = [root]
    links = 0
    while rest:
        part = rest.pop()
        if part == b".":
            continue
        if part == b"..":
            if names:
                names.pop()
                nodes.pop()
            continue
        at = nodes[-1]
        found = at.children.get(part) if at is not None and at.children is not None else None
        if found is not None and found.is_link and (last or rest):
            links += 1
            if links > MAX_LINKS:
                raise InvalidError(f"{path.decode(errors='replace')}: the symlinks on this path go in a circle")
            if found.data.startswith(b"/"):
                names, nodes = [], [root]
            rest.extend(one for one in reversed(found.data.split(b"/")) if one)
        else:
            names.append(part)
            nodes.append(found)
    return b"/" + b"/".join(names)


def merge(lower: Node, delta: Node, same_links: bool = False) -> Node:
    """What overlayfs shows of ``delta`` over ``lower``: a tree without whiteouts and opaque marks. Shares what it can.

    Numbers of hard links stay those of ``lower``; those of ``delta`` are moved out of their way, unless ``same_links``:
    then equal numbers are names of one file.
    """
    if delta.children is None:
        return delta
    moved = highest_link(lower) if not same_links and highest_link(delta) else 0
    top = copy(delta)
    waiting: list[tuple[Optional[Node], Node]] = [(lower, top)]
    while waiting:
        below, made = waiting.pop()
        changes = made.children
        assert changes is not None
        children = dict(below.children) if below is not None and below.children and not made.flags & OPAQUE else {}
        for name, node in changes.items():
            if node.children is not None:
                fresh = copy(node)
                waiting.append((children.get(name), fresh))
                children[name] = fresh
            elif node.rdev == 0 and stat.S_ISCHR(node.mode):
                children.pop(name, None)
            elif moved and node.link:
                fresh = copy(node)
                fresh.link += moved
                children[name] = fresh
            else:
                children[name] = node
        made.children = children
        made.flags &= ~OPAQUE
    return top


def flatten(layers: Iterable[Node]) -> Node:
    """All layers as one tree, the lowest first."""
    root = directory()
    for one in layers:
        root = merge(root, one)
    return root


def highest_link(root: Node) -> int:
    """The highest number that links have in a tree; 0: there are none."""
    highest = root.link
    waiting = [root.children] if root.children else []
    while waiting:
        for node in waiting.pop().values():
            if node.children:
                waiting.append(node.children)
            elif node.link > highest:
                highest = node.link
    return highest


def same(one: Node, other: Node) -> bool:
    """Whether two entries are alike, whatever they contain and are linked to."""
    return one is other or (
        one.mode == other.mode and one.uid == other.uid and one.gid == other.gid and one.mtime == other.mtime
        and one.size == other.size and one.data == other.data and one.rdev == other.rdev and one.xattrs == other.xattrs
        and one.flags == other.flags
    )  # fmt: skip


@dataclass(frozen=True)
class Extent:
    """How large a tree is. A file with several names counts as so many entries, and once in ``size``, in bytes."""

    entries: int
    files: int
    directories: int
    size: int
    objects: int
    """Different contents, and their bytes:"""
    object_size: int


def measure(root: Node) -> Extent:
    """Its counts and sizes; the root is an entry."""
    entries = files = directories = size = 0
    links: set[int] = set()
    objects: dict[bytes, int] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        entries += 1
        if node.children is not None:
            directories += 1
            waiting.extend(node.children.values())
        elif stat.S_ISREG(node.mode):
            files += 1
            if node.data:
                objects[node.digest] = node.size
            if node.link not in links:
                size += node.size
                if node.link:
                    links.add(node.link)
    return Extent(entries, files, directories, size, len(objects), sum(objects.values()))


def validate(root: Node, delta: bool = False) -> None:
    """InvalidError, with the path, for what no file system can show. ``delta``: whiteouts are allowed."""
    if not root.is_dir:
        raise InvalidError("the root of a tree is a directory")
    waiting: list[tuple[bytes, Node]] = [(b"", root)]
    entries = 0
    while waiting:
        path, node = waiting.pop()
        entries += 1
        wrong = _wrong(node, delta)
        if wrong:
            raise InvalidError(f"{path.decode(errors='backslashreplace') or '/'}: {wrong}")
        for name, child in (node.children or {}).items():
            below = path + b"/" + name
            if not name or len(name) > NAME_BYTES or b"/" in name or b"\0" in name or name in (b".", b".."):
                raise InvalidError(f"{below.decode(errors='backslashreplace')}: {name!r} cannot be a name")
            waiting.append((below, child))
    if entries > MAX_ENTRIES:
        raise InvalidError(f"a tree of {entries:,} entries; {MAX_ENTRIES:,} are the limit")


def _wrong(node: Node, delta: bool) -> str:
    kind = stat.S_IFMT(node.mode)
    if (kind == stat.S_IFDIR) != (node.children is not None) or kind not in _KINDS or node.mode >> 16:
        return f"{node.mode:#o} is the mode of no entry"
    if not (0 <= node.uid < MAX_ID and 0 <= node.gid < MAX_ID):
        return f"owner {node.uid}:{node.gid} is out of range"
    if not delta and (node.is_whiteout or node.flags):
        return "this is of a delta, and the tree is none"
    if kind == stat.S_IFREG:
        wanted = 0 if not node.size else 2 * DIGEST_BYTES if node.size > CHUNKED_BYTES else DIGEST_BYTES
        if len(node.data) != wanted:
            return f"a file of {node.size} bytes has {wanted} bytes of digests, not {len(node.data)}"
    elif kind == stat.S_IFLNK:
        if not 0 < len(node.data) <= MAX_TARGET_BYTES or b"\0" in node.data:
            return f"a symlink to {len(node.data)} bytes; 1 to {MAX_TARGET_BYTES} are possible"
    elif node.data:
        return "only files and symlinks have content"
    for name, value in (node.xattrs or {}).items():
        if not 0 < len(name) <= NAME_BYTES or b"\0" in name or b"." not in name:
            return f"the attribute {name!r} cannot be"
        if len(value) > MAX_XATTR_BYTES:
            return f"the attribute {name!r} has {len(value)} bytes; {MAX_XATTR_BYTES} are the limit"
    return ""
