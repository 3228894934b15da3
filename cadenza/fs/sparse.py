"""A tree's metadata as real entries on a tmpfs, for machines whose kernel has no EROFS: files of holes, with the
attributes that name their content. About 1 KiB of memory an entry, while the tree is shown.

`plant` makes the entries, here and for `cadenza.fs.links`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Iterator

from cadenza.fs import kernel
from cadenza.fs.abilities import metacopy
from cadenza.fs.tree import Node

MakeFile = Callable[[Node, bytes, int], bool]
"""Makes a regular file of that name in the directory with that descriptor. Whether `plant` sets its attributes."""

_OVERLAY = (b"trusted.overlay.", b"user.overlay.")


def mount(root: Node, place: str, prefix: bytes) -> None:
    """Show a tree at ``place``, a directory, read-only. OSError; what is half-made the caller unmounts."""
    kernel.mount("cadenza", place, "tmpfs", kernel.MS_NODEV, "mode=0755,nr_inodes=0")
    plant(root, place, prefix, lambda node, name, at: _hole(node, name, at, prefix))
    kernel.mount("none", place, "none", kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NODEV)


def _hole(node: Node, name: bytes, at: int, prefix: bytes) -> bool:
    number = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        if node.data:
            text = node.digest.hex()
            os.ftruncate(number, node.size)
            metacopy(number, prefix, f"/{text[:2]}/{text[2:]}".encode())
    finally:
        os.close(number)
    return True


def plant(root: Node, directory: str, prefix: bytes, make_file: MakeFile) -> None:
    """Make a tree's entries in ``directory``, which is empty, its own attributes included.

    A delta's whiteouts and opaque directories are as overlayfs wants them with ``prefix``. Names of one file are one
    file. OSError. Without the machine's root devices and attributes of the system are left out.
    """
    first: dict[int, bytes] = {}
    """Where the first name of a file with several is."""
    top = os.fsencode(directory)
    # Directories that are open, each with what is still to be made in it.
    stack: list[tuple[Node, int, bytes, Iterator[tuple[bytes, Node]]]] = []

    def enter(node: Node, number: int, path: bytes) -> None:
        assert node.children is not None
        stack.append((node, number, path, iter(sorted(node.children.items()))))

    enter(root, os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), top)
    try:
        while stack:
            parent, at, path, rest = stack[-1]
            name, node = next(rest, (b"", None))
            if node is None:
                _dress_directory(parent, at, prefix)
                os.close(at)
                stack.pop()
            elif node.is_dir:
                os.mkdir(name, 0o700, dir_fd=at)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                enter(node, os.open(name, flags, dir_fd=at), path + b"/" + name)
            elif node.link and node.link in first:
                os.link(first[node.link], name, dst_dir_fd=at, follow_symlinks=False)
            else:
                if node.link:
                    first[node.link] = path + b"/" + name
                if _make(node, name, at, make_file):
                    dress(node, name, at, prefix)
    finally:
        for _, number, _, _ in stack:
            os.close(number)


def _make(node: Node, name: bytes, at: int, make_file: MakeFile) -> bool:
    """Whether there is something whose attributes are to be set."""
    if node.is_file:
        return make_file(node, name, at)
    if node.is_link:
        os.symlink(node.data, name, dir_fd=at)
        return True
    try:
        os.mknod(name, node.mode, node.rdev, dir_fd=at)
    except PermissionError:
        return False  # without the machine's root there are no devices
    return not node.is_whiteout


def dress(node: Node, name: bytes, at: int, prefix: bytes) -> None:
    """Set the attributes of what is no directory."""
    os.chown(name, node.uid, node.gid, dir_fd=at, follow_symlinks=False)
    if node.xattrs:
        _set_xattrs(node, f"/proc/self/fd/{at}/".encode() + name, prefix, follow=False)
    if not node.is_link:
        os.chmod(name, stat.S_IMODE(node.mode), dir_fd=at)  # after chown, which takes the set-user-id bit away
    os.utime(name, ns=(node.mtime, node.mtime), dir_fd=at, follow_symlinks=False)


def _dress_directory(node: Node, number: int, prefix: bytes) -> None:
    os.fchown(number, node.uid, node.gid)
    if node.xattrs:
        _set_xattrs(node, f"/proc/self/fd/{number}".encode(), prefix, follow=True)
    if node.opaque:
        os.setxattr(number, prefix + b".overlay.opaque", b"y")
    os.fchmod(number, stat.S_IMODE(node.mode))
    os.utime(number, ns=(node.mtime, node.mtime))


def escaped(name: bytes) -> bytes:
    """The name under which an overlay's own attribute is kept, so that overlayfs shows it and does not obey it."""
    for one in _OVERLAY:
        if name.startswith(one):
            return one + b"overlay." + name[len(one) :]
    return name


def _set_xattrs(node: Node, path: bytes, prefix: bytes, follow: bool) -> None:
    assert node.xattrs is not None
    for name, value in node.xattrs.items():
        try:
            os.setxattr(path, escaped(name), value, follow_symlinks=follow)
        except OSError as error:
            # Without root those of the system cannot be set; a tmpfs has none of users before Linux 6.6.
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
