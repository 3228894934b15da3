"""A directory on disk becomes a tree: its files become objects by rename, without a copy of their content.

The directory is an overlay's upper, or a plain root that was unpacked. What overlayfs writes into an upper for itself
(whiteouts, opaque directories, redirects, files of metadata alone) is read here and nowhere later: the tree has none of
it. Source: the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, Optional, Protocol

from cadenza.base.errors import DataLossError
from cadenza.fs.delta import diff
from cadenza.fs.tree import OPAQUE, Node, find, highest_link, merge, walk, whiteout

LONG_PATH_BYTES = 3000
"""Below directories with longer paths, paths begin at an open descriptor: the kernel takes 4,095 bytes."""
LARGE_BYTES = 1 << 20
"""Files of this size and more are hashed in threads, at most `HASH_THREADS` at once: hashing leaves Python free."""
HASH_THREADS = 4
LABELS = (b"security.selinux", b"security.ima", b"security.evm")
"""Attributes that this machine's policy puts on each file, and that say nothing of the image."""


class Taker(Protocol):
    """The part of `cadenza.fs.store.Store` that is needed here."""

    def take(self, path: str, *, move: bool = True) -> tuple[bytes, int]:
        """The file becomes an object; gives `Node.data` and the size in bytes."""


def ingest(
    directory: str,
    store: Taker,
    *,
    delta: bool = True,
    below: Optional[Node] = None,
    take: bool = True,
    prefix: str = "",
    progress: Optional[Callable[[str], None]] = None,
) -> Node:
    """The tree of a directory that nobody writes to. Its files move into the store (``take``), or are copied there.

    ``delta``: with whiteouts and opaque marks; else a tree that stands alone. ``below``: what the overlay had below it,
    as one tree: where the content of files and directories comes from that an upper only names. ``prefix``: of
    overlayfs's own attributes, "trusted" or "user"; empty: what this process's overlays have. ``progress`` is given a
    line for each thing that is left out. OSError, DataLossError when ``below`` lacks what the upper names; what was
    taken by then is in the store, and the directory cannot be ingested again.
    """
    scan = _Scan(directory, below, (prefix or own_prefix()).encode() + b".overlay.", progress or _silent)
    scan.run()
    scan.move(store, take)
    root = scan.materialised()
    return root if delta else merge(Node(stat.S_IFDIR, children={}), root)


def own_prefix() -> str:
    """Which attributes overlays mounted by this process have: "trusted", and in a user namespace "user"."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        whole = file.read().split() == ["0", "0", "4294967295"]
    return "trusted" if whole and os.geteuid() == 0 else "user"


def _silent(line: str) -> None:
    return


class _Place:
    """A directory's path, short enough for the kernel; an open descriptor it begins at lives as long as it does."""

    __slots__ = ("_anchor", "path")

    def __init__(self, path: bytes, anchor: Optional[_Anchor] = None) -> None:
        self.path = path
        self._anchor = anchor

    def below(self, name: bytes) -> _Place:
        path = self.path + b"/" + name
        if len(path) <= LONG_PATH_BYTES:
            return _Place(path, self._anchor)
        anchor = _Anchor(path)
        return _Place(b"/proc/self/fd/%d" % anchor.fd, anchor)


class _Anchor:
    def __init__(self, path: bytes) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


class _File:
    """One inode with content of its own, and where its names are."""

    __slots__ = ("names", "nlink", "node", "size")

    def __init__(self, node: Node, info: os.stat_result) -> None:
        self.node = node
        self.nlink = info.st_nlink
        self.size = info.st_size
        self.names: list[tuple[_Place, bytes]] = []


