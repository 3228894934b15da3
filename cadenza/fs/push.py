"""Giving a tree to the bucket: what it lacks, chunks and objects first, then lists, the tree last.

Who finds a tree in the bucket finds all of it. A push and a collection (`cadenza.fs.collect_bucket`) of different
machines keep out of each other's way by two keys: a push first writes ``pushing/<tree>`` (the tree itself) and then
looks for ``collecting``; a collection first writes ``collecting`` and then reads all of ``pushing/``. Whichever comes
first, the other sees it.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Callable, Collection, Iterable, Iterator, Optional, Sequence

from blake3 import blake3

from cadenza.base.errors import DataLossError, NotFoundError, ServiceError
from cadenza.fs import tree as trees
from cadenza.fs.chunk import Chunk
from cadenza.fs.fetch import AT_ONCE, Fetcher
from cadenza.fs.local import Local, object_key
from cadenza.fs.tree import DIGEST_BYTES, Node
from cadenza.observe.log import Log
from cadenza.storage.bucket import Bucket

LISTED_ABOVE = 1_000
"""Of more keys than this it is cheaper to list all than to ask for each."""
KNOWN_S = 12 * 3600.0
"""How long we believe a note that something is in the bucket."""
COLLECTING_WAIT_S = 120.0
COLLECTING_S = 3600.0
"""A collection that began longer ago is dead."""
COLLECTING = "collecting"
COLLECTED = "collected"
CLOCK = "clock"
"""A key that is written to learn the bucket's time."""
_HEAD_BYTES = 64
_log = Log("cadenza.fs.push")


class Known:
    """Notes of what is in a bucket: a file of digests, believed for `KNOWN_S` and until the next collection there."""

    def __init__(self, local: Local, bucket: Bucket, generation: bytes) -> None:
        name = blake3(bucket.url.encode()).hexdigest()[:16]
        self._path = os.path.join(local.home, f"known-{name}")
        self._lock = threading.Lock()
        head = blake3(generation).digest()
        try:
            with open(self._path, "rb") as file:
                raw = file.read()
            born = float(raw[DIGEST_BYTES:_HEAD_BYTES])
        except (OSError, ValueError):
            raw, born = b"", 0.0
        now = local.clock()
        if raw[:DIGEST_BYTES] != head or not now - KNOWN_S < born < now + 1:
            raw = head + f"{now:<32.3f}".encode()
            local.put_bytes(os.path.basename(self._path), raw)
        ends = range(_HEAD_BYTES + DIGEST_BYTES, len(raw) + 1, DIGEST_BYTES)
        self._digests = {raw[at - DIGEST_BYTES : at] for at in ends}
        os.chmod(self._path, 0o600)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def add(self, digest: bytes) -> None:
        """Note one; it is remembered even if this process is killed now."""
        with self._lock:
            if digest not in self._digests:
                self._digests.add(digest)
                try:
                    os.write(self._fd, digest)
                except OSError:
                    pass  # a full disk: it is asked for again

    def close(self) -> None:
        """End it."""
        os.close(self._fd)


def push(
    fetcher: Fetcher, local: Local, bucket: Bucket, digest: bytes, progress: Optional[Callable[[int, int], None]] = None
) -> int:
    """Give the bucket a tree and all that it names; how many bytes were sent. ``progress``: bytes done, bytes in all.

    ServiceError when the bucket fails: the next push goes on where this one ended. NotFoundError, DataLossError when
    content is neither there nor, whole, here.
    """
    root = fetcher.tree(digest)
    raw = local.read(f"trees/{digest.hex()}")
    if raw is None:
        raise NotFoundError(f"tree {digest.hex()} was removed while it was sent")
    pushing = f"pushing/{digest.hex()}"
    bucket.put(pushing, raw)
    if _collecting(bucket, COLLECTING_WAIT_S):
        raise ServiceError(f"{bucket.url} is being collected: the image is sent later")
    sent = 0
    key = object_key("trees", digest)
    if bucket.size(key) is None:  # else its content is there: it goes first, and a collection takes it last
        known = Known(local, bucket, _generation(bucket))
        try:
            sent = _Push(fetcher, local, bucket, known).content(root, progress) + len(raw)
        finally:
            known.close()
    # Also where it was there: now it is young, and safe from collections that do not know of its image yet.
    bucket.put(key, raw)
    bucket.delete([pushing])
    return sent


