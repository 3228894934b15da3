"""What a reader will want beside an object that it asked for: small files of the same directory and kind.

Programs open a package's files one by one, and each that is missing costs a round trip to the store. Whoever misses one
file of a directory gets the next ones with it, and with each further miss there four times as much: only directories in
use grow. Whether what came is ever opened cannot be known here (docs/formats/lazy.md), so that all of it is bounded by
what was asked for.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from typing import Callable, Iterator, Optional

from cadenza.base.errors import Error
from cadenza.fs.link import KNOWN_TREES
from cadenza.fs.tree import DIGEST_BYTES, Node

SMALL_BYTES = 256 << 10
"""Larger files are nobody's neighbours."""
FIRST_BYTES = 256 << 10
"""What comes with the first miss in a directory."""
GROWTH = 4
FREE_BYTES = 16 << 20
"""So much of one tree may come unasked, and besides:"""
SHARE = 2
"""so many times the bytes of the small files that were asked for."""
_HEAD_BYTES = 8


class Shown:
    """The trees that containers were given last. Thread-safe; ``load`` gets one, and is asked at its first miss."""

    def __init__(self, load: Callable[[bytes], Node]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._trees: dict[bytes, Optional[Neighbours]] = {}

    def __bool__(self) -> bool:
        return bool(self._trees)

    def add(self, tree: bytes) -> None:
        """A container is given this tree, by its digest."""
        with self._lock:
            self._trees[tree] = self._trees.pop(tree, None)
            if len(self._trees) > KNOWN_TREES:
                del self._trees[next(iter(self._trees))]

    def beside(self, digest: bytes) -> list[bytes]:
        """What to fetch, by digest, now that this is missing. May block for as long as a tree is read."""
        with self._lock:
            for tree in reversed(self._trees):
                known = self._trees[tree]
                if known is None:
                    try:
                        known = self._trees[tree] = Neighbours(self._load(tree))
                    except (Error, OSError):
                        continue
                found = known.beside(digest)
                if found is not None:
                    return found
        return []


class Neighbours:
    """One tree's small files: 46 bytes of memory each. Pure, not thread-safe."""

    def __init__(self, root: Node) -> None:
        digests = bytearray()
        self._sizes = array("I")
        self._starts = array("I")
        """Where each group of one directory and kind begins."""
        for group in _groups(root):
            self._starts.append(len(self._sizes))
            for node in group:
                digests += node.digest
                self._sizes.append(node.size)
        self._digests = bytes(digests)
        heads = [self._digests[at : at + _HEAD_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]
        self._order = array("I", sorted(range(len(heads)), key=heads.__getitem__))
        self._heads = array("Q", (int.from_bytes(heads[number], "big") for number in self._order))
        self._given = bytearray(len(heads))
        self._misses: dict[int, int] = {}
        self._left = FREE_BYTES

    def beside(self, digest: bytes) -> Optional[list[bytes]]:
        """What to fetch now that this object was asked for and is not here; None: it is no small file of this tree."""
        number = self._find(digest)
        if number < 0:
            return None
        self._given[number] = 1
        self._left += SHARE * self._sizes[number]
        group = bisect_right(self._starts, number) - 1
        end = self._starts[group + 1] if group + 1 < len(self._starts) else len(self._sizes)
        misses = self._misses[group] = self._misses.get(group, 0) + 1
        room = min(FIRST_BYTES * GROWTH ** min(misses - 1, 8), self._left)
        found = []
        for one in (*range(number + 1, end), *range(self._starts[group], number)):
            if self._given[one]:
                continue
            room -= self._sizes[one]
            if room < 0:
                break
            self._given[one] = 1
            self._left -= self._sizes[one]
            found.append(self._digest(one))
        return found

    def _digest(self, number: int) -> bytes:
        return self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def _find(self, digest: bytes) -> int:
        """The number of the first file with this content; -1: there is none."""
        head = int.from_bytes(digest[:_HEAD_BYTES], "big")
        at = bisect_left(self._heads, head)
        while at < len(self._heads) and self._heads[at] == head:
            if self._digest(self._order[at]) == digest:
                return self._order[at]
            at += 1
        return -1


def _groups(root: Node) -> Iterator[list[Node]]:
    """The small files of each directory, by their names' last suffix, in the order of names."""
    waiting = [root]
    while waiting:
        children = waiting.pop().children or {}
        kinds: dict[bytes, list[Node]] = {}
        for name in sorted(children):
            node = children[name]
            if node.children is not None:
                waiting.append(node)
            elif node.is_file and 0 < node.size <= SMALL_BYTES:
                kinds.setdefault(name.rpartition(b".")[2], []).append(node)
        yield from kinds.values()
