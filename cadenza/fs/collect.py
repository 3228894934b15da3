"""Taking content away from this machine: what no tree names (`Sweep`), and what the bucket has too (`evict`).

A sweep is safe beside builds: what was put or asked for in the last `GRACE_S`, or since the oldest open pin, stays, and
so does all that a tree names that stays.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Collection, Iterable, Optional, Sequence

from cadenza.base.errors import DataLossError, Error, NotFoundError, ServiceError
from cadenza.fs import partial as partials
from cadenza.fs import tree as trees
from cadenza.fs.fetch import Fetcher
from cadenza.fs.local import Local, unpack_tree
from cadenza.fs.push import present
from cadenza.fs.tree import DIGEST_BYTES
from cadenza.observe.log import Log
from cadenza.storage.bucket import Bucket

GRACE_S = 3600.0
"""What was put or asked for less than this ago is not swept. Above `cadenza.fs.local.TOUCH_S` by far."""
YOUNG_S = 60.0
"""What came less than this ago is not evicted: somebody waits for it."""
MARGIN_S = 2.0
CORRUPT_KEPT_S = 7 * 86_400.0
UNFINISHED = (".part", ".have")
EVICT_TO = 0.9
"""An eviction for the limit's sake goes down to this part of it."""
_log = Log("cadenza.fs.collect")


@dataclass
class Swept:
    """What a sweep removed, or with ``dry_run`` would have: how many of each, and the bytes of disk they took."""

    objects: int = 0
    lists: int = 0
    trees: int = 0
    derived: int = 0
    """Metadata images of trees, notes of large files, unfinished large files, corrupt files set aside."""
    bytes: int = 0


class Named:
    """What some trees name."""

    def __init__(self) -> None:
        self.trees: set[bytes] = set()
        self.objects: set[bytes] = set()
        self.lists: set[bytes] = set()

    def add(self, digest: bytes, root: trees.Node) -> None:
        self.trees.add(digest)
        for node in trees.files(root):
            self.objects.add(node.data[:DIGEST_BYTES])
            if len(node.data) > DIGEST_BYTES:
                self.lists.add(node.data[DIGEST_BYTES:])


class Sweep:
    """One sweep over ``local``; ``named_trees`` stay, with all that they name."""

    def __init__(
        self,
        local: Local,
        fetcher: Fetcher,
        named_trees: Iterable[bytes],
        dry_run: bool,
        horizon: Optional[float] = None,
    ) -> None:
        self._local = local
        self._fetcher = fetcher
        self._given = set(named_trees)
        self._dry_run = dry_run
        self._horizon = horizon
        self._named = Named()
        self._swept = Swept()

    def run(self) -> Swept:
        """Do it. ServiceError, before anything is removed, when a named tree cannot be had now."""
        for digest in self._given:
            try:
                self._named.add(digest, self._fetcher.tree(digest))
            except NotFoundError:
                _log.warning("store.tree_lost", tree=digest.hex())
        going = []
        for name, digest, _ in self._local.everything("trees"):
            if digest in self._given:
                continue
            if self._old(name):
                going.append((name, digest))
            else:
                self._keep(digest)
        for name, digest in going:
            # One that was asked for since we looked is kept, and all that it names.
            if self._remove(name):
                self._swept.trees += 1
            else:
                self._keep(digest)
        for name, digest, _ in self._local.everything("objects"):
            if digest not in self._named.objects and self._remove(name):
                self._swept.objects += 1
        for name, digest, _ in self._local.everything("lists"):
            if digest not in self._named.lists and self._remove(name):
                self._swept.lists += 1
        for name in self._derived():
            if self._remove(name):
                self._swept.derived += 1
        big = os.listdir(os.path.join(self._local.home, "big"))
        for digest in {_digest_of(name) for name in big if name.endswith(UNFINISHED)} - self._named.objects:
            self._remove_partial(digest)
        return self._swept

    def _keep(self, digest: bytes) -> None:
        encoded = self._local.read(f"trees/{digest.hex()}")
        if encoded is not None:
            try:
                self._named.add(digest, trees.decode(unpack_tree(digest, encoded)))
            except DataLossError as error:
                self._local.condemn(f"trees/{digest.hex()}", str(error))

    def _derived(self) -> Iterable[str]:
        for name in sorted(os.listdir(os.path.join(self._local.home, "big"))):
            if _digest_of(name) not in self._named.objects and not name.endswith(UNFINISHED):
                yield f"big/{name}"
        folder = os.path.join(self._local.home, "erofs")
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            if _digest_of(name) not in self._named.trees:
                yield f"erofs/{name}"
        for name in sorted(os.listdir(os.path.join(self._local.home, "tmp"))):
            if name.startswith("corrupt-") and self._old(f"tmp/{name}", CORRUPT_KEPT_S):
                yield f"tmp/{name}"

    def _remove_partial(self, digest: bytes) -> None:
        paths = [partials.part_path(self._local.home, digest), partials.have_path(self._local.home, digest)]
        there = [os.path.relpath(one, self._local.home) for one in paths if os.path.exists(one)]
        if there and all(self._old(one) for one in there):
            self._swept.bytes += sum(_blocks(one) for one in paths)
            self._swept.derived += len(there)
            if not self._dry_run:
                partials.remove(self._local.home, digest)

    def _limit(self, grace_s: float = GRACE_S) -> float:
        if self._horizon is not None and grace_s == GRACE_S:
            return min(self._horizon, self._local.oldest_pin() - MARGIN_S)
        return min(self._local.clock() - grace_s, self._local.oldest_pin() - MARGIN_S)

    def _old(self, name: str, grace_s: float = GRACE_S) -> bool:
        try:
            return os.stat(f"{self._local.home}/{name}").st_mtime < self._limit(grace_s)
        except FileNotFoundError:
            return False

    def _remove(self, name: str) -> bool:
        """Remove a file that is old, or count it; whether it was."""
        path = f"{self._local.home}/{name}"
        with self._local.lock:
            try:
                info = os.stat(path)
                if info.st_mtime >= self._limit():
                    return False
                if not self._dry_run:
                    os.unlink(path)
            except FileNotFoundError:
                return False
        self._swept.bytes += info.st_blocks * 512
        return True


