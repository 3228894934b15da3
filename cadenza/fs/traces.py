"""What starts of an image read, kept with the image's tree: fetched first, or read ahead, when it is started again.

A record is JSON, ``{"starts": 2, "paths": ["/usr/bin/python3", ...]}``: paths of the tree in the order in which the
first of the recorded starts opened them, then what later ones opened beside. It is kept as ``traces/<tree>``, here and
in the bucket, so that a machine that never had the image knows what comes first.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Iterable, Optional, Protocol

from cadenza.base.errors import Error

if TYPE_CHECKING:
    from cadenza.fs.tree import Node

KIND = "traces"
STARTS = 3
"""So many starts of an image are recorded: functions of one image import different things."""
MOST_PATHS = 20_000
REMEMBERED = 64
"""Of so many trees the answer of `Traces.wanted` is kept in memory."""
READ_AHEAD_BYTES = 4 << 20
"""Of each file: of a large library a start reads parts."""


class Records(Protocol):
    """What is asked of a store (`cadenza.fs.store.Store`)."""

    def path(self, digest: bytes) -> str: ...
    def tree(self, digest: bytes) -> Node: ...
    def put_record(self, kind: str, name: str, value: bytes, *, remote: bool) -> None: ...
    def get_record(self, kind: str, name: str, *, remote: bool) -> Optional[bytes]: ...


def merge(record: Optional[bytes], paths: Iterable[str]) -> bytes:
    """The record with one start more. Pure."""
    starts, known = decode(record)
    both = dict.fromkeys([*known, *paths])
    return json.dumps({"starts": starts + 1, "paths": list(both)[:MOST_PATHS]}).encode()


def decode(record: Optional[bytes]) -> tuple[int, list[str]]:
    """``(starts, paths)``; of none, or of what is no record, (0, [])."""
    try:
        value = json.loads(record or b"{}")
        return int(value["starts"]), [str(one) for one in value["paths"]]
    except (ValueError, KeyError, TypeError):
        return 0, []


def content(root: Node, paths: Iterable[str]) -> list[tuple[bytes, int]]:
    """``(Node.data, size)`` of the files at these paths of a tree, each content once. Pure."""
    from cadenza.fs.tree import find

    found: dict[bytes, int] = {}
    for path in paths:
        node = find(root, os.fsencode(path))
        if node is not None and node.is_file and node.data:
            found.setdefault(node.data, node.size)
    return list(found.items())


class Traces:
    """The records of one store. Methods block and may be called by any thread."""

    def __init__(self, store: Records) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._starts: dict[bytes, int] = {}
        """Of trees that were asked for: starts that are recorded, or are just being."""
        self._ahead: set[bytes] = set()
        self._asked: set[bytes] = set()
        """Trees whose record the bucket was asked for."""
        self._wanted: dict[bytes, tuple[bytes, list[tuple[bytes, int]]]] = {}
        """Of trees that were started of late: the record, and what it says."""

    def begin(self, tree: bytes) -> bool:
        """Whether a start that begins now should be recorded; then `keep` or `drop` follows."""
        with self._lock:
            starts = self._starts.get(tree)
        if starts is None:
            starts, _ = decode(self._get(tree))
        with self._lock:
            starts = self._starts.setdefault(tree, starts)
            if starts < STARTS:
                self._starts[tree] = starts + 1
            return starts < STARTS

    def drop(self, tree: bytes) -> None:
        """Nothing came of a recording."""
        with self._lock:
            self._starts[tree] -= 1

    def keep(self, tree: bytes, paths: list[str]) -> None:
        """Add a start. A failure of the bucket or the disk only means that it is not known there."""
        from cadenza.fs.tree import find

        root = self._store.tree(tree)
        of_image = [one for one in paths if find(root, os.fsencode(one)) is not None]
        earlier = self._get(tree)
        with self._lock:
            try:
                earlier = self._store.get_record(KIND, tree.hex(), remote=False) or earlier
                merged = merge(earlier, of_image)
                self._store.put_record(KIND, tree.hex(), merged, remote=False)
            except (Error, OSError):
                return
        try:
            self._store.put_record(KIND, tree.hex(), merged, remote=True)  # no start waits for a slow bucket
        except (Error, OSError):
            return

    def wanted(self, tree: bytes) -> list[tuple[bytes, int]]:
        """``(Node.data, size)`` of what starts of the tree read first, in that order. NotFoundError: no such tree."""
        record = self._get(tree)
        if record is None:
            return []
        with self._lock:
            kept = self._wanted.get(tree)
        if kept is not None and kept[0] == record:
            return kept[1]
        found = content(self._store.tree(tree), decode(record)[1])
        with self._lock:
            while len(self._wanted) >= REMEMBERED:
                del self._wanted[next(iter(self._wanted))]
            self._wanted[tree] = (record, found)
        return found

    def read_ahead(self, tree: bytes) -> int:
        """Have the kernel read what starts of the tree read, as far as it is on this disk; how many files.

        Once in this process's life: later it is in memory, or was pushed out for something better.
        """
        with self._lock:
            if tree in self._ahead:
                return 0
            self._ahead.add(tree)
        count = 0
        for data, size in self.wanted(tree):
            try:
                number = os.open(self._store.path(data), os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
            except OSError:
                continue
            try:
                os.posix_fadvise(number, 0, min(size, READ_AHEAD_BYTES), os.POSIX_FADV_WILLNEED)
                count += 1
            finally:
                os.close(number)
        return count

    def _get(self, tree: bytes) -> Optional[bytes]:
        found = self._store.get_record(KIND, tree.hex(), remote=False)
        if found is not None or tree in self._asked:
            return found
        self._asked.add(tree)
        found = self._store.get_record(KIND, tree.hex(), remote=True)
        if found is not None:
            self._store.put_record(KIND, tree.hex(), found, remote=False)
        return found
