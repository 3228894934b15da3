"""Where a step of a build is made, below the store's ``work/``; and removing what such places leave behind."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from dataclasses import dataclass

from cadenza.base.errors import ResourceExhaustedError

NAME_BYTES = 6
MNT_DETACH = 2


@dataclass(frozen=True)
class Workplace:
    """Directories of one step, on the store's own file system."""

    root: str

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
        if sys.version_info >= (3, 12):
            shutil.rmtree(root, onexc=_open_up)
        else:
            shutil.rmtree(root, onerror=_open_up)
        if not os.path.lexists(root):
            return


def detach_below(root: str) -> bool:
    """Unmount all that is mounted at or below a path, now. Whether that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    return all(libc.umount2(os.fsencode(one), MNT_DETACH) == 0 for one in mounts_below(os.path.realpath(root)))


def _open_up(function: object, path: str, error: object) -> None:
    """A build without root may leave directories that even their owner cannot list."""
    try:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
        else:
            os.unlink(path)
    except OSError:
        return


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
