"""A tree as an EROFS image that holds metadata only: names, attributes, and for each file where its content is.

Overlayfs mounts the image over the directory of objects as a data-only layer: the extended attributes
``overlay.metacopy`` and ``overlay.redirect`` of a file name its object. Read without overlayfs a file has its size and
only zeros. The subset of the format that is written here, byte by byte: docs/formats/erofs.md. Sources: the kernel's
Documentation/filesystems/erofs.rst and overlayfs.rst.

Three passes: `_scan` numbers the inodes, `_place` gives each its address, `_emit` makes the bytes in that order, so
that memory grows by some ten words an inode, whatever the image's size.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from bisect import bisect_left
from typing import Iterator, Sequence

from blake3 import blake3

from cadenza.base.errors import InvalidError
from cadenza.fs.tree import Node

BLOCK_BYTES = 4096
SUPER_OFFSET = 1024
ROOT_OFFSET = 1152
"""Where the root's inode is: behind the superblock. Addresses of inodes are counted from the image's begin."""
MAGIC = 0xE0F5E1E2
COMPAT_CHECKSUM, COMPAT_MTIME = 1, 2
INCOMPAT_CHUNKED = 4
EXTENDED = 1
PLAIN, INLINE, CHUNKED = 0, 2, 4
"""Layouts of data: in blocks of its own, the last piece behind the inode, by chunks."""
CHUNK_BITS = 31
"""Chunks of 4096 << 31 bytes, the largest there are: 8 TiB."""
HOLE = b"\xff\xff\xff\xff"
NAME_INDEXES = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
XATTR_HEADER_BYTES = 12
XATTRS_BYTES = XATTR_HEADER_BYTES + 4 * 0xFFFE
SHARED_BYTES, SHARED_TIMES = 32, 3
"""An attribute of at least so many bytes that so many inodes have is kept once."""
SHARED_COUNT = 255

_FILE_TYPES = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}  # fmt: skip
_INODE = struct.Struct("<HHHxxQIIIIqII16x")
_DIRENT = struct.Struct("<QHBx")
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_NS = 1_000_000_000
_FLUSH_BYTES = 256 << 10


def write(root: Node, path: str, *, prefix: bytes = b"trusted", delta: bool = True) -> int:
    """Write the image of a tree to ``path`` in one move; the size of it in bytes. Equal trees make equal images.

    ``prefix``: ``trusted``, or ``user`` for overlays that are mounted with ``userxattr``. ``delta``: devices of number
    0:0 are whiteouts; else they are what a program of the user made, and are kept from acting as such.
    InvalidError when the tree has what the format cannot hold.
    """
    scratch = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            size = _Image(root, prefix, delta).write(fd)
        except (struct.error, OverflowError, KeyError) as error:
            raise InvalidError(f"a tree with a value that no image can hold: {error!r}") from error
        os.rename(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
    finally:
        os.close(fd)
    return size


class _Directory:
    """One directory's entries. ``indexes``: the inode of each of ``names``. ``cuts``: where each block's begin."""

    __slots__ = ("cuts", "indexes", "last_bytes", "names", "subdirectories")

    def __init__(self, names: list[bytes], indexes: Sequence[int], subdirectories: int) -> None:
        self.names = names
        self.indexes = indexes
        self.subdirectories = subdirectories
        self.cuts = [0]
        used = 12 * len(names) + sum(map(len, names))
        if used > BLOCK_BYTES:
            used = 0
            for number, name in enumerate(names):
                needed = 12 + len(name)
                if used + needed > BLOCK_BYTES:
                    self.cuts.append(number)
                    used = 0
                used += needed
        self.last_bytes = used

    @property
    def size(self) -> int:
        return (len(self.cuts) - 1) * BLOCK_BYTES + self.last_bytes


class _Image:
    def __init__(self, root: Node, prefix: bytes, delta: bool) -> None:
        self.prefix = prefix
        self.delta = delta
        self.nodes: list[Node] = [root]
        self.directories: dict[int, _Directory] = {}
        self.names_of: dict[int, int] = {}
        """Of files with several names, how many, by the inode's index."""
        self.escaped: set[int] = set()
        """Devices that must not act as whiteouts, and the directories that hold them."""
        self.xattrs: dict[int, bytes] = {}
        """What stands behind an inode, where it is not only where the content is."""
        self.shared = b""
        self.content = _content_attributes(prefix)
        self.positions = array("Q")
        self.layouts = bytearray()
        self.blocks_of: dict[int, int] = {}
        """The first of an inode's own blocks, counted from where all such begin."""
        self.own_blocks = 0
        self._scan()
        self._attributes()
        self._place()

    def _scan(self) -> None:
        nodes = self.nodes
        links: dict[int, int] = {}
        stack = [(0, 0)]
        while stack:
            at, above = stack.pop()
            children = nodes[at].children
            if children is None:
                raise InvalidError("the root of an image is a directory")
            names = sorted(children)
            indexes = array("I")
            below: list[tuple[int, int]] = []
            for name in names:
                node = children[name]
                index = len(nodes)
                if node.children is not None:
                    below.append((index, at))
                elif node.link:
                    known = links.setdefault(node.link, index)
                    if known != index:
                        self.names_of[known] = self.names_of.get(known, 1) + 1
                        indexes.append(known)
                        continue
                elif not self.delta and node.is_whiteout:
                    self.escaped.update((at, index))
                indexes.append(index)
                nodes.append(node)
            # "." and ".." stand in the order of all names, which may begin with "!" or "-".
            for name, index in ((b".", at), (b"..", above)):
                place = bisect_left(names, name)
                names.insert(place, name)
                indexes.insert(place, index)
            self.directories[at] = _Directory(names, indexes, len(below))
            stack.extend(reversed(below))

    def _attributes(self) -> None:
        """Encode the attributes of all inodes that have some of their own."""
        found: dict[int, list[tuple[bytes, bytes]]] = {}
        times: dict[tuple[bytes, bytes], int] = {}
        for index, node in enumerate(self.nodes):
            if node.xattrs or node.flags or index in self.escaped:
                pairs = self._pairs(index, node)
                if pairs:
                    found[index] = pairs
                    for pair in pairs:
                        times[pair] = times.get(pair, 0) + 1
        places: dict[tuple[bytes, bytes], int] = {}
        shared = bytearray()
        for pair in sorted(times):
            if times[pair] >= SHARED_TIMES:
                entry = _attribute(*pair)
                if len(entry) >= SHARED_BYTES:
                    places[pair] = len(shared) // 4
                    shared += entry
        self.shared = bytes(shared)
        for index, pairs in found.items():
            ids = [places[pair] for pair in pairs if pair in places][:SHARED_COUNT]
            taken = set(ids)
            body = bytearray(struct.pack(f"<4xB7x{len(ids)}I", len(ids), *ids))
            for pair in pairs:
                if places.get(pair) not in taken:
                    body += _attribute(*pair)
            node = self.nodes[index]
            if node.data and stat.S_ISREG(node.mode):
                body += _located(self.content, node.data)[XATTR_HEADER_BYTES:]
            if len(body) > XATTRS_BYTES:
                raise InvalidError(
                    f"an entry with {len(body)} bytes of extended attributes; {XATTRS_BYTES} are possible"
                )
            self.xattrs[index] = bytes(body)

    def _pairs(self, index: int, node: Node) -> list[tuple[bytes, bytes]]:
        """The attributes that are stored for a node, those of its content apart, sorted by name."""
        own = self.prefix + b".overlay."
        pairs: dict[bytes, bytes] = {}
        for name, value in (node.xattrs or {}).items():
            # What a program of the user set is one overlay deeper: ours takes a prefix off, and shows the rest.
            pairs[own + name[len(self.prefix) + 1 :] if name.startswith(own) else name] = value
        if node.opaque and node.is_dir:
            pairs[own + b"opaque"] = b"y"
        if index in self.escaped:
            if node.is_dir:
                pairs.setdefault(own + b"overlay.opaque", b"x")
            else:
                pairs[own + b"overlay.whiteout"] = b""
        return [(name, pairs[name]) for name in sorted(pairs) if _name_index(name)]

    def _place(self) -> None:
        """Give each inode its address and its layout of data."""
        at = ROOT_OFFSET
        content_bytes = _INODE.size + len(self.content) + 68 + len(HOLE)
        content_bytes += -content_bytes % 32
        positions, layouts, xattrs = self.positions, self.layouts, self.xattrs
        regular = stat.S_IFREG
        for index, node in enumerate(self.nodes):
            kind = stat.S_IFMT(node.mode)
            if kind == regular and index not in xattrs and node.data and node.size <= BLOCK_BYTES << CHUNK_BITS:
                positions.append(at)
                layouts.append(CHUNKED)
                at += content_bytes
                continue
            head = _INODE.size + len(self._behind(index, node))
            layout, tail = PLAIN, 0
            if kind == regular and node.size:
                layout, tail = CHUNKED, 4 * _chunks(node.size)
            elif kind == stat.S_IFDIR:
                entries = self.directories[index]
                layout, tail = INLINE, entries.last_bytes
            elif kind == stat.S_IFLNK:
                if not 0 < len(node.data) < BLOCK_BYTES:
                    raise InvalidError(f"a symlink whose target has {len(node.data)} bytes")
                layout, tail = INLINE, len(node.data)
            if layout == INLINE:
                # Inode and piece stay in one block: not all kernels follow them into the next.
                if head + tail > BLOCK_BYTES:
                    layout, tail = PLAIN, 0
                elif at % BLOCK_BYTES + head + tail > BLOCK_BYTES:
                    at += -at % BLOCK_BYTES
            own = 0
            if kind == stat.S_IFDIR:
                own = len(self.directories[index].cuts) - (layout == INLINE)
            elif kind == stat.S_IFLNK and layout == PLAIN:
                own = 1
            if own:
                self.blocks_of[index] = self.own_blocks
                self.own_blocks += own
            positions.append(at)
            layouts.append(layout)
            at += head + tail
            at += -at % 32
        self.end = at

    def _behind(self, index: int, node: Node) -> bytes:
        """The extended attributes of an inode, as they stand behind it."""
        found = self.xattrs.get(index)
        if found is not None:
            return found
        return _located(self.content, node.data) if node.data and stat.S_ISREG(node.mode) else b""

    def write(self, fd: int) -> int:
        """Write all to an empty file; its size."""
        first_own = -(-self.end // BLOCK_BYTES)
        shared_block = first_own + self.own_blocks
        blocks = shared_block + -(-len(self.shared) // BLOCK_BYTES)
        if blocks >= 1 << 32:
            raise InvalidError("a tree too large for an image")
        os.ftruncate(fd, blocks * BLOCK_BYTES)
        hasher = blake3()
        own = _Stream(fd, first_own * BLOCK_BYTES, hasher)
        stream = _Stream(fd, ROOT_OFFSET, hasher)
        for at, piece in self._emit(first_own, own):
            stream.put(at, piece)
        stream.flush()
        own.flush()
        if self.shared:
            hasher.update(self.shared)
            os.pwrite(fd, self.shared, shared_block * BLOCK_BYTES)
        head = bytearray(_SUPER.pack(
            MAGIC, 0, COMPAT_CHECKSUM | COMPAT_MTIME, 12, 0, ROOT_OFFSET // 32, len(self.nodes), 0, 0, blocks, 0,
            shared_block if self.shared else 0, hasher.digest()[:16], b"", INCOMPAT_CHUNKED, 0, 0, 0, 0, 0, 0, 0,
        ))  # fmt: skip
        head += os.pread(fd, BLOCK_BYTES - ROOT_OFFSET, ROOT_OFFSET)
        struct.pack_into("<I", head, 4, _crc32c(head))
        os.pwrite(fd, head[: _SUPER.size], SUPER_OFFSET)
        return blocks * BLOCK_BYTES

    def _emit(self, first_own: int, own: _Stream) -> Iterator[tuple[int, bytes]]:
        """``(address, bytes)`` of all inodes in order; their own blocks go to ``own``."""
        positions, layouts, xattrs = self.positions, self.layouts, self.xattrs
        pack, content = _INODE.pack, self.content
        names_of = self.names_of
        regular = stat.S_IFREG
        chunked = EXTENDED | CHUNKED << 1
        count = (len(content) + 68 - XATTR_HEADER_BYTES) // 4 + 1
        for index, node in enumerate(self.nodes):
            mode, data = node.mode, node.data
            kind = stat.S_IFMT(mode)
            seconds, ns = divmod(node.mtime, _NS)
            if kind == regular and layouts[index] == CHUNKED and index not in xattrs and data:
                name = data[:32].hex().encode()
                yield (
                    positions[index],
                    pack(
                        chunked, count, mode, node.size, CHUNK_BITS, index + 1, node.uid, node.gid, seconds, ns,
                        names_of.get(index, 1),
                    ) + content + b"/" + name[:2] + b"/" + name[2:] + b"\0\0" + HOLE * _chunks(node.size),
                )  # fmt: skip
                continue
            yield positions[index], self._inode(index, node, first_own, own)

    def _inode(self, index: int, node: Node, first_own: int, own: _Stream) -> bytes:
        mode, size, links, where, tail = node.mode, 0, self.names_of.get(index, 1), 0, b""
        layout = self.layouts[index]
        if index in self.blocks_of:
            where = first_own + self.blocks_of[index]
        if node.is_dir:
            entries = self.directories[index]
            size, links = entries.size, 2 + entries.subdirectories
            for number, block in enumerate(self._entries(entries)):
                if layout == INLINE and number == len(entries.cuts) - 1:
                    tail = block
                else:
                    own.put((where + number) * BLOCK_BYTES, block)
        elif stat.S_ISLNK(mode):
            size = len(node.data)
            if layout == INLINE:
                tail = node.data
            else:
                own.put(where * BLOCK_BYTES, node.data)
        elif stat.S_ISREG(mode):
            size = node.size
            if layout == CHUNKED:
                where, tail = CHUNK_BITS, HOLE * _chunks(size)
        elif not self.delta and node.is_whiteout:
            mode = stat.S_IFREG | stat.S_IMODE(mode)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            major, minor = os.major(node.rdev), os.minor(node.rdev)
            where = minor & 0xFF | major << 8 & 0xFFF00 | (minor & ~0xFF) << 12 & 0xFFF00000
        behind = self._behind(index, node)
        seconds, ns = divmod(node.mtime, _NS)
        count = (len(behind) - XATTR_HEADER_BYTES) // 4 + 1 if behind else 0
        head = _INODE.pack(
            EXTENDED | layout << 1, count, mode, size, where, index + 1, node.uid, node.gid, seconds, ns, links
        )
        return head + behind + tail

    def _entries(self, directory: _Directory) -> Iterator[bytes]:
        """A directory's blocks of entries, the last not filled up."""
        nodes, positions, pack = self.nodes, self.positions, _DIRENT.pack
        ends = [*directory.cuts[1:], len(directory.names)]
        for start, end in zip(directory.cuts, ends):
            names = directory.names[start:end]
            at = 12 * len(names)
            pieces = []
            for name, index in zip(names, directory.indexes[start:end]):
                kind = _FILE_TYPES[stat.S_IFMT(nodes[index].mode)]
                if kind == 3 and not self.delta and nodes[index].is_whiteout:
                    kind = 1
                pieces.append(pack(positions[index] >> 5, at, kind))
                at += len(name)
            yield b"".join(pieces + names)


class _Stream:
    """Writes pieces that come with growing addresses, many at a time; what is between them stays zero."""

    def __init__(self, fd: int, at: int, hasher: blake3) -> None:
        self.fd = fd
        self.begin = self.at = at
        self.hasher = hasher
        self.pieces: list[bytes] = []

    def put(self, at: int, piece: bytes) -> None:
        if at != self.at:
            self.pieces.append(bytes(at - self.at))
        self.pieces.append(piece)
        self.at = at + len(piece)
        if self.at - self.begin > _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        data = b"".join(self.pieces)
        self.hasher.update(data)
        if os.pwrite(self.fd, data, self.begin) != len(data):
            raise OSError("a write to an image was cut short")
        self.begin += len(data)
        self.pieces.clear()


def _content_attributes(prefix: bytes) -> bytes:
    """The attributes of a file with content up to the value of its redirect, ``/ab/`` and 62 digits: 66 bytes."""
    index = _name_index(prefix + b".")
    if not index:
        raise InvalidError(f"overlay's attributes begin with trusted or user, not {prefix.decode(errors='replace')}")
    header = bytes(XATTR_HEADER_BYTES)
    return (
        header
        + _attribute(prefix + b".overlay.metacopy", b"")
        + struct.pack("<BBH", 16, index, 66)
        + b"overlay.redirect"
    )


def _located(content: bytes, data: bytes) -> bytes:
    """All attributes of a file that has none but where its content is."""
    name = data[:32].hex().encode()
    return content + b"/" + name[:2] + b"/" + name[2:] + b"\0\0"


def _attribute(name: bytes, value: bytes) -> bytes:
    """One attribute's entry. InvalidError when it is too long."""
    index = _name_index(name)
    rest = b"" if index in (2, 3) else name[name.index(b".") + 1 :]
    if len(rest) > 255 or len(value) > 0xFFFF:
        raise InvalidError(f"the extended attribute {name.decode(errors='replace')} is too long for an image")
    entry = struct.pack("<BBH", len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)


def _name_index(name: bytes) -> int:
    """The number that stands for a name's first part; 0: none does, and the attribute is left out."""
    for start, index in NAME_INDEXES:
        if name == start or (start.endswith(b".") and name.startswith(start)):
            return index
    return 0


def _chunks(size: int) -> int:
    return -(-size // (BLOCK_BYTES << CHUNK_BITS)) or 1


def _crc32c(data: bytes | bytearray) -> int:
    """As the kernel computes it over a superblock: begun with all ones, and not inverted at the end."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum
