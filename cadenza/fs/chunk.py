"""Large files as chunks whose borders their content decides: what two versions share is stored and sent once.

FastCDC, as pyfastcdc does it (docs/formats/tree.md): a byte put in at the front moves one border or two, not all.
A *list* is MessagePack: an array of ``[BLAKE3 of the chunk (32 bytes), length in bytes]``, in order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Iterable, Optional

import msgspec
from blake3 import blake3

from cadenza.base.errors import DataLossError

MIN_BYTES = 256 << 10
AVERAGE_BYTES = 1 << 20
MAX_BYTES = 4 << 20
WINDOW_BYTES = 4 * MAX_BYTES
"""How much of a file is in memory at once. Read, not mapped: a disk's fault in mapped memory would end the process."""


@dataclass(frozen=True)
class Chunk:
    """``length`` bytes of a file from ``start``, and their BLAKE3."""

    digest: bytes
    start: int
    length: int


def cut(fd: int, size: int, each: Optional[Callable[[memoryview], object]] = None) -> tuple[Chunk, ...]:
    """The chunks of a file's first ``size`` bytes; ``each`` is given its content in order, to be hashed as it passes.

    The file's position stays. DataLossError when the file is shorter.
    """
    from pyfastcdc import FastCDC  # 5 ms, and wanted for large files alone

    cutter = FastCDC(AVERAGE_BYTES, min_size=MIN_BYTES, max_size=MAX_BYTES)
    window = memoryview(bytearray(min(WINDOW_BYTES, size)))
    found: list[Chunk] = []
    start = 0  # of the window in the file
    kept = 0  # bytes at its front that were read before
    while start < size:
        full = min(len(window), size - start)
        _fill(fd, window, kept, start, full)
        here = window[:full]
        # The last chunk of a window may be cut by the window's end: it is cut anew at the front of the next.
        whole = start + full == size
        at = 0
        for one in cutter.cut_buf(here):
            if not whole and at + one.length == full:
                break
            part = here[at : at + one.length]
            if each is not None:
                each(part)
            found.append(Chunk(blake3(part).digest(), start + at, one.length))
            at += one.length
        kept = full - at
        window[:kept] = bytes(window[at:full])
        start += at
    return tuple(found)


def _fill(fd: int, window: memoryview, kept: int, start: int, full: int) -> None:
    at = kept
    while at < full:
        count = os.preadv(fd, [window[at:full]], start + at)
        if not count:
            raise DataLossError(f"a file ended after {start + at} bytes while its chunks were made: it was changed")
        at += count


def encode_list(chunks: Iterable[Chunk]) -> bytes:
    """The list as bytes; its name is their BLAKE3."""
    return msgspec.msgpack.encode([(one.digest, one.length) for one in chunks])


_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, int]])


def decode_list(data: bytes, size: int = -1) -> tuple[Chunk, ...]:
    """The list that `encode_list` made bytes of; ``size``: what it must cover. DataLossError when it is none."""
    try:
        rows = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataLossError(f"not a list of chunks: {error}") from None
    found = []
    start = 0
    for digest, length in rows:
        if len(digest) != 32 or not 0 < length <= MAX_BYTES:
            raise DataLossError(f"a list of chunks with a chunk of {length} bytes, digest of {len(digest)}")
        found.append(Chunk(digest, start, length))
        start += length
    if size >= 0 and start != size:
        raise DataLossError(f"a list of chunks covers {start} bytes of a file of {size}")
    return tuple(found)


def verify(chunk: Chunk, data: bytes) -> bool:
    """Whether these bytes are the chunk's."""
    return len(data) == chunk.length and blake3(data).digest() == chunk.digest
