"""A tree as the tar of one layer: sorted, with all that a tree knows, the same bytes for the same tree.

Source: POSIX.1-2001 pax; what a header has no room for is in a pax record, attributes as SCHILY.xattr has them.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterable, Iterator

from cadenza.base.errors import DataLossError, InvalidError
from cadenza.fs import tree
from cadenza.fs.layer_delta import WHITEOUT, kept_xattrs
from cadenza.fs.layer_tar import BLOCK
from cadenza.fs.tree import Node

READ_BYTES = 1 << 20
OUT_BYTES = 256 << 10
MEMBER_BYTES = 4 << 20
"""A gzip stream is members of so many bytes, one after the other, made side by side."""
WORKERS = 4
GZIP_LEVEL = 6
ZSTD_LEVEL = 3
_MOST_OCTAL = 0o7777777
_MOST_SIZE = 0o77777777777
_FLAGS = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}  # fmt: skip


def tar(root: Node, path_of: Callable[[Node], str]) -> Iterator[bytes]:
    """The tar's bytes in pieces. ``path_of`` gives a file with the content of a node.

    InvalidError for names that mean something else in layers. DataLossError for a file that is not of its size.
    """
    waiting: list[bytes] = []
    length = 0
    for piece in _pieces(root, path_of):
        waiting.append(piece)
        length += len(piece)
        if length >= OUT_BYTES:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting) + bytes(2 * BLOCK)


def _pieces(root: Node, path_of: Callable[[Node], str]) -> Iterator[bytes]:
    first: dict[int, bytes] = {}
    """Of files with several names, the first one."""
    for path, node in tree.walk(root):
        name = path[1:] or b"."
        if name.rpartition(b"/")[2].startswith(WHITEOUT) or node.is_whiteout:
            raise InvalidError(f"{path.decode(errors='replace')}: no image can have this, as registries keep images")
        flag = _FLAGS.get(stat.S_IFMT(node.mode))
        if flag is None:
            continue  # a socket, which is nothing without its process
        if node.link and not node.is_dir:
            target = first.setdefault(node.link, name)
            if target is not name:
                yield header(name, b"1", node, target)
                continue
        yield header(name + b"/" if node.is_dir else name, flag, node, node.data if node.is_link else b"")
        if flag == b"0" and node.size:
            yield from _content(path_of(node), node.size, path)


def _content(source: str, size: int, path: bytes) -> Iterator[bytes]:
    left = size
    with open(source, "rb", buffering=0) as file:
        while left:
            piece = file.read(min(left, READ_BYTES))
            if not piece:
                raise DataLossError(f"{path.decode(errors='replace')}: shorter than its tree says")
            left -= len(piece)
            yield piece
    if size % BLOCK:
        yield bytes(-size % BLOCK)


def header(name: bytes, flag: bytes, node: Node, link: bytes) -> bytes:
    """An entry's header, with a pax header before it where it needs one."""
    size = node.size if flag == b"0" else 0
    seconds, rest = divmod(node.mtime, 10**9)
    pax: list[tuple[bytes, bytes]] = []
    if len(name) > 100:
        pax.append((b"path", name))
    if len(link) > 100:
        pax.append((b"linkpath", link))
    if node.uid > _MOST_OCTAL:
        pax.append((b"uid", b"%d" % node.uid))
    if node.gid > _MOST_OCTAL:
        pax.append((b"gid", b"%d" % node.gid))
    if size > _MOST_SIZE:
        pax.append((b"size", b"%d" % size))
    if rest or not 0 <= seconds <= _MOST_SIZE:
        pax.append((b"mtime", b"%d.%09d" % (seconds, rest) if seconds >= 0 else b"0"))
    if node.xattrs and flag != b"1":
        kept = kept_xattrs(node.xattrs) or {}
        pax += [(b"SCHILY.xattr." + key, value) for key, value in sorted(kept.items())]
    devices = (os.major(node.rdev), os.minor(node.rdev)) if flag in (b"3", b"4") else (0, 0)
    block = _block(
        name, stat.S_IMODE(node.mode), node.uid, node.gid, size, seconds, flag, link, devices
    )  # fmt: skip
    if not pax:
        return block
    body = b"".join(_record(key, value) for key, value in pax)
    extra = _block(b"PaxHeaders/" + name[:80], 0o644, 0, 0, len(body), 0, b"x", b"", (0, 0))
    return extra + body + bytes(-len(body) % BLOCK) + block


def _block(
    name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, flag: bytes, link: bytes,
    devices: tuple[int, int],
) -> bytes:  # fmt: skip
    raw = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%sustar\x0000%s%07o\0%07o\0%s" % (
        name[:100].ljust(100, b"\0"), mode, uid if uid <= _MOST_OCTAL else 0, gid if gid <= _MOST_OCTAL else 0,
        size if size <= _MOST_SIZE else 0, mtime if 0 <= mtime <= _MOST_SIZE else 0, flag,
        link[:100].ljust(100, b"\0"), bytes(64), devices[0], devices[1], bytes(167),
    )  # fmt: skip
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Compressed for everybody."""
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), "cadenza-gzip") as threads:
        running: deque[Future[bytes]] = deque()
        for member in _members(chunks):
            running.append(threads.submit(_member, member))
            if len(running) > WORKERS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _members(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `MEMBER_BYTES`, the last one less."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= MEMBER_BYTES:
            yield bytes(waiting[:MEMBER_BYTES])
            del waiting[:MEMBER_BYTES]
    if waiting:
        yield bytes(waiting)


def _member(data: bytes) -> bytes:
    machine = zlib.compressobj(GZIP_LEVEL, wbits=31)
    return machine.compress(data) + machine.flush()


def zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Compressed for tools of after 2021: a third of the time, and smaller."""
    import zstandard

    machine = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=min(WORKERS, os.cpu_count() or 1)).compressobj()
    for chunk in chunks:
        if out := machine.compress(chunk):
            yield out
    yield machine.flush()
