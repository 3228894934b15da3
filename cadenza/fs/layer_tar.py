"""A lean reader of tar streams: one pass, constant memory, nothing on disk.

Sources: POSIX.1-2001 pax, the GNU tar manual (long names, old sparse files, base-256 numbers), GNU.sparse.* 0.0, 0.1
and 1.0. What makes no sense raises TarError: a reader that guesses reads another tree than its neighbour.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable, Iterable, Iterator

BLOCK = 512
PAX_BYTES = 1 << 20
NAME_BYTES = 64 << 10
SPARSE_PIECES = 1 << 20
OUT_BYTES = 1 << 20
"""At most so much comes out of a decompressor at once, however little went in."""
WINDOW_BYTES = 128 << 20
_ZERO = bytes(BLOCK)

FILE, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_PLAIN = {b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE}
_KINDS = {**_PLAIN, **{one: one for one in (HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO)}}
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."


class TarError(Exception):
    """The stream is no tar, or ends too early."""


@dataclass
class Entry:
    """One entry. ``kind`` is a type flag of POSIX; ``size`` is the file's, holes counted; ``mtime`` in nanoseconds."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Tar:
    """The entries of a stream of bytes. Iterate; of each entry `content` may be read before the next is asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._at = 0
        self._left = 0
        """Bytes of the present entry still in the stream, without padding."""
        self._padding = 0
        self._sparse: list[tuple[int, int]] | None = None
        self._size = 0
        self.entries = 0

    # Bytes.

    def _more(self) -> bool:
        """Add to the buffer; whether there was more."""
        for chunk in self._chunks:
            if chunk:
                self._buffer = self._buffer[self._at :] + chunk if self._at < len(self._buffer) else chunk
                self._at = 0
                return True
        return False

    def _take(self, length: int) -> bytes:
        """Exactly so many bytes, or b"" when there are none left at all."""
        while len(self._buffer) - self._at < length:
            if not self._more():
                if self._at >= len(self._buffer):
                    return b""
                raise TarError("it ends in the middle of an entry")
        found = self._buffer[self._at : self._at + length]
        self._at += length
        return found

    def _flow(self, length: int) -> Iterator[bytes]:
        """So many bytes in pieces."""
        while length:
            there = len(self._buffer) - self._at
            if not there:
                if not self._more():
                    raise TarError("it ends in the middle of a file")
                continue
            if there <= length and not self._at:
                piece, self._buffer = self._buffer, b""
            else:
                piece = self._buffer[self._at : self._at + length]
                self._at += len(piece)
            length -= len(piece)
            self._left -= len(piece)
            yield piece

    def _skip(self) -> None:
        for _ in self._flow(self._left):
            pass
        if self._padding:
            if len(self._take(self._padding)) != self._padding:
                raise TarError("it ends in the middle of a file")
            self._padding = 0

    def drain(self) -> None:
        """Read what comes after the archive's end."""
        self._buffer = b""
        for _ in self._chunks:
            pass

    # Entries.

    def __iter__(self) -> Iterator[Entry]:
        pax: dict[bytes, bytes] = {}
        pieces: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            self._skip()
            block = self._take(BLOCK)
            if not block or block == _ZERO:
                if pax or long_name or long_link:
                    raise TarError("it ends after the header of an entry that is not there")
                return
            _check(block)
            flag, size = block[156:157], number(block[124:136])
            if size < 0:
                raise TarError("an entry with a size below zero")
            if flag in (b"x", b"X", b"g"):
                records = _pax(self._meta(size, PAX_BYTES))
                if flag != b"g":  # what is said of all entries is comments in practice
                    pieces = [one for one in records if one[0] in (_SPARSE + b"offset", _SPARSE + b"numbytes")]
                    pax = dict(records)
                continue
            if flag == b"L":
                long_name = self._meta(size, NAME_BYTES).split(b"\0", 1)[0]
                continue
            if flag == b"K":
                long_link = self._meta(size, NAME_BYTES).split(b"\0", 1)[0]
                continue
            if flag == b"V":
                continue
            self.entries += 1
            yield self._entry(block, flag, size, pax, pieces, long_name, long_link)
            pax, pieces, long_name, long_link = {}, [], b"", b""

    def _meta(self, size: int, limit_bytes: int) -> bytes:
        if size > limit_bytes:
            raise TarError(f"a header of {size} bytes, where {limit_bytes} are allowed")
        self._left, self._padding = size, -size % BLOCK
        found = b"".join(self._flow(size))
        self._skip()
        return found

    def _entry(
        self, block: bytes, flag: bytes, size: int, pax: dict[bytes, bytes], pieces: list[tuple[bytes, bytes]],
        long_name: bytes, long_link: bytes,
    ) -> Entry:  # fmt: skip
        kind = _KINDS.get(flag)
        if kind is None:
            raise TarError(f"an entry of an unknown type {flag!r}")
        name = block[:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0":
            prefix = block[345:500].split(b"\0", 1)[0]
            if prefix:
                name = prefix + b"/" + name
        name = long_name or name
        if flag == b"\0" and name.endswith(b"/"):
            kind = DIRECTORY
        link = long_link or block[157:257].split(b"\0", 1)[0]
        uid, gid, mtime = number(block[108:116]), number(block[116:124]), number(block[136:148]) * 10**9
        xattrs: dict[bytes, bytes] = {}
        if pax:
            name, link = pax.get(b"path", name), pax.get(b"linkpath", link)
            size = _whole(pax, b"size", size)
            uid, gid = _whole(pax, b"uid", uid), _whole(pax, b"gid", gid)
            if b"mtime" in pax:
                mtime = _nanoseconds(pax[b"mtime"])
            xattrs = {key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)}
        if kind is not FILE:
            size = 0  # as everywhere: what such an entry says of a size has no bytes
        self._left, self._padding, self._sparse = size, -size % BLOCK, None
        if kind is FILE:
            name = self._find_sparse(block, flag, pax, pieces, name)
            size = self._size = size if self._sparse is None else self._size
        if b"\0" in name or b"\0" in link:
            raise TarError("a name with a zero byte")
        return Entry(
            name, kind, number(block[100:108]) & 0o7777, uid, gid, size, mtime, link,
            number(block[329:337]) if kind in (CHARACTER, BLOCK_DEVICE) else 0,
            number(block[337:345]) if kind in (CHARACTER, BLOCK_DEVICE) else 0, xattrs,
        )  # fmt: skip

    # Sparse files.

    def _find_sparse(
        self, block: bytes, flag: bytes, pax: dict[bytes, bytes], pieces: list[tuple[bytes, bytes]], name: bytes
    ) -> bytes:
        """Set the map of a sparse file, if it is one; its name."""
        numbers: list[int] = []
        if flag == b"S":
            numbers, more = _old_map(block, 386, 4), block[482] != 0
            self._size = number(block[483:495])
            while more:
                block = self._take(BLOCK)
                if not block or len(numbers) > 2 * SPARSE_PIECES:
                    raise TarError("a sparse file without its map")
                numbers += _old_map(block, 0, 21)
                more = block[504] != 0
        elif pax.get(_SPARSE + b"major") == b"1":
            numbers = self._inner_map()
            self._size = _whole(pax, _SPARSE + b"realsize", -1)
        elif _SPARSE + b"map" in pax:
            numbers = [_digits(one) for one in pax[_SPARSE + b"map"].split(b",") if one]
            self._size = _whole(pax, _SPARSE + b"size", -1)
        elif pieces:
            numbers = [_digits(value) for _, value in pieces]
            self._size = _whole(pax, _SPARSE + b"size", -1)
        else:
            return name
        self._sparse = list(zip(numbers[::2], numbers[1::2]))
        end = 0
        for offset, length in self._sparse:
            if offset < end or length < 0:
                raise TarError("a sparse file whose parts overlap")
            end = offset + length
        if len(numbers) % 2 or end > self._size or sum(numbers[1::2]) != self._left:
            raise TarError("a sparse file whose map does not fit it")
        return pax.get(_SPARSE + b"name", name)

    def _inner_map(self) -> list[int]:
        """The map at the beginning of the content, decimal lines, padded to a block (GNU.sparse 1.0)."""
        lines: list[bytes] = []
        rest, wanted = b"", 1
        while len(lines) < wanted:
            if self._left < BLOCK:
                raise TarError("a sparse file without its map")
            *whole, rest = (rest + self._take(BLOCK)).split(b"\n")
            self._left -= BLOCK
            lines += whole
            if lines:
                count = _digits(lines[0])
                if count > SPARSE_PIECES:
                    raise TarError("a sparse file in too many parts")
                wanted = 1 + 2 * count
            if len(rest) > 32 and len(lines) < wanted:
                raise TarError("a sparse file without its map")
        return [_digits(one) for one in lines[1:wanted]]

    def content(self) -> Iterator[bytes]:
        """The present file's bytes, holes as zeros."""
        if self._sparse is None:
            yield from self._flow(self._left)
            return
        at = 0
        for offset, length in self._sparse:
            yield from _zeros(offset - at)
            yield from self._flow(length)
            at = offset + length
        yield from _zeros(self._size - at)


