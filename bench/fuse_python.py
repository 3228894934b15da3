"""The strawman of file_access.py: a read-only file system in Python in which every call goes through FUSE.

python bench/fuse_python.py DIRECTORY MOUNTPOINT

It passes a directory on, by mfusepy over libfuse 3, with every cache that the kernel offers for what never changes.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Iterator

import mfusepy

FOREVER_S = 86400


class Passed(mfusepy.Operations):  # type: ignore[misc]
    """A directory, read-only."""

    use_ns = True

    def __init__(self, root: str) -> None:
        self.root = root

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        info = os.lstat(self.root + path)
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks")
        times = {f"st_{one}time": getattr(info, f"st_{one}time_ns") for one in "amc"}
        return {**{name: getattr(info, name) for name in names}, **times}

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        yield from (".", "..", *os.listdir(self.root + path))

    def readlink(self, path: str) -> str:
        return os.readlink(self.root + path)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.root + path, os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


if __name__ == "__main__":
    mfusepy.FUSE(
        Passed(sys.argv[1]), sys.argv[2], foreground=True, ro=True, kernel_cache=True, nothreads=True,
        entry_timeout=FOREVER_S, attr_timeout=FOREVER_S, negative_timeout=FOREVER_S,
    )  # fmt: skip
