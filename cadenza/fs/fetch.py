"""Bringing content to this disk: one fetch of an object at a time however many want it, verified before it has a name.

Objects up to `CHUNKED_BYTES` come whole. Larger ones come as the chunks of their list, several at once, into a
`Partial` that is gone on with after any interruption; ranges of one can be read before it is whole.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Iterable, Iterator, Optional, Sequence

from blake3 import blake3

from cadenza.base.errors import DataLossError, Error, NotFoundError, ResourceExhaustedError, ServiceError
from cadenza.fs import chunk as chunking
from cadenza.fs import draft as drafts
from cadenza.fs import partial as partials
from cadenza.fs import tree as trees
from cadenza.fs.chunk import Chunk
from cadenza.fs.local import Local, object_key, unpack_tree
from cadenza.fs.partial import Partial
from cadenza.fs.tiers import Flights, Tier, Tiers
from cadenza.fs.tree import CHUNKED_BYTES, DIGEST_BYTES, Node
from cadenza.observe.log import Log

AT_ONCE = 16
WAIT_S = 300.0
"""How long one waits for another thread's fetch of a small object."""
SLOWEST_BYTES_S = 256 << 10
"""And of a large one: as if it came at this rate, besides."""
PATIENCE_S = 15.0
"""For so long `Fetcher.fetch_all` tries again what a tier that is down did not give."""
TREE_FILE_BYTES = 1 << 30
LIST_BYTES = 256 << 20
TRIES = 3
"""How often a large object is begun anew when what there was of it is removed under us."""
IDLE_PARTIALS = 32
"""Large files of which so many are kept open while nobody reads them."""
_log = Log("cadenza.fs.fetch")


