"""A file as a block device: to mount file systems that are in files."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import contextmanager
from typing import Iterator

CONTROL = "/dev/loop-control"
TRIES = 16
"""How often another process may take the loop device that was found free."""
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_MAJOR = 7


@contextmanager
def device(path: str, writable: bool = False) -> Iterator[str]:
    """The device's path, to be mounted while inside. The device is gone when it is mounted no more. OSError."""
    access = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    backing = os.open(path, access)
    try:
        name, loop = _attach(backing, access)
    finally:
        os.close(backing)
    try:
        yield name
    finally:
        os.close(loop)


def _attach(backing: int, access: int) -> tuple[str, int]:
    # struct loop_config: the file, a block size, struct loop_info64 with its flags at byte 52, 8 reserved words.
    flags = _LO_FLAGS_AUTOCLEAR | (0 if access & os.O_RDWR else _LO_FLAGS_READ_ONLY)
    config = struct.pack("=II", backing, 0) + struct.pack("=52xI176x", flags) + bytes(64)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for left in reversed(range(TRIES)):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            name = f"/dev/loop{number}"
            if not os.path.exists(name):
                os.mknod(name, 0o600 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
            loop = os.open(name, access)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
                return name, loop
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY or not left:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free", CONTROL)
