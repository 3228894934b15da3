"""A large object of which only some chunks are here: a sparse file, and a map of the chunks that were verified.

``partial/<hex of digest>`` has the size of the whole; ``partial/<hex>.map`` the kernel's boot id (36 bytes) and a byte
for each chunk, 1 when it is here. The map is believed in the boot that wrote it alone: a loss of power may keep the map
and lose the content.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from typing import Sequence

from blake3 import blake3

from cadenza.base.errors import DataLossError
from cadenza.fs.chunk import Chunk
from cadenza.fs.draft import write_at
from cadenza.fs.settle import boot_id

FOLDER = "partial"
AHEAD_CHUNKS = 8
"""How many chunks a reader from front to back may have fetched before it asks."""
_BOOT_BYTES = 36
_HASH_BYTES = 1 << 20


class Partial:
    """Thread-safe, but for `put` of one chunk by two threads at once, which is harmless."""

    def __init__(self, home: str, digest: bytes, size: int, chunks: Sequence[Chunk]) -> None:
        if sum(one.length for one in chunks) != size:
            raise DataLossError(f"object {digest.hex()}: its list of chunks is that of another size")
        os.makedirs(os.path.join(home, FOLDER), mode=0o755, exist_ok=True)
        self.digest = digest
        self.size = size
        self.chunks = chunks
        self.path = os.path.join(home, FOLDER, digest.hex())
        self._starts = [one.start for one in chunks]
        self._lock = threading.Lock()
        self._next = 0
        self._window = 1
        boot = boot_id().encode().ljust(_BOOT_BYTES)[:_BOOT_BYTES]
        try:
            with open(self.path + ".map", "rb") as file:
                found = file.read()
            known = found[:_BOOT_BYTES] == boot and len(found) == _BOOT_BYTES + len(chunks)
            known = known and os.stat(self.path).st_size == size
        except FileNotFoundError:
            found, known = b"", False
        # Objects of Python's, so that the descriptors live as long as whoever reads.
        self._file = open(self.path, "r+b" if known else "w+b", buffering=0)  # noqa: SIM115
        self._map = open(self.path + ".map", "r+b" if known else "w+b", buffering=0)  # noqa: SIM115
        if known:
            self._here = bytearray(found[_BOOT_BYTES:])
        else:
            self._file.truncate(size)
            self._here = bytearray(len(chunks))
            self._map.write(boot + self._here)
        self.here_bytes = sum(one.length for one, here in zip(chunks, self._here) if here)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.here_bytes == self.size

    def lacks(self, offset: int, length: int) -> list[int]:
        """The numbers of the chunks that bytes of this range are in and that are not here."""
        end = min(offset + length, self.size)
        if offset >= end:
            return []
        first, last = bisect_right(self._starts, offset) - 1, bisect_right(self._starts, end - 1) - 1
        return [number for number in range(first, last + 1) if not self._here[number]]

    def ahead(self, offset: int, length: int) -> list[int]:
        """What a reader of this range will want next if it goes on from front to back: more, the longer it did so."""
        end = min(offset + length, self.size)
        if offset >= end:
            return []
        last = bisect_right(self._starts, end - 1) - 1
        with self._lock:
            first = bisect_right(self._starts, offset) - 1
            if first == self._next or first == self._next - 1:
                if last >= self._next:
                    self._window = min(self._window * 2, AHEAD_CHUNKS)
                    self._next = last + 1
            else:
                self._window = 1
                self._next = last + 1
            window = self._window
        if window < 4:
            return []
        return [n for n in range(last + 1, min(last + 1 + window, len(self.chunks))) if not self._here[n]]

    def missing(self) -> list[int]:
        """The numbers of all chunks that are not here."""
        return [number for number, here in enumerate(self._here) if not here]

    def put(self, number: int, data: bytes) -> None:
        """A chunk has come; its digest was checked. OSError when the disk is full."""
        chunk = self.chunks[number]
        write_at(self._file.fileno(), data, chunk.start)
        with self._lock:
            if not self._here[number]:
                os.pwrite(self._map.fileno(), b"\1", _BOOT_BYTES + number)
                self._here[number] = 1
                self.here_bytes += chunk.length

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of chunks that are here."""
        return os.pread(self._file.fileno(), length, offset)

    def check(self) -> int:
        """The file's descriptor, when its content as a whole is the object's; else DataLossError, and it is removed."""
        hasher = blake3()
        at = 0
        while part := self.read(at, _HASH_BYTES):
            hasher.update(part)
            at += len(part)
        if hasher.digest() != self.digest:
            self.remove()
            raise DataLossError(f"object {self.digest.hex()}: all its chunks are right and the whole is not")
        return self._file.fileno()

    def remove(self) -> None:
        """Take away what is left of it by name; who still reads goes on."""
        for path in (self.path, self.path + ".map"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
