"""A large file that is here in part: ``big/<hex>.part``, sparse, and ``big/<hex>.have``, a byte for each chunk.

Several threads and processes may fill one: a chunk's bytes are the same whoever writes them, and its byte in ``.have``
is written after them. What a killed process left is gone on with.
"""

from __future__ import annotations

import bisect
import os
import threading
from typing import Optional, Sequence

from cadenza.fs import draft as drafts
from cadenza.fs.chunk import Chunk


class Partial:
    """One such file. ``chunks`` are its list's, in order."""

    def __init__(self, home: str, digest: bytes, size: int, chunks: Sequence[Chunk]) -> None:
        self.digest = digest
        self.size = size
        self.chunks = chunks
        self.path = part_path(home, digest)
        self._home = home
        self._starts = [one.start for one in chunks]
        self._lock = threading.Lock()
        self.users = 0
        """Threads that work with it now: counted by its owner."""
        with drafts.room(home):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(self._fd).st_size != size:
                    os.ftruncate(self._fd, size)
                self._have_fd = os.open(have_path(home, digest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except BaseException:
                os.close(self._fd)
                raise
        self._have = bytearray(len(chunks))
        self.refresh()

    def refresh(self) -> None:
        """Take note of what other processes wrote."""
        found = os.pread(self._have_fd, len(self.chunks), 0)
        with self._lock:
            for index, one in enumerate(found):
                if one:
                    self._have[index] = 1

    def missing(self, start: int = 0, length: Optional[int] = None) -> list[int]:
        """Indices of chunks that are needed for this range and not here."""
        end = self.size if length is None else min(self.size, start + length)
        if start >= end:
            return []
        first = max(0, bisect.bisect_right(self._starts, start) - 1)
        last = bisect.bisect_left(self._starts, end)
        return [index for index in range(first, last) if not self._have[index]]

    def put(self, index: int, data: bytes) -> None:
        """Keep a chunk's content, which the caller has verified. ResourceExhaustedError when the disk is full."""
        with drafts.room(self._home):
            drafts.write_at(self._fd, data, self.chunks[index].start)
            os.pwrite(self._have_fd, b"\1", index)
        self._have[index] = 1

    def read(self, start: int, length: int) -> bytes:
        """Bytes of chunks that are here."""
        return os.pread(self._fd, max(0, min(length, self.size - start)), start)

    @property
    def fd(self) -> int:
        """The part's descriptor."""
        return self._fd

    def close(self) -> None:
        """Close its files; what is there stays."""
        os.close(self._fd)
        os.close(self._have_fd)


def part_path(home: str, digest: bytes) -> str:
    """Where what is here of a large file lies."""
    return os.path.join(home, "big", f"{digest[:32].hex()}.part")


def have_path(home: str, digest: bytes) -> str:
    """Where it is noted which of its chunks that are."""
    return os.path.join(home, "big", f"{digest[:32].hex()}.have")


def remove(home: str, digest: bytes) -> None:
    """Forget what is here of a file."""
    # The note first: a part without one is empty, a note without its part would be a lie.
    for path in (have_path(home, digest), part_path(home, digest)):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
