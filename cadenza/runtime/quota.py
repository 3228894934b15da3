"""A file system of a fixed size in a sparse file, by a loop device: what a container may write in all.

A start takes about 10 ms more with one; in an empty one of 20 GiB are 0.3 MiB. Needs the machine's root and mkfs.ext4.
Functions block; call them from a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
from contextlib import contextmanager
from typing import Iterator

from cadenza.runtime import rootless

LEAST_MIB = 8
KIND = "ext4"
CONTROL = "/dev/loop-control"
MKFS = "mkfs.ext4"
MKFS_LIMIT_S = 60.0
TRIES = 16
"""How often another process may take the loop device that was found free."""
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
_LOOP_MAJOR = 7
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def unable() -> str:
    """Why this process can make none; empty when it can."""
    if os.geteuid() != 0 or rootless.entered():
        return "limits on disk space need root"
    if shutil.which(MKFS, path=_PATH) is None:
        return f"limits on disk space need {MKFS}: install e2fsprogs"
    if not os.path.exists(CONTROL):
        return f"limits on disk space need loop devices, and there is no {CONTROL}: modprobe loop"
    return ""


def make(path: str, mib: int) -> None:
    """A file with an empty file system into which ``mib`` MiB of files fit; what is never written takes no room.

    OSError says what is lacking.
    """
    lacks = unable()
    if lacks:
        raise OSError(errno.EOPNOTSUPP, lacks, path)
    wanted = max(LEAST_MIB, mib)
    with open(path, "xb") as file:
        # A fiftieth for inodes, one for each 16 KiB, and what else ext4 keeps for itself.
        file.truncate((wanted + wanted // 50 + 4) << 20)
    argv = [
        str(shutil.which(MKFS, path=_PATH)), "-q", "-F", "-b", "4096", "-i", "16384", "-m", "0",
        "-O", "^has_journal,^resize_inode", "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0", path,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MKFS_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{MKFS} took longer than {MKFS_LIMIT_S:g} s", path) from None
    if done.returncode != 0:
        raise OSError(errno.EIO, f"{MKFS}: {done.stderr.strip()[-300:]}", path)


@contextmanager
def device(path: str) -> Iterator[str]:
    """A block device over the file, to be mounted while inside. It is gone when it is mounted no more. OSError."""
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        name, loop = _attach(backing)
    finally:
        os.close(backing)
    try:
        yield name
    finally:
        os.close(loop)


def _attach(backing: int) -> tuple[str, int]:
    # struct loop_config: the file, a block size, struct loop_info64 with its flags at byte 52, 8 reserved words.
    config = struct.pack("=II", backing, 0) + struct.pack("=52xI176x", _LO_FLAGS_AUTOCLEAR) + bytes(64)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for left in reversed(range(TRIES)):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            name = f"/dev/loop{number}"
            if not os.path.exists(name):
                os.mknod(name, 0o600 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
            loop = os.open(name, os.O_RDWR | os.O_CLOEXEC)
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