class _Scan:
    """All entries are read before the first file moves: a move changes the times of its directory."""

    def __init__(self, directory: str, below: Optional[Node], prefix: bytes, progress: Callable[[str], None]) -> None:
        self._top = os.fsencode(os.path.abspath(directory))
        self._below = below
        self._prefix = prefix
        self._progress = progress
        self._files: list[_File] = []
        self._linked: dict[tuple[int, int], tuple[Node, Optional[_File]]] = {}
        self._renamed: list[tuple[Node, Node]] = []  # directories, and what they were below; outer ones first
        self._links = 0
        self._root = Node(stat.S_IFDIR, children={})

    def run(self) -> None:
        """Read all entries."""
        place = _Place(self._top)
        self._root, _ = self._node(self._top, os.lstat(self._top))
        waiting: list[tuple[_Place, Node, Optional[Node], bool]] = [(place, self._root, self._below, False)]
        while waiting:
            place, parent, lower, marked = waiting.pop()
            assert parent.children is not None
            children = parent.children
            for name, info in _entries(place):
                kind = stat.S_IFMT(info.st_mode)
                path = place.path + b"/" + name
                if kind == stat.S_IFCHR and info.st_rdev == 0:
                    children[name] = whiteout()
                elif kind == stat.S_IFDIR:
                    node, overlay = self._node(path, info)
                    here = self._lower_directory(name, lower, overlay, node, path)
                    children[name] = node
                    waiting.append((place.below(name), node, here, overlay.get(b"opaque") == b"x"))
                elif kind == stat.S_IFSOCK:
                    self._progress(f"left out a socket: {self._shown(path)}")
                    # Where nothing is below its directory, overlayfs shows a whiteout as an entry that cannot be read.
                    if lower is not None and lower.children is not None and name in lower.children:
                        children[name] = whiteout()
                else:
                    children[name] = self._entry(place, name, path, info, lower, marked)

    def _entry(
        self, place: _Place, name: bytes, path: bytes, info: os.stat_result, lower: Optional[Node], marked: bool
    ) -> Node:
        """A file, symlink, device or fifo. ``marked``: its directory may have whiteouts that are marked files."""
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and key in self._linked:
            node, file = self._linked[key]
            if file is not None:
                file.names.append((place, name))
            if not node.link:
                self._links += 1
                node.link = self._links
            return node
        node, overlay = self._node(path, info)
        if marked and b"whiteout" in overlay and stat.S_ISREG(info.st_mode) and not info.st_size:
            return whiteout()
        file = None
        if stat.S_ISLNK(info.st_mode):
            node.data = os.readlink(path)
        elif stat.S_ISREG(info.st_mode) and b"metacopy" in overlay:
            found = self._content(name, lower, overlay.get(b"redirect", b""))
            if found is None or not found.is_file:
                raise DataLossError(f"{self._shown(path)}: only its attributes are here, and below is no such file")
            node.data, node.size = found.data, found.size
        elif stat.S_ISREG(info.st_mode) and info.st_size:
            file = _File(node, info)
            file.names.append((place, name))
            self._files.append(file)
        if info.st_nlink > 1:
            self._linked[key] = (node, file)
        return node

    def _node(self, path: bytes, info: os.stat_result) -> tuple[Node, dict[bytes, bytes]]:
        """An entry without its content; overlayfs's attributes, without their prefix."""
        mode = info.st_mode
        node = Node(
            mode, info.st_uid, info.st_gid, info.st_mtime_ns,
            rdev=info.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
            children={} if stat.S_ISDIR(mode) else None,
        )  # fmt: skip
        listed = os.listxattr(path, follow_symlinks=False)
        if not listed:
            return node, {}
        own: dict[bytes, bytes] = {}
        overlay: dict[bytes, bytes] = {}
        for name in map(os.fsencode, listed):
            if name in LABELS:
                continue
            value = os.getxattr(path, name, follow_symlinks=False)
            if not name.startswith(self._prefix):
                own[name] = value
                continue
            rest = name[len(self._prefix) :]
            if rest.startswith(b"overlay."):
                own[self._prefix + rest[len(b"overlay.") :]] = value  # an escape: of an overlay inside the container
            else:
                overlay[rest] = value
        node.xattrs = own or None
        if overlay.get(b"opaque") == b"y" and stat.S_ISDIR(mode):
            node.flags |= OPAQUE
        return node, overlay

    def _lower_directory(
        self, name: bytes, lower: Optional[Node], overlay: dict[bytes, bytes], node: Node, path: bytes
    ) -> Optional[Node]:
        """What an upper directory shows of ``below``."""
        if node.opaque:
            return None
        redirect = overlay.get(b"redirect", b"")
        found = self._content(name, lower, redirect)
        if not redirect:
            return found if found is not None and found.is_dir else None
        if found is None or not found.is_dir:
            raise DataLossError(
                f"{self._shown(path)}: renamed from {redirect.decode(errors='replace')}, where below is no directory"
            )
        self._renamed.append((node, found))
        return found

    def _content(self, name: bytes, lower: Optional[Node], redirect: bytes) -> Optional[Node]:
        if redirect.startswith(b"/"):
            return find(self._below, redirect) if self._below is not None else None
        return lower.children.get(redirect or name) if lower is not None and lower.children is not None else None

    def _shown(self, path: bytes) -> str:
        return path.removeprefix(self._top).decode(errors="replace")

    def move(self, store: Taker, take: bool) -> None:
        """Every file's content into the store; the hash of large ones in threads beside the many small ones."""
        large = [one for one in self._files if one.size >= LARGE_BYTES]
        if len(large) == len(self._files) == 1:
            large = []
        with ThreadPoolExecutor(min(HASH_THREADS, os.cpu_count() or 1)) as threads:
            running = [threads.submit(_move, one, store, take) for one in large]
            try:
                for one in self._files:
                    if not large or one.size < LARGE_BYTES:
                        _move(one, store, take)
                for done in running:
                    done.result()
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def materialised(self) -> Node:
        """The tree, renamed directories with all they have: flat trees know no redirects."""
        if not self._renamed:
            return self._root
        assert self._below is not None
        # Groups of links get numbers that no group below has; what comes from below keeps its own.
        highest = highest_link(self._below)
        if self._links:
            moved = set()
            for _, node in walk(self._root):
                if node.link and id(node) not in moved:
                    moved.add(id(node))
                    node.link += highest
        linked = False
        for node, lower in reversed(self._renamed):
            linked = linked or bool(highest_link(lower))
            node.children = merge(lower, node, same_links=True).children
            node.flags |= OPAQUE
        if not linked:
            return self._root
        # A group that a rename tore apart stays one group only if the delta has all its names.
        return diff(self._below, merge(self._below, self._root, same_links=True))


def _entries(place: _Place) -> Iterator[tuple[bytes, os.stat_result]]:
    with os.scandir(place.path) as entries:
        for one in entries:
            yield one.name, one.stat(follow_symlinks=False)


def _move(file: _File, store: Taker, take: bool) -> None:
    place, name = file.names[0]
    # A file that has names elsewhere stays: who writes to it there would change the object.
    move = take and file.nlink <= len(file.names)
    file.node.data, file.node.size = store.take(os.fsdecode(place.path + b"/" + name), move=move)
    if move:
        for place, name in file.names[1:]:
            os.unlink(place.path + b"/" + name)
