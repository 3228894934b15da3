"""A large file that is here in part: ``big/<hex>.part``, sparse, and ``big/<hex>.have``, a byte for each chunk.

Several threads and processes may fill one: a chunk's bytes are the same whoever writes them, and its byte in ``.have``
is written after them. What a killed process left is gone on with. The two files are made and removed together, under a
lock on ``big``: a note beside another part than the one it was written of would be a lie.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import os
from typing import Iterator, Optional, Sequence

from cadenza.fs import draft as drafts
from cadenza.fs.chunk import Chunk
from cadenza.fs.local import Local


class Partial:
    """One such file. ``chunks`` are its list's, in order."""

    def __init__(self, local: Local, digest: bytes, size: int, chunks: Sequence[Chunk]) -> None:
        home = local.home
        self.digest = digest
        self.size = size
        self.chunks = chunks
        self.path = part_path(home, digest)
        self._local = local
        self._starts = [one.start for one in chunks]
        self.users = 0
        """Threads that work with it now: counted by its owner."""
        with drafts.room(home), _alone(home):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(self._fd).st_size != size:
                    os.ftruncate(self._fd, size)
                self._have_fd = os.open(have_path(home, digest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except BaseException:
                os.close(self._fd)
                raise
        found = os.pread(self._have_fd, len(chunks), 0)
        self._have = bytearray(found.ljust(len(chunks), b"\0"))

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
        with drafts.room(self._local.home), self._local.marker:
            drafts.write_at(self._fd, data, self.chunks[index].start)
            os.pwrite(self._have_fd, b"\1", index)
        self._have[index] = 1

    def read(self, start: int, length: int) -> bytes:
        """Bytes of chunks that are here."""
        return os.pread(self._fd, max(0, min(length, self.size - start)), start)

    def is_removed(self) -> bool:
        """Whether its files are no longer in their place: somebody made room, what is here of it is lost."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    def finish(self) -> bool:
        """Give the object its name; all of it is here and was verified. False: this part is no longer in its place."""
        home = self._local.home
        with drafts.room(home), _alone(home):
            if self.is_removed():
                return False  # what may be there is another's, of which we know nothing
            self._local.settle_in(self.path, self._fd, self.digest, self.size)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(have_path(home, self.digest))
        return True

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
    # The note first, if we are killed in between: a part without one counts as empty.
    with _alone(home):
        for path in (have_path(home, digest), part_path(home, digest)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@contextlib.contextmanager
def _alone(home: str) -> Iterator[None]:
    """Nobody else, of any process, makes or removes parts within it."""
    fd = os.open(os.path.join(home, "big"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