class Fetcher:
    """Fills ``local`` from ``tiers``. Blocking, thread-safe. `close` ends what goes on in the background."""

    def __init__(self, local: Local, tiers: Tiers) -> None:
        self._local = local
        self.tiers = tiers
        self._flights = Flights()
        self._lock = threading.Lock()
        self._partials: dict[bytes, Partial] = {}
        self._pool: Optional[ThreadPoolExecutor] = None
        self._finishing: dict[bytes, Future[None]] = {}
        self._closed = False
        self.bytes_by = {"peer": 0, "remote": 0}
        """Bytes fetched so far, by kind of tier."""

    def close(self) -> None:
        """End it; threads that still fetch are waited for, each within its requests' time limits."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for one in self._partials.values():
                if not one.users:  # else whoever uses it closes it
                    one.close()
            self._partials.clear()

    def fetch(self, data: bytes, size: int = -1) -> str:
        """The path of an object that is now here. NotFoundError, DataLossError, ServiceError as `Tiers.ask` says,
        ResourceExhaustedError when the disk is full, ServiceError when it refuses otherwise."""
        with drafts.kept(self._local.home):
            return self._fetch(data, size)

    def _fetch(self, data: bytes, size: int) -> str:
        local, digest = self._local, data[:DIGEST_BYTES]
        path = local.path(data)
        if local.use(path):
            return path
        if not self.tiers:
            raise NotFoundError(f"object {digest.hex()} is not in the store")
        large = self._large(data, size)
        if large is None:
            self._flights.fly(digest, lambda: self._fetch_small(digest, size), WAIT_S)
        else:
            self._flights.fly(digest, lambda: self._fetch_large(digest, *large), WAIT_S + large[0] / SLOWEST_BYTES_S)
        return path

    def fetch_range(self, data: bytes, size: int, start: int, length: int, *, finish: bool = True) -> bytes:
        """Bytes of an object before it is whole; of a large one only the chunks that hold them are fetched, and kept.

        With ``finish`` the rest follows in the background, until the object is whole and at its path. Errors as of
        `fetch`.
        """
        with drafts.kept(self._local.home):
            return self._fetch_range(data, size, start, length, finish)

    def _fetch_range(self, data: bytes, size: int, start: int, length: int, finish: bool) -> bytes:
        digest = data[:DIGEST_BYTES]
        for _ in range(2):
            try:
                fd = os.open(self._local.path(data), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                pass
            else:
                try:
                    return os.pread(fd, length, start)
                finally:
                    os.close(fd)
            large = self._large(data, size)
            if large is not None and self.tiers:
                found = self._range(digest, *large, start, length)
                if found is None:
                    continue
                if finish:
                    self._finish_later(digest, *large)
                return found
            self.fetch(data, size)
        raise NotFoundError(f"object {digest.hex()} was removed while it was read")

    def fetch_all(self, nodes: Iterable[Node], at_once: int = AT_ONCE) -> int:
        """Bring the content of all these files; how many bytes came. What fails ends it, after the rest was tried."""
        wanted = {one.data: one.size for one in nodes if one.is_file and one.data}
        missing = [(data, size) for data, size in wanted.items() if not self._local.has(data)]
        if not missing:
            return 0
        before = sum(self.bytes_by.values())
        until = time.monotonic() + PATIENCE_S
        small = [one for one in missing if len(one[0]) == DIGEST_BYTES]
        with ThreadPoolExecutor(min(at_once, max(1, len(small))), thread_name_prefix="fetch") as pool:
            futures = [pool.submit(self._fetch_patiently, data, size, until) for data, size in small]
            faults = [one.exception() for one in futures]
        for data, size in missing:
            if len(data) > DIGEST_BYTES:
                self.fetch(data, size)
        for fault in faults:
            if fault is not None:
                raise fault
        return sum(self.bytes_by.values()) - before

    def _fetch_patiently(self, data: bytes, size: int, until: float) -> None:
        while True:
            try:
                self.fetch(data, size)
                return
            except ServiceError:
                if time.monotonic() > until or self._closed:
                    raise
                time.sleep(0.5)

    def tree(self, digest: bytes) -> Node:
        """A tree, from here or from a tier (then it is kept here)."""
        encoded = self._local.local_tree(digest)
        if encoded is not None:
            return trees.decode(encoded)
        if not self.tiers:
            raise NotFoundError(f"tree {digest.hex()} is not in the store")

        def get(tier: Tier) -> tuple[bytes, Node]:
            raw = tier.bucket.get(object_key("trees", digest), TREE_FILE_BYTES)
            found = unpack_tree(digest, raw)
            return found, trees.decode(found)

        encoded, root = self.tiers.ask("tree", digest, get)
        self._local.keep_tree(digest, encoded, root)
        return root

    def bring_tree(self, digest: bytes) -> None:
        """See that a tree is here, without making nodes of it, which is what takes time. Errors as of `tree`."""
        if self._local.local_tree(digest) is None:
            self.tree(digest)

    def chunks(self, digest: bytes) -> tuple[Chunk, ...]:
        """A list of chunks, from here or from a tier (then it is kept here)."""
        encoded = self._local.local_list(digest)
        if encoded is None:
            if not self.tiers:
                raise NotFoundError(f"list {digest.hex()} is not in the store")

            def get(tier: Tier) -> bytes:
                return _checked(tier.bucket.get(object_key("lists", digest), LIST_BYTES), digest)

            encoded = self.tiers.ask("list", digest, get)
            self._local.put_bytes(f"lists/{digest.hex()}", encoded)
        return chunking.decode_list(encoded)

    # Small objects.

    def _fetch_small(self, digest: bytes, size: int) -> None:
        if os.path.exists(self._local.path(digest)):
            return  # another flight ended between our look and our start
        limit = size if size >= 0 else CHUNKED_BYTES

        def get(tier: Tier) -> bytes:
            found = _checked(tier.bucket.get(object_key("objects", digest), limit), digest)
            self._count(tier, len(found))
            return found

        content = self.tiers.ask("object", digest, get)
        with self._local.draft() as draft:
            draft.write(content)
            draft.commit()

    # Large ones.

    def _large(self, data: bytes, size: int) -> Optional[tuple[int, bytes]]:
        """Size and list of a large object; None: it is none, as far as can be told."""
        if len(data) > DIGEST_BYTES and size >= 0:
            return size, data[DIGEST_BYTES:]
        return self._local.large(data) if size < 0 or size > CHUNKED_BYTES else None

    def _fetch_large(self, digest: bytes, size: int, list_digest: bytes) -> None:
        for _ in range(TRIES):
            if self._fill(digest, size, list_digest):
                return
        raise ServiceError(f"object {digest.hex()} was removed while it was fetched, {TRIES} times")

    def _fill(self, digest: bytes, size: int, list_digest: bytes) -> bool:
        """Whether it is here now; False: what there was of it was removed meanwhile."""
        with self._opened(digest, size, list_digest) as partial:
            missing = partial.missing()
            self._check_room(sum(partial.chunks[index].length for index in missing))
            self._bring_chunks(partial, missing)
            return self._complete(partial)

    def _range(self, digest: bytes, size: int, list_digest: bytes, start: int, length: int) -> Optional[bytes]:
        """None: it has become whole meanwhile."""
        with self._opened(digest, size, list_digest) as partial:
            if os.path.exists(self._local.path(digest)):
                partials.remove(self._local.home, digest)
                self._forget(partial)
                return None
            self._bring_chunks(partial, partial.missing(start, length))
            return partial.read(start, length)

    @contextmanager
    def _opened(self, digest: bytes, size: int, list_digest: bytes) -> Iterator[Partial]:
        """What there is of a large object, held while inside; without room on the disk it is given up."""
        partial = self._open(digest, size, list_digest)
        try:
            yield partial
        except ResourceExhaustedError:
            partials.remove(self._local.home, digest)
            self._forget(partial)
            raise
        finally:
            self._release(partial)

    def _bring_chunks(self, partial: Partial, indexes: Sequence[int]) -> None:
        """Bring these chunks, several at once."""
        if len(indexes) < 2:
            for index in indexes:
                self._chunk(partial, index)
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(indexes)), thread_name_prefix="chunks") as pool:
            futures = [pool.submit(self._chunk, partial, index) for index in indexes]
            try:
                for one in futures:
                    one.result()
            except BaseException:
                for one in futures:
                    one.cancel()
                raise

    def _chunk(self, partial: Partial, index: int) -> None:
        """Bring one chunk, unless it is there."""
        if not partial.missing(partial.chunks[index].start, 1):
            return
        key = partial.digest + index.to_bytes(8, "big")
        self._flights.fly(key, lambda: self._fetch_chunk(partial, index), WAIT_S)

    def _fetch_chunk(self, partial: Partial, index: int) -> None:
        one = partial.chunks[index]
        if not partial.missing(one.start, 1):
            return

        def get(tier: Tier) -> bytes:
            if tier.kind == "peer":  # it has the file itself
                found = tier.bucket.get_range(object_key("objects", partial.digest), one.start, one.length)
            else:
                found = tier.bucket.get(object_key("chunks", one.digest), one.length)
            _checked(found, one.digest)
            self._count(tier, len(found))
            return found

        partial.put(index, self.tiers.ask("chunk", one.digest, get))

    def _complete(self, partial: Partial) -> bool:
        """All chunks are here: look at the whole once, and give it its name. False: it was removed meanwhile."""
        path = self._local.path(partial.digest)
        if os.path.exists(path):
            partials.remove(self._local.home, partial.digest)
            self._forget(partial)
            return True
        hasher = blake3()
        at = 0
        while at < partial.size:
            part = partial.read(at, 4 << 20)
            if not part:
                break
            hasher.update(part)
            at += len(part)
        if hasher.digest() != partial.digest:
            partials.remove(self._local.home, partial.digest)
            self._forget(partial)
            raise DataLossError(f"object {partial.digest.hex()}: its chunks are whole, but do not make up this file")
        done = partial.finish() or os.path.exists(path)  # else another process gave it its name
        self._forget(partial)
        return done

    def _check_room(self, wanted: int) -> None:
        found = os.statvfs(self._local.home)
        if found.f_bavail * found.f_frsize < wanted:
            raise ResourceExhaustedError(
                f"no room left in {self._local.home}: {wanted} bytes are needed, free some or set store_limit_gib lower"
            )

    def _finish_later(self, digest: bytes, size: int, list_digest: bytes) -> None:
        with self._lock:
            if self._closed or digest in self._finishing:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="finish")
            self._finishing[digest] = self._pool.submit(self._finish, digest, size, list_digest)

    def _finish(self, digest: bytes, size: int, list_digest: bytes) -> None:
        try:
            self.fetch(digest + list_digest, size)
        except Error as error:
            _log.warning("store.unfinished", object=digest.hex(), why=str(error))
        finally:
            with self._lock:
                self._finishing.pop(digest, None)

    def _open(self, digest: bytes, size: int, list_digest: bytes) -> Partial:
        with self._lock:
            found = self._partials.get(digest)
            if found is not None and not found.users and found.is_removed():
                del self._partials[digest]
                found.close()
                found = None
            if found is not None:
                found.users += 1
                return found
        chunks = self.chunks(list_digest)
        if sum(one.length for one in chunks) != size:
            raise DataLossError(f"object {digest.hex()}: its list of chunks is of another size than {size}")
        with self._lock:
            found = self._partials.get(digest)
            if found is None:
                found = self._partials[digest] = Partial(self._local, digest, size, chunks)
            found.users += 1
            return found

    def _release(self, partial: Partial) -> None:
        with self._lock:
            partial.users -= 1
            if partial.users:
                return
            if self._partials.get(partial.digest) is not partial:
                partial.close()
                return
            idle = [one for one in self._partials.values() if not one.users]
            for one in idle[: max(0, len(idle) - IDLE_PARTIALS)]:
                del self._partials[one.digest]
                one.close()

    def _forget(self, partial: Partial) -> None:
        """Nobody opens it any more; the last who uses it closes it."""
        with self._lock:
            if self._partials.get(partial.digest) is partial:
                del self._partials[partial.digest]

    def _count(self, tier: Tier, count: int) -> None:
        with self._lock:
            self.bytes_by[tier.kind] += count


def _checked(content: bytes, digest: bytes) -> bytes:
    """The content, when it is this digest's; DataLossError else."""
    if blake3(content).digest() != digest:
        raise DataLossError(f"{digest.hex()} came as {len(content)} bytes that are something else")
    return content
