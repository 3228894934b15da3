"""From an image's layer, a tar, to a delta tree, and from delta trees to one tree. Files go straight into the store.

No directory is unpacked, so nothing needs root and no name or link in a layer can point at anything outside: paths are
looked up in the tree that is being made. docs/formats/oci.md says what each case means.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Callable, Iterable, Mapping, Optional, Protocol

from cadenza.fs import layer_tar, tree
from cadenza.fs.layer_tar import Entry, Tar
from cadenza.fs.tree import OPAQUE, Node

IMPLIED = 2
"""Flag of a directory that a layer goes through without saying what it is: it stays what lower layers say."""
LOWER_LINK = 4
"""Flag of a symlink that stands for a hard link to a file of lower layers."""

WHITEOUT = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
LAYER_ENTRIES = 4_000_000
LAYER_BYTES = 512 << 30
FREE_BYTES = 1 << 30
"""Up to here nobody asks how much smaller a layer was before."""
EXPANSION = 200
"""Above that a layer may be so many times as large as its blob: more is taken for a bomb. Zeros do not count, which
take no disk here: images of disks are nearly all zeros."""
_ZEROS = bytes(1 << 20)
PATH_BYTES = 4096
PATH_PARTS = 400
SYMLINKS = 40
XATTR_BYTES = 64 << 10
DEEPEST_ID = 2**32 - 2
_LAST_NS = 2**63 - 1
_KEPT_XATTRS = (b"user.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
_TYPES = {
    layer_tar.FILE: stat.S_IFREG, layer_tar.SYMLINK: stat.S_IFLNK, layer_tar.CHARACTER: stat.S_IFCHR,
    layer_tar.BLOCK_DEVICE: stat.S_IFBLK, layer_tar.DIRECTORY: stat.S_IFDIR, layer_tar.FIFO: stat.S_IFIFO,
}  # fmt: skip


class LayerError(Exception):
    """A layer that cannot be a part of an image; the text says why, in a sentence without its subject."""


class Draft(Protocol):
    """A file being written, as `cadenza.fs.draft.Draft` is."""

    def write(self, data: bytes) -> None: ...

    def commit(self) -> tuple[bytes, int]: ...

    def discard(self) -> None: ...


@dataclass(frozen=True)
class Limits:
    """What one layer may hold."""

    entries: int = LAYER_ENTRIES
    size: int = LAYER_BYTES
    """Bytes of all its files, whole pieces of zeros left out."""
    whole: int = LAYER_BYTES
    """And with them: time is limited too."""

    @classmethod
    def of(cls, blob_bytes: int) -> Limits:
        """Those of a layer whose blob has this size."""
        return cls(size=min(LAYER_BYTES, max(FREE_BYTES, EXPANSION * blob_bytes)))


def read_layer(chunks: Iterable[bytes], draft: Callable[[], Draft], limits: Limits = Limits()) -> Node:
    """The delta tree of a tar's bytes. LayerError and `layer_tar.TarError` when it is none to use.

    All of ``chunks`` is read, what follows the archive included.
    """
    maker = _Maker(draft, limits)
    tar = Tar(chunks)
    for entry in tar:
        if tar.entries > limits.entries:
            raise LayerError(f"has more than {limits.entries} entries")
        try:
            maker.add(entry, tar)
        except LayerError as error:
            raise LayerError(f"{error} (entry {_show(entry.name)})") from None
    tar.drain()
    return maker.root


class _Maker:
    def __init__(self, draft: Callable[[], Draft], limits: Limits) -> None:
        self.root = tree.directory()
        self.root.flags = IMPLIED
        self._draft = draft
        self._limits = limits
        self._size = self._whole = 0
        self._links = 0
        self._known: dict[bytes, Node] = {}
        """Directories by their names in the tar."""

    def add(self, entry: Entry, tar: Tar) -> None:
        """Put one entry where it belongs."""
        above, _, base = entry.name.rstrip(b"/").rpartition(b"/")
        if base in (b"", b".", b".."):
            if entry.kind != layer_tar.DIRECTORY or b".." in entry.name.split(b"/"):
                raise LayerError("has an entry without a name, or with '..' in it")
            self._describe(self._directory(_parts(entry.name)), entry)
            return
        parent = self._known.get(above)
        if parent is None:
            parent = self._known[above] = self._directory(_parts(above))
        _check_name(base)
        if base.startswith(WHITEOUT):
            self._hide(parent, base)
            return
        children = parent.children
        assert children is not None
        there = children.get(base)
        if entry.kind == layer_tar.DIRECTORY:
            if there is None or there.children is None:
                if there is not None:
                    self._known.clear()
                children[base] = tree.directory()
                children[base].flags = OPAQUE if there is not None else 0
            self._describe(children[base], entry)
            return
        if there is not None and (there.children is not None or there.is_link):
            self._known.clear()
        if entry.kind == layer_tar.HARD_LINK:
            children[base] = self._hard_link(entry, there)
            return
        node = self._node(entry, tar)
        if not node.is_whiteout:  # a device 0:0 is how overlays say that nothing is there: it means nothing in a layer
            children[base] = node

    def _node(self, entry: Entry, tar: Tar) -> Node:
        node = Node(_TYPES[entry.kind] | entry.mode)
        self._describe(node, entry)
        if entry.kind == layer_tar.FILE:
            self._whole += entry.size
            if self._whole > self._limits.whole:
                raise LayerError(f"unpacks to more than {self._limits.whole} bytes")
            if entry.size:
                node.data, node.size = self._file(tar)
        elif entry.kind == layer_tar.SYMLINK:
            if not 0 < len(entry.link) < PATH_BYTES:
                raise LayerError("has a symlink to nothing, or to a path that is too long")
            node.data, node.size = entry.link, len(entry.link)
            node.mode = stat.S_IFLNK | 0o777
        elif entry.kind in (layer_tar.CHARACTER, layer_tar.BLOCK_DEVICE):
            if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
                raise LayerError("has a device whose number cannot be")
            node.rdev = os.makedev(entry.major, entry.minor)
        return node

    def _file(self, tar: Tar) -> tuple[bytes, int]:
        draft = self._draft()
        try:
            for piece in tar.content():
                if len(piece) > len(_ZEROS) or piece != _ZEROS[: len(piece)]:
                    self._size += len(piece)
                    if self._size > self._limits.size:
                        raise LayerError(
                            f"unpacks to more than {self._limits.size} bytes, far more than its blob stands for"
                        )
                draft.write(piece)
            return draft.commit()
        except BaseException:
            draft.discard()
            raise

    def _describe(self, node: Node, entry: Entry) -> None:
        if not (0 <= entry.uid <= DEEPEST_ID and 0 <= entry.gid <= DEEPEST_ID):
            raise LayerError("has an owner whose number cannot be")
        node.mode = stat.S_IFMT(node.mode) | entry.mode
        node.uid, node.gid = entry.uid, entry.gid
        node.mtime = min(max(entry.mtime, 0), _LAST_NS)
        node.xattrs = kept_xattrs(entry.xattrs) if entry.xattrs else None
        node.flags &= ~IMPLIED

    def _hide(self, parent: Node, base: bytes) -> None:
        assert parent.children is not None
        if base == OPAQUE_NAME:
            parent.flags |= OPAQUE
            return
        if base.startswith(WHITEOUT * 2):
            return  # what AUFS noted for itself
        name = base[len(WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise LayerError("hides a name that cannot be")
        there = parent.children.get(name)
        if there is None:
            parent.children[name] = tree.whiteout()
        elif there.children is not None:
            there.flags |= OPAQUE  # what this layer has itself stays, only what is below it goes

    def _hard_link(self, entry: Entry, there: Optional[Node]) -> Node:
        parts = _parts(entry.link)
        if not parts:
            raise LayerError("has a hard link to nothing")
        found = self._find(parts)
        if found is None:
            if parts == _parts(entry.name):
                raise LayerError("has a hard link to itself")
            target = b"/" + b"/".join(parts)
            return Node(stat.S_IFLNK | 0o777, data=target, size=len(target), flags=LOWER_LINK)
        if found.children is not None:
            raise LayerError("has a hard link to a directory")
        if found is not there and not found.link and not found.flags & LOWER_LINK:
            self._links += 1
            found.link = self._links
        return found

    def _find(self, parts: list[bytes]) -> Optional[Node]:
        """What this layer has at a path, symlinks on the way followed; None: nothing."""
        at = resolve(self.root, parts[:-1])
        above = None if at is None else tree.find(self.root, b"/".join(at))
        found = above.children.get(parts[-1]) if above is not None and above.children is not None else None
        return None if found is None or found.is_whiteout else found

    def _directory(self, parts: list[bytes]) -> Node:
        """The directory at a path, made with those on its way where this layer has none. Follows its symlinks."""
        stack, waiting, links = [self.root], parts[::-1], 0
        while waiting:
            part = waiting.pop()
            if part == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            children = stack[-1].children
            assert children is not None
            there = children.get(part)
            if there is None or there.is_whiteout:
                made = tree.directory()
                made.flags = IMPLIED | (OPAQUE if there is not None else 0)
                children[part] = there = made
            elif there.is_link and not there.flags & LOWER_LINK:
                links += 1
                if links > SYMLINKS:
                    raise LayerError("has an entry below symlinks that never end")
                if there.data.startswith(b"/"):
                    del stack[1:]
                waiting.extend(_parts(there.data, up=True)[::-1])
                continue
            elif there.children is None:
                raise LayerError("has an entry below something that is no directory")
            stack.append(there)
            if len(stack) > PATH_PARTS:
                raise LayerError(f"has a path of more than {PATH_PARTS} directories")
        return stack[-1]


def _parts(path: bytes, up: bool = False) -> list[bytes]:
    """A path's names. LayerError for those that cannot be, and for ".." unless ``up``."""
    if len(path) > PATH_BYTES:
        raise LayerError(f"has a path of more than {PATH_BYTES} bytes")
    parts = [one for one in path.split(b"/") if one and one != b"."]
    for one in parts:
        if one == b".." and not up:
            raise LayerError("has a path with '..' in it")
        _check_name(one)
    return parts


