"""Changing a tree: files and directories put through links of the tree. Pure. What differs then: `cadenza.fs.delta`."""

from __future__ import annotations

import stat
from typing import Optional

from cadenza.base.errors import InvalidError
from cadenza.fs import finish
from cadenza.fs.inside import at
from cadenza.fs.tree import Node, copy, directory, find, resolve

PUT_NS = 946_684_800 * 10**9
"""When what is put into an image was last changed, in nanoseconds: 2000-01-01T00:00:00Z. Always the same, so that equal
recipes give equal trees; and not 1970, because zip archives know no time before 1980 and Python's zipfile refuses such
files."""


class Edit:
    """A tree that is being changed; the one it began with is not. `root` is the outcome, to be taken once."""

    def __init__(self, root: Node) -> None:
        self._own: dict[int, Node] = {}
        self.root = self._mine(root)
        self._made: dict[bytes, bytes] = {}

    def _mine(self, node: Node) -> Node:
        """The node, or a copy of it that nobody else sees."""
        if id(node) not in self._own:
            node = copy(node)
            self._own[id(node)] = node
        return node

    def make_directory(self, path: bytes, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = PUT_NS) -> bytes:
        """Make a directory and those above it where there are none; gives its path with links followed.

        InvalidError when a file is in the way.
        """
        known = self._made.get(path)
        if known is not None:
            return known
        resolved = resolve(self.root, path)
        node = self.root
        done = b""
        for part in resolved.split(b"/"):
            if not part:
                continue
            done += b"/" + part
            assert node.children is not None
            found = node.children.get(part)
            if found is None:
                found = directory(mode, uid, gid, mtime)
                self._own[id(found)] = found
            elif found.children is None:
                shown, wanted = done.decode(errors="replace"), path.decode(errors="replace")
                raise InvalidError(f"{shown} in the image is a file, so {wanted} cannot be below it")
            else:
                found = self._mine(found)
            node.children[part] = found
            node = found
        self._made[path] = resolved
        return resolved

    def put(self, path: bytes, node: Node, follow: bool = True) -> None:
        """Put what is no directory at a path; a link there is followed, or with ``follow`` False replaced.

        InvalidError when a directory is there.
        """
        folder, _, name = path.rstrip(b"/").rpartition(b"/")
        folder = self.make_directory(folder or b"/")
        target = resolve(self.root, folder.rstrip(b"/") + b"/" + name, last=follow)
        found = find(self.root, target)
        if found is not None and found.is_dir:
            shown = path.decode(errors="replace")
            raise InvalidError(f"{shown} is a directory in the image; a file cannot take its place")
        above, _, name = target.rpartition(b"/")
        parent = self._writable(self.make_directory(above or b"/"))
        assert parent.children is not None
        parent.children[name] = node
        if node.is_link:
            self._made.clear()  # paths may lead elsewhere now

    def set_attributes(self, path: bytes, like: Node) -> None:
        """Give a directory of this path another's owner, permissions and attributes."""
        node = self._writable(path)
        node.mode, node.uid, node.gid, node.mtime, node.xattrs = like.mode, like.uid, like.gid, like.mtime, like.xattrs

    def _writable(self, path: bytes) -> Node:
        node = self.root
        for part in path.split(b"/"):
            if part:
                assert node.children is not None
                found = self._mine(node.children[part])
                node.children[part] = found
                node = found
        return node


def with_mount_points(root: Node) -> Node:
    """The tree with what containers and build steps mount on, so that none of it gets into a layer later."""
    edit: Optional[Edit] = None
    for text in finish.MOUNT_POINTS:
        path = b"/" + text.encode()
        found = at(root, path)
        if found is None or not found.is_dir:
            edit = edit or Edit(root)
            leaf = find(root, path)
            if leaf is not None and not leaf.is_dir and not leaf.is_link:
                raise InvalidError(f"{text} in the image is a file, and containers need it as a directory")
            edit.make_directory(path)
            if text == "tmp":
                edit.set_attributes(resolve(edit.root, path), directory(0o1777, mtime=PUT_NS))
    for text in finish.MOUNT_FILES:
        path = b"/" + text.encode()
        found = at(root, path)
        if found is None or not found.is_file:
            edit = edit or Edit(root)
            edit.put(path, Node(stat.S_IFREG | 0o644, mtime=PUT_NS), follow=False)
    return root if edit is None else edit.root
