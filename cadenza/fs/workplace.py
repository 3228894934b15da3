"""Where a step of a build is made, below the store's ``work/``; and removing what such places leave behind."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field

from cadenza.base.errors import ResourceExhaustedError

NAME_BYTES = 6
MNT_DETACH = 2
DEEP = 64
"""Directories below so many others are moved up before they are emptied: a program may nest thousands, whose paths no
call takes, and each level that is open takes a descriptor."""


@dataclass(frozen=True)
class Workplace:
    """Directories of one step, on the store's own file system."""

    root: str
    held: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)
    """What the step counts on: closed when it is dropped."""

    @property
    def upper(self) -> str:
        return os.path.join(self.root, "upper")

    @property
    def work(self) -> str:
        return os.path.join(self.root, "work")

    @property
    def more(self) -> str:
        """For files beside the layer: what is bound into the step."""
        return os.path.join(self.root, "more")

    def drop(self) -> None:
        """Remove what a step leaves, whatever state it is in. Blocks."""
        self.held.close()
        remove_tree(self.root)


def begin(directory: str) -> Workplace:
    """An empty place below ``directory``. OSError when the disk is full."""
    place = Workplace(os.path.join(directory, secrets.token_hex(NAME_BYTES)))
    for path in (place.upper, place.work, place.more):
        os.makedirs(path)
    os.chmod(place.upper, 0o755)
    return place


def empty(directory: str) -> None:
    """Remove all that a killed process left below ``directory``. Blocks."""
    for name in os.listdir(directory):
        remove_tree(os.path.join(directory, name))


def remove_tree(root: str) -> None:
    """Remove a tree, after detaching what a killed step left mounted in it, so that nothing else is reached."""
    if not os.path.lexists(root):
        return
    if not detach_below(root):
        return  # not ours to undo: leave it for the next start
    for _ in range(3):  # a dying process may still have put a file in
        erase(root)
        if not os.path.lexists(root):
            return


def erase(path: str) -> None:
    """Remove a file, or a directory with all below it however deep; what cannot go stays. Nothing may be mounted there.

    It is for what a container's programs made: no link is followed, and no path is longer than one name.
    """
    parent, name = os.path.split(os.path.abspath(path))
    try:
        above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    # Directories that are open: the descriptor, the name, and what is still to be removed in it.
    stack: list[tuple[int, str, list[str]]] = [(above, "", [name])]
    moved = 0
    try:
        while True:
            at, name, names = stack[-1]
            if names:
                one = names.pop()
                if not _is_directory(at, one):
                    _unlink(at, one)
                elif len(stack) > DEEP:
                    top, _, waiting = stack[1]
                    moved += 1
                    fresh = f".{moved}.{secrets.token_hex(NAME_BYTES)}"
                    try:
                        os.chmod(one, 0o700, dir_fd=at)  # its ".." changes: without root that is a write to it
                        os.rename(one, fresh, src_dir_fd=at, dst_dir_fd=top)
                        waiting.append(fresh)
                    except OSError:
                        continue
                else:
                    fd = _enter(at, one)
                    if fd >= 0:
                        stack.append((fd, one, os.listdir(fd)))
                continue
            if len(stack) == 1:
                return
            stack.pop()
            os.close(at)
            try:
                os.rmdir(name, dir_fd=stack[-1][0])
            except OSError:
                continue
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _is_directory(at: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _unlink(at: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=at)
    except OSError:
        return


def _enter(at: int, name: str) -> int:
    """A directory, opened; below 0: it cannot be. Without root there may be some that even their owner cannot list."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if os.geteuid() != 0 or os.stat(name, dir_fd=at, follow_symlinks=False).st_uid != 0:
            os.chmod(name, 0o700, dir_fd=at)
        return os.open(name, flags, dir_fd=at)
    except OSError:
        return -1


def detach_below(root: str) -> bool:
    """Unmount all that is mounted at or below a path, now. Whether that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    return all(libc.umount2(os.fsencode(one), MNT_DETACH) == 0 for one in mounts_below(os.path.realpath(root)))


def mounts_below(root: str) -> list[str]:
    """Mount points at or under a path, the deepest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            where = line.split(" ", 5)[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if where == root or where.startswith(root + "/"):
                found.append(where)
    return sorted(found, key=len, reverse=True)


def explain(error: OSError, directory: str) -> Exception:
    """A full disk as an error that says where and what to do; other errors as they are."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhaustedError(
            f"the disk that holds {directory} is full, so the image could not be stored: free some space there, or set "
            "CADENZA_HOME to a directory on a larger disk"
        )
    return error
