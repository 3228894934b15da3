"""An immutable directory tree as a value: entries without their content, which is named by digest. Pure.

A tree is its root `Node`. A node is never changed once others can see it: what differs is made anew, and what does not
is shared (`put`, `merge`). A *delta* is a tree with three things more, as overlayfs has them: whiteouts
(`is_whiteout`), opaque directories (``opaque``), and directories on the way to a change, whose attributes count.

The encoding (docs/formats/tree.md): MessagePack, entries in preorder, children sorted by the bytes of their names.
"""

from __future__ import annotations

import stat
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


class Node:
    """One entry. ``mode`` has the type's bits; ``mtime`` in nanoseconds since the epoch.

    ``data``: of a regular file its content's BLAKE3 (32 bytes; empty for an empty file), above `CHUNKED_BYTES` followed
    by the BLAKE3 of its list of chunks (64 bytes in all); of a symlink its target.
    ``link``: entries of one tree with the same number above 0 are names of one file.
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
    """The tree as bytes: equal trees are equal bytes."""
    rows: list[tuple[object, ...]] = []
    waiting: list[tuple[bytes, Node]] = [(b"", root)]
    while waiting:
        name, node = waiting.pop()
        children = node.children
        rows.append(
            (
                name, node.mode, node.uid, node.gid, node.mtime, node.size, node.data, node.rdev, node.link,
                sorted(node.xattrs.items()) if node.xattrs else None, node.flags,
                -1 if children is None else len(children),
            )
        )  # fmt: skip
        if children:
            waiting.extend((name, children[name]) for name in sorted(children, reverse=True))
    return msgspec.msgpack.encode((FORMAT, rows))


_Row = tuple[
    bytes, int, int, int, int, int, bytes, int, int, Optional[list[tuple[bytes, bytes]]], int, int
]  # fmt: skip
_decoder = msgspec.msgpack.Decoder(tuple[int, list[_Row]])


def decode(data: bytes) -> Node:
    """The tree that `encode` made bytes of. DataLossError when they are no tree."""
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
    return _put(root, parts, 0, node, parents, path)


def _put(at: Node, parts: list[bytes], index: int, node: Node, parents: int, path: bytes) -> Node:
    if at.children is None:
        raise InvalidError(f"{path.decode(errors='replace')}: a part of this path is no directory")
    name = parts[index]
    changed = copy(at)
    assert changed.children is not None
    if index == len(parts) - 1:
        changed.children[name] = node
    else:
        below = at.children.get(name) or directory(parents)
        changed.children[name] = _put(below, parts, index + 1, node, parents, path)
    return changed


def copy(node: Node) -> Node:
    """The same node, its children in a dictionary of their own: to be changed before anybody else sees it."""
    return Node(
        node.mode, node.uid, node.gid, node.mtime, node.size, node.data, node.rdev, node.link, node.xattrs, node.flags,
        None if node.children is None else dict(node.children),
    )  # fmt: skip


def merge(lower: Node, delta: Node) -> Node:
    """What overlayfs shows of ``delta`` over ``lower``: a tree without whiteouts and opaque marks. Shares what it can.

    Numbers of hard links stay those of ``lower``; those of ``delta`` are moved out of their way.
    """
    moved = _highest_link(lower)
    return _merge(lower, delta, moved)


def flatten(layers: Iterable[Node]) -> Node:
    """All layers as one tree, the lowest first."""
    root = directory()
    for one in layers:
        root = merge(root, one)
    return root


def _highest_link(root: Node) -> int:
    highest = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.link > highest:
            highest = node.link
        if node.children:
            waiting.extend(node.children.values())
    return highest


def _merge(lower: Optional[Node], delta: Node, moved: int) -> Node:
    """Recursive by directory depth, of which a path has at most 2,048."""
    if delta.children is None:
        if delta.link and moved:
            delta = copy(delta)
            delta.link += moved
        return delta
    below = lower.children if lower is not None and lower.children is not None and not delta.opaque else None
    children = dict(below) if below else {}
    for name, node in delta.children.items():
        if node.is_whiteout:
            children.pop(name, None)
        else:
            children[name] = _merge(children.get(name), node, moved)
    found = copy(delta)
    found.children = children
    found.flags &= ~OPAQUE
    return found
