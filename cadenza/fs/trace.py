"""Which files a container opens while it starts, in order: what the next start on another machine fetches first.

The kernel keeps the list (fanotify(7), as notices: nobody waits for us), and it is read once, when the recording ends.
A start that imports numpy is not measurably slower for it; docs/operate/filesystem.md has the figures.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import Iterator

_FAN_CLASS_NOTIF, _FAN_CLOEXEC, _FAN_NONBLOCK = 0, 1, 2
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 1, 0x100
_FAN_OPEN, _FAN_Q_OVERFLOW = 0x20, 0x4000
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")
_READ_BYTES = _EVENT.size * 128
"""Each notice that is read is an open file of ours, for a moment."""
_FAULTS = 1000
"""So many notices may be unreadable, because their files are."""

_libc = ctypes.CDLL(None, use_errno=True)


class Recorder:
    """Records what is opened in the overlay that is mounted at ``merged``, by whom and in whatever namespace.

    `start` before the container's first process, `stop` once. At most as many notices are kept as the kernel's queue
    holds (16,384): the first. Where it cannot be done nothing is recorded, and ``why`` says why.
    """

    def __init__(self, merged: str) -> None:
        self.merged = os.path.realpath(merged)
        self.why = ""
        self.full = False
        """Whether more was opened than the queue holds."""
        self._fd = -1

    def start(self) -> None:
        """Begin. Costs 0.05 ms. No error."""
        fd = _libc.fanotify_init(_FAN_CLASS_NOTIF | _FAN_CLOEXEC | _FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
        if fd < 0:
            self.why = os.strerror(ctypes.get_errno())
            return
        flags = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
        if _libc.fanotify_mark(fd, flags, ctypes.c_uint64(_FAN_OPEN), _AT_FDCWD, os.fsencode(self.merged)) != 0:
            self.why = os.strerror(ctypes.get_errno())
            os.close(fd)
            return
        self._fd = fd

    def stop(self) -> list[str]:
        """The paths of the regular files that were opened, beginning with "/", each once, in the order of their first
        opening. Blocks for about 10 us a notice. Call it while the overlay is still mounted at its place."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return []
        found: dict[str, None] = {}
        known: set[int] = set()
        try:
            for number in self._opened(fd):
                info = os.fstat(number)
                if stat.S_ISREG(info.st_mode) and info.st_ino not in known:
                    known.add(info.st_ino)
                    path = self._path(os.readlink(f"/proc/self/fd/{number}"), info.st_ino)
                    if path:
                        found[path] = None
        finally:
            os.close(fd)
        return list(found)

    def _opened(self, fd: int) -> Iterator[int]:
        """Each notice as a descriptor of the file, which is open until the next."""
        faults = 0
        while faults < _FAULTS:
            try:
                data = os.read(fd, _READ_BYTES)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                faults += 1
                continue
            numbers = []
            at = 0
            while at + _EVENT.size <= len(data):
                length, _, _, _, mask, number, _ = _EVENT.unpack_from(data, at)
                at += length
                self.full = self.full or bool(mask & _FAN_Q_OVERFLOW)
                if number >= 0:
                    numbers.append(number)
            try:
                yield from numbers
            finally:
                for number in numbers:
                    os.close(number)

    def _path(self, shown: str, inode: int) -> str:
        """The path in the overlay. ``shown`` is that of a mount that we may not have: a container's root, a bind."""
        if shown.startswith(self.merged + "/"):
            shown = shown[len(self.merged) :]
        while shown:
            try:
                if os.lstat(self.merged + shown).st_ino == inode:
                    return shown
            except OSError:
                pass
            slash = shown.find("/", 1)
            shown = shown[slash:] if slash > 0 else ""
        return ""