def _check_name(name: bytes) -> None:
    if len(name) > tree.NAME_BYTES:
        raise LayerError(f"has a name of more than {tree.NAME_BYTES} bytes")


def kept_xattrs(given: Mapping[bytes, bytes]) -> Optional[dict[bytes, bytes]]:
    """Those that a file keeps: what overlays and this machine's security modules say of files comes from no layer."""
    kept = {
        name: value
        for name, value in given.items()
        if name.startswith(_KEPT_XATTRS) and not name.startswith(b"user.overlay.") and len(name) <= tree.NAME_BYTES
    }
    if any(len(value) > XATTR_BYTES for value in kept.values()):
        raise LayerError(f"has an attribute of more than {XATTR_BYTES} bytes")
    return kept or None


def _show(name: bytes) -> str:
    text = repr(name[:120])[1:]
    return text + ("..." if len(name) > 120 else "")


# From deltas to one tree.


def flatten(deltas: Iterable[Node]) -> Node:
    """The image of these layers, the lowest first. LayerError when one does not fit those below it."""
    root = tree.directory()
    for one in deltas:
        root = apply(root, one)
    return root


def apply(lower: Node, delta: Node) -> Node:
    """What a layer makes of the tree below it: implied directories and hard links are settled by what is there."""
    for _ in range(SYMLINKS):
        settling = _Settling(lower)
        lower = _hard_links(lower, tree.merge(lower, settling.settle(delta, lower, [])), settling.links)
        if not settling.moved:
            return lower
        delta = tree.directory()
        delta.flags = IMPLIED
        for parts, children in settling.moved:
            _graft(delta, parts, children)
    raise LayerError("has entries below symlinks that never end")