def _digest_of(name: str) -> bytes:
    try:
        return bytes.fromhex(name.partition(".")[0])
    except ValueError:
        return b""


def usage(local: Local) -> int:
    """Bytes of disk that objects, and large files that are here in part, take."""
    total = sum(info.st_blocks for _, _, info in local.everything("objects"))
    with os.scandir(os.path.join(local.home, "big")) as entries:
        for entry in entries:
            try:
                total += entry.stat().st_blocks
            except FileNotFoundError:
                continue
    return total * 512


def evict(
    local: Local,
    fetcher: Fetcher,
    bucket: Optional[Bucket],
    by_use: Sequence[bytes],
    in_use: Collection[bytes],
    wanted_bytes: int,
) -> int:
    """Free ``wanted_bytes`` of disk: objects of the trees ``by_use``, least recently used first; how many were freed.

    Only what the bucket has, nothing that a tree ``in_use`` names, nothing younger than `YOUNG_S` or asked for since
    the oldest pin. When the bucket is down nothing goes.
    """
    if bucket is None or wanted_bytes <= 0:
        return 0
    kept: set[bytes] = set()
    for digest in in_use:
        try:
            kept.update(node.digest for node in trees.files(fetcher.tree(digest)))
        except Error as error:
            _log.warning("store.evict_stopped", why=f"what is in use cannot be told: {error}")
            return 0
    # What a tree shares with one that was used later goes with the later one.
    last: dict[bytes, int] = {}
    large: dict[bytes, bytes] = {}
    order = [one for one in by_use if one not in set(in_use)]
    for number, digest in enumerate(order):
        for node in _files(fetcher, digest):
            if node.digest not in kept:
                last[node.digest] = number
                if node.list_digest:
                    large[node.digest] = node.list_digest
    by_tree: dict[int, list[bytes]] = {}
    for one, number in last.items():
        by_tree.setdefault(number, []).append(one)
    freed = 0
    for number in sorted(by_tree):
        if freed >= wanted_bytes:
            break
        here = [one for one in by_tree[number] if os.path.exists(local.path(one))]
        small = [one for one in here if one not in large]
        lists = {large[one]: one for one in here if one in large}
        try:
            there = present(bucket, "objects", small)
            there |= {lists[one] for one in present(bucket, "lists", list(lists))}
        except ServiceError as error:
            _log.warning("store.evict_stopped", why=str(error))
            break
        for one in here:
            if one in there and freed < wanted_bytes:
                freed += _evict_one(local, local.path(one))
        for one in by_tree[number]:
            if one in large and freed < wanted_bytes:
                freed += _evict_partial(local, one)
    return freed


def _files(fetcher: Fetcher, digest: bytes) -> Iterable[trees.Node]:
    try:
        return list(trees.files(fetcher.tree(digest)))
    except Error as error:
        _log.warning("store.tree_lost", tree=digest.hex(), why=str(error))
        return []


def _evict_one(local: Local, path: str) -> int:
    with local.lock:
        try:
            info = os.stat(path)
            if info.st_mtime >= min(local.clock() - YOUNG_S, local.oldest_pin() - MARGIN_S):
                return 0
            os.unlink(path)
        except FileNotFoundError:
            return 0
    return info.st_blocks * 512


def _evict_partial(local: Local, digest: bytes) -> int:
    """What is here of a large file that is not whole."""
    path = partials.part_path(local.home, digest)
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return 0
    if info.st_mtime >= min(local.clock() - YOUNG_S, local.oldest_pin() - MARGIN_S):
        return 0
    partials.remove(local.home, digest)
    return info.st_blocks * 512


def _blocks(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
