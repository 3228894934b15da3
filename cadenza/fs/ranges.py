"""Which chunks of a large object a reader needs, which are here, and which it will want next. Pure."""

from __future__ import annotations

from bisect import bisect_right
from typing import Sequence

from cadenza.base.errors import DataLossError
from cadenza.fs.chunk import Chunk

AHEAD_CHUNKS = 8
"""How many chunks a reader from front to back may have fetched before it asks for them."""
SURE_CHUNKS = 2
"""So many neighbours in a row are no accident."""


class Ranges:
    """One object's. Its chunks are known not to be here until `came`."""

    def __init__(self, digest: bytes, size: int, chunks: Sequence[Chunk]) -> None:
        if sum(one.length for one in chunks) != size:
            raise DataLossError(f"object {digest.hex()}: its list of chunks is that of another size than {size}")
        self.size = size
        self.chunks = chunks
        self.here_bytes = 0
        self._starts = [one.start for one in chunks]
        self._here = bytearray(len(chunks))
        self._next = 0
        """The chunk after the last one that a reader from front to back has touched."""
        self._run = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.here_bytes == self.size

    def came(self, number: int) -> None:
        """This chunk is here."""
        if not self._here[number]:
            self._here[number] = 1
            self.here_bytes += self.chunks[number].length

    def _span(self, start: int, length: int) -> range:
        """The numbers of the chunks that these bytes are in."""
        end = min(start + length, self.size)
        if start >= end:
            return range(0)
        return range(bisect_right(self._starts, start) - 1, bisect_right(self._starts, end - 1))

    def lacks(self, start: int, length: int) -> list[int]:
        """The numbers of the chunks that these bytes are in and that are not here."""
        return [number for number in self._span(start, length) if not self._here[number]]

    def missing(self) -> list[int]:
        """The numbers of all chunks that are not here."""
        return [number for number, here in enumerate(self._here) if not here]

    def ahead(self, start: int, length: int) -> list[int]:
        """What who reads these bytes will want next, if it goes on as it did: nothing, until it has gone on a while.

        More the longer it did so, up to `AHEAD_CHUNKS`.
        """
        span = self._span(start, length)
        if not span:
            return []
        if self._next - 1 <= span.start <= self._next:
            self._run += max(0, span.stop - self._next)
        else:
            self._run = 1
        self._next = span.stop
        if self._run < SURE_CHUNKS:
            return []
        after = range(span.stop, min(span.stop + min(self._run, AHEAD_CHUNKS), len(self.chunks)))
        return [number for number in after if not self._here[number]]