class _Settling:
    """One pass over a delta."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self.links: list[tuple[list[bytes], bytes]] = []
        """Hard links to files below: where, and to what."""
        self.moved: list[tuple[list[bytes], dict[bytes, Node]]] = []
        """What belongs behind a symlink of the lower tree: the directory there, and its entries."""

    def settle(self, node: Node, below: Optional[Node], path: list[bytes]) -> Node:
        """The delta without implied directories; of hard links to below, places."""
        if node.opaque or below is None or below.children is None:
            lower: Mapping[bytes, Node] = {}
        else:
            lower = below.children
        found = tree.copy(node)
        assert node.children is not None and found.children is not None
        if node.flags & IMPLIED:
            found.flags &= ~IMPLIED
            if below is not None and below.children is not None and not node.opaque:
                found.mode, found.uid, found.gid = below.mode, below.uid, below.gid
                found.mtime, found.xattrs = below.mtime, below.xattrs
        for name, child in node.children.items():
            here = [*path, name]
            if child.flags & LOWER_LINK:
                self.links.append((here, child.data))
                del found.children[name]
            elif child.children is not None:
                there = lower.get(name)
                if there is not None and there.is_link and child.flags & IMPLIED and not child.opaque:
                    target = resolve(self._root, here)
                    end = None if target is None else tree.find(self._root, b"/".join(target))
                    if target is not None and target != here and (end is None or end.children is not None):
                        self.moved.append((target, child.children))
                        del found.children[name]
                        continue
                found.children[name] = self.settle(child, there, here)
        return found


def _graft(root: Node, parts: list[bytes], entries: Mapping[bytes, Node]) -> None:
    """Put entries into a delta's directory, made as implied."""
    at = root
    for part in parts:
        assert at.children is not None
        following = at.children.get(part)
        if following is None or following.children is None:
            following = at.children[part] = tree.directory()
            following.flags = IMPLIED
        at = following
    assert at.children is not None
    at.children.update(entries)