class _Push:
    def __init__(self, fetcher: Fetcher, local: Local, bucket: Bucket, known: Known) -> None:
        self._fetcher = fetcher
        self._local = local
        self._bucket = bucket
        self._known = known

    def content(self, root: Node, progress: Optional[Callable[[int, int], None]]) -> int:
        """Send what the files of a tree hold, and their lists; how many bytes."""
        known = self._known
        sizes = {node.data: node.size for node in trees.files(root)}
        small = [data for data in sizes if len(data) == DIGEST_BYTES and data not in known]
        large = [data for data in sizes if len(data) > DIGEST_BYTES and data[DIGEST_BYTES:] not in known]
        chunks: dict[bytes, tuple[bytes, Chunk]] = {}
        for data in large:
            for one in self._fetcher.chunks(data[DIGEST_BYTES:]):
                if one.digest not in known:
                    chunks.setdefault(one.digest, (data, one))
        there = present(self._bucket, "objects", small) | present(self._bucket, "chunks", list(chunks))
        for found in there:
            known.add(found)
        work: list[tuple[int, Callable[[], None]]] = [
            (sizes[data], partial(self._object, data, sizes[data])) for data in small if data not in there
        ]
        work += [
            (one.length, partial(self._chunk, data, sizes[data], one))
            for data, one in chunks.values()
            if one.digest not in there
        ]
        sent = self._all(work, progress)
        for data in large:
            self._list(data[DIGEST_BYTES:])
        return sent

    def _all(self, work: list[tuple[int, Callable[[], None]]], progress: Optional[Callable[[int, int], None]]) -> int:
        total, done = sum(size for size, _ in work), 0
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="push") as pool:
            futures = [(size, pool.submit(send)) for size, send in work]
            try:
                for size, future in futures:
                    future.result()
                    done += size
                    if progress is not None:
                        progress(done, total)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return done

    def _object(self, data: bytes, size: int) -> None:
        with open(self._fetcher.fetch(data, size), "rb") as file:
            content = file.read(size + 1)
        self._check(content, data, data)
        self._bucket.put(object_key("objects", data), content)
        self._known.add(data)

    def _chunk(self, data: bytes, size: int, one: Chunk) -> None:
        content = self._fetcher.fetch_range(data, size, one.start, one.length, finish=False)
        self._check(content, one.digest, data)
        self._bucket.put(object_key("chunks", one.digest), content)
        self._known.add(one.digest)

    def _list(self, digest: bytes) -> None:
        encoded = self._local.local_list(digest)
        if encoded is None:
            raise NotFoundError(f"list {digest.hex()} was removed while it was sent")
        self._bucket.put(object_key("lists", digest), encoded)
        self._known.add(digest)

    def _check(self, content: bytes, digest: bytes, data: bytes) -> None:
        if blake3(content).digest() != digest:
            self._local.condemn(object_key("objects", data), "it is not what its name says, seen while it was sent")
            raise DataLossError(f"object {data[:DIGEST_BYTES].hex()} is corrupt on this machine and was not sent")


def present(bucket: Bucket, folder: str, digests: Sequence[bytes]) -> set[bytes]:
    """Those of the digests that the bucket has in ``folder``: asked one by one, or of very many by listing."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="present") as pool:
        if len(digests) <= LISTED_ABOVE:
            answers = pool.map(lambda one: bucket.size(object_key(folder, one)), digests)
            return {one for one, size in zip(digests, answers) if size is not None}
        wanted = set(digests)
        found: set[bytes] = set()
        for part in pool.map(lambda number: _listed(bucket, f"{folder}/{number:02x}", wanted), range(256)):
            found |= part
        return found


def _listed(bucket: Bucket, prefix: str, wanted: Collection[bytes]) -> set[bytes]:
    return {digest for _, digest, _ in digests_below(bucket, prefix) if digest in wanted}


def digests_below(bucket: Bucket, prefix: str) -> Iterator[tuple[str, bytes, tuple[int, float]]]:
    """``(key, digest, (size, time))`` of what is below ``folder`` or ``folder/ab``; other keys are passed over."""
    for one in bucket.list(prefix):
        parts = one.key.split("/")
        try:
            digest = bytes.fromhex(parts[-2] + parts[-1])
        except (ValueError, IndexError):
            continue
        if len(parts) == 3 and len(digest) == DIGEST_BYTES:
            yield one.key, digest, (one.size, one.at)


def _generation(bucket: Bucket) -> bytes:
    """What notes of this bucket hang on. A bucket has one from its first push on: one that was emptied, or another that
    takes its address, is not taken for it."""
    try:
        return bucket.get(COLLECTED, 4096)
    except NotFoundError:
        bucket.put(COLLECTED, os.urandom(16))  # of two machines that do, one asks again what is there
        return bucket.get(COLLECTED, 4096)


def now_at(bucket: Bucket) -> float:
    """The bucket's own time (epoch seconds), which all ages in it are told by: machines' clocks may be wrong."""
    bucket.put(CLOCK, b"")
    found = bucket.stat(CLOCK)
    return found.at if found is not None else time.time()


def _collecting(bucket: Bucket, wait_s: float) -> bool:
    """Whether a collection is under way, and still is after ``wait_s``."""
    until = time.monotonic() + wait_s
    while True:
        held = bucket.stat(COLLECTING)
        if held is None or held.at < now_at(bucket) - COLLECTING_S:
            return False
        if time.monotonic() >= until:
            return True
        time.sleep(1.0)


def pushed_trees(bucket: Bucket) -> Iterable[tuple[str, bytes, float]]:
    """``(key, digest, since)`` of trees that some machine is sending, or died while it did."""
    for one in bucket.list("pushing"):
        name = one.key.rpartition("/")[2]
        if len(name) == 2 * DIGEST_BYTES:
            yield one.key, bytes.fromhex(name), one.at