_ZEROS = bytes(1 << 20)


def _zeros(length: int) -> Iterator[bytes]:
    while length:
        step = min(length, len(_ZEROS))
        yield _ZEROS if step == len(_ZEROS) else bytes(step)
        length -= step


def _check(block: bytes) -> None:
    """TarError unless the header's sum is right, counted with or without signs."""
    told = number(block[148:156])
    # The low half of an Adler-32 is 1 and the sum of the bytes, exact for so few: ten times as quick as sum().
    total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    total += 8 * 32 - sum(block[148:156])
    if told != total and told != total - 256 * sum(one > 127 for one in block[:148] + block[156:]):
        raise TarError("a header is damaged")


@lru_cache(4096)
def number(raw: bytes) -> int:
    """A number in a header: octal, or base 256 with a sign."""
    first = raw[0]
    if first & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value - (1 << (8 * len(raw) - 1)) if first & 0x40 else value
    text = raw.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    try:
        if not text.isdigit():
            raise ValueError
        return int(text, 8)
    except ValueError:
        raise TarError("a header with a number that is none") from None


def _digits(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError("a header with a number that is none")
    return int(text)


def _whole(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    found = _digits(pax[key]) if key in pax else default
    if found < 0:
        raise TarError(f"an entry without {key.decode()}")
    return found


def _nanoseconds(text: bytes) -> int:
    sign = -1 if text.startswith(b"-") else 1
    seconds, _, rest = text.lstrip(b"-").partition(b".")
    return sign * (_digits(seconds or b"0") * 10**9 + _digits(rest[:9].ljust(9, b"0") or b"0"))


def _old_map(block: bytes, at: int, count: int) -> list[int]:
    found: list[int] = []
    for start in range(at, at + 24 * count, 24):
        if not block[start]:
            break
        found += [number(block[start : start + 12]), number(block[start + 12 : start + 24])]
    return found


def _pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Records ``<length> <key>=<value>\\n`` in order."""
    found, at = [], 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        if space < 0:
            if not data[at:].strip(b"\0"):
                break
            raise TarError("a header with a record that is none")
        end = at + _digits(data[at:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n" or not equals:
            raise TarError("a header with a record that is none")
        found.append((key, value))
        at = end
    return found


# Streams.


def unpack(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a stream that is gzip, zstd or neither, by how it begins. TarError when it is damaged."""
    source = iter(chunks)
    head = b""
    while len(head) < 4:
        chunk = next(source, None)
        if chunk is None:
            break
        head += chunk
    rest = _chain(head, source)
    if head[:2] == b"\x1f\x8b":
        return _gunzip(rest)
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return _unzstd(rest)
    return rest


def _chain(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Any number of members one after the other."""
    member = zlib.decompressobj(wbits=31)
    begun = False
    for chunk in chunks:
        while chunk:
            if member.eof:
                if not chunk.lstrip(b"\0"):
                    break  # padding
                member, begun = zlib.decompressobj(wbits=31), False
            begun = True
            try:
                out = member.decompress(chunk, OUT_BYTES)
            except zlib.error:
                raise TarError("its gzip stream is damaged") from None
            if out:
                yield out
            chunk = member.unused_data if member.eof else member.unconsumed_tail
    if begun and not member.eof:
        raise TarError("its gzip stream ends too early")


class _Source:
    """Chunks as an object to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Any number of frames one after the other."""
    import zstandard

    machine = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    source = _Source(chunks)
    try:
        with machine.stream_reader(source, read_size=256 << 10, read_across_frames=True) as reader:  # type: ignore[arg-type]
            while piece := reader.read(OUT_BYTES):
                yield piece
    except zstandard.ZstdError:
        raise TarError(f"its zstd stream is damaged, or needs a window above {WINDOW_BYTES >> 20} MiB") from None


def hashed(chunks: Iterable[bytes], update: Callable[[bytes], object]) -> Iterator[bytes]:
    """The same chunks, each shown to ``update`` on its way."""
    for chunk in chunks:
        update(chunk)
        yield chunk


def hasher(digest: str) -> hashlib._Hash:
    """What computes digests of the kind that ``digest`` is."""
    return hashlib.new(digest.partition(":")[0])
