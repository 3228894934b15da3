"""The kernel's mounts, by system calls: no fork, about 0.1 ms each.

All functions block for a short time; call them from a thread. They raise OSError with the path in it.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import Iterator, Optional, Sequence

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
# include/uapi/linux/mount.h; the numbers of these calls are the same on all architectures.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CREATE = 0, 1, 6
_AT_FDCWD = -100
_MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)  # what Python itself is linked with: looking for it would start programs


def fault(path: str) -> OSError:
    """What the last call left in errno."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(options)
    )
    if done != 0:
        raise fault(target)


def umount(target: str) -> None:
    """Detach whatever is mounted at ``target``, now. Nothing happens if nothing is."""
    while _libc.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW) == 0:
        pass
    if ctypes.get_errno() not in (22, 2, 20):  # EINVAL: not a mount; ENOENT, ENOTDIR: no such place
        raise fault(target)


@contextmanager
def detached(
    kind: str, options: Sequence[tuple[str, Optional[str]]], place: str = "", attributes: int = 0
) -> Iterator[int]:
    """A mount that has no place, as a descriptor of its root: gone when this is left, or when the process ends.

    ``options``: (name, value), None for a flag; values have at most 255 bytes. ``place``: its path in errors.
    """
    fs = _libc.syscall(_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    if fs < 0:
        raise fault(place or kind)
    try:
        for name, value in options:
            if value is None:
                done = _libc.syscall(_FSCONFIG, fs, _FSCONFIG_SET_FLAG, name.encode(), None, 0)
            else:
                done = _libc.syscall(_FSCONFIG, fs, _FSCONFIG_SET_STRING, name.encode(), os.fsencode(value), 0)
            if done != 0:
                raise fault(value or place or name)
        if _libc.syscall(_FSCONFIG, fs, _FSCONFIG_CREATE, None, None, 0) != 0:
            raise fault(place or kind)
        tree = _libc.syscall(_FSMOUNT, fs, _FSMOUNT_CLOEXEC, attributes)
        if tree < 0:
            raise fault(place or kind)
    finally:
        os.close(fs)
    try:
        yield tree
    finally:
        os.close(tree)


def attach(tree: int, target: str) -> None:
    """Give a `detached` mount a place, where it stays."""
    if _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH) != 0:
        raise fault(target)


def below(path: str) -> list[str]:
    """The mount points at or below ``path`` in this mount namespace, innermost last mounted first."""
    found = []
    prefix = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = _unescape(line.split(" ", 5)[4])
            if point == prefix or point.startswith(prefix + "/"):
                found.append(point)
    return found[::-1]


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