def _hard_links(lower: Node, merged: Node, links: Iterable[tuple[list[bytes], bytes]]) -> Node:
    number = 0
    for parts, target in links:
        above = resolve(lower, _parts(target)[:-1])
        way = None if above is None else b"/".join([*above, _parts(target)[-1]])
        found = None if way is None else tree.find(lower, way)
        if found is None or way is None or found.children is not None:
            raise LayerError(f"has a hard link to a file that is not there: {_show(target)}")
        now = tree.find(merged, way)
        if not found.link:
            if now is not None and now.link and now.data == found.data:
                found = now  # another hard link of this layer gave it its number
            else:
                number = 1 + (number or max((node.link for _, node in tree.walk(merged)), default=0))
                whole = tree.copy(found)
                whole.link = number
                if now is found:
                    merged = tree.put(merged, way, whole)
                found = whole
        merged = tree.put(merged, b"/".join(parts), found)
    return merged


def resolve(root: Node, parts: list[bytes]) -> Optional[list[bytes]]:
    """The same path without symlinks on it, as seen with ``root`` as /; what is not there is taken as it is.

    None when there are too many symlinks.
    """
    way: list[bytes] = []
    waiting, links = parts[::-1], 0
    nodes: list[Optional[Node]] = [root]
    while waiting:
        part = waiting.pop()
        if part == b"..":
            if way:
                way.pop()
                nodes.pop()
            continue
        at = nodes[-1]
        there = at.children.get(part) if at is not None and at.children is not None else None
        if there is not None and there.is_link and not there.flags & LOWER_LINK:
            links += 1
            if links > SYMLINKS:
                return None
            if there.data.startswith(b"/"):
                way, nodes = [], [root]
            waiting.extend(_parts(there.data, up=True)[::-1])
            continue
        way.append(part)
        nodes.append(there)
    return way
